"""Masked sums by groups, and the median of them: what it holds against, what it shows, and what it does not go together with."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from fedrounds.core import identity, masked
from fedrounds.core.answer import handle_masked
from fedrounds.core.combine import median
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.groups import deal, roster_of
from fedrounds.core.masked import TOGETHER, Self
from fedrounds.core.operations import Operations
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.privacy.sheet import Sheet
from fedrounds.core.round import open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.state import Champion
from fedrounds.core.study import Study
from fedrounds.reports.account import limits_of
from fedrounds.tasks import masks
from fedrounds.tasks.preview import samples

NINE = tuple("abcdefghi")
FIFTEEN = tuple("abcdefghijklmno")


def words(attackers=1, protect=None, combine=None, **changes):
    way = {"kind": "median", "attackers": attackers} if combine is None else combine
    return {
        "name": "grouped",
        "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
        "features": [{"type": "number", "name": f"x{i}", "range": [-20, 20]} for i in range(30)],
        "model": {"kind": "logistic", "l2": 0.001},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 2}, "combine": way},
        "weights": "uniform",
        "privacy": {"protect": {"kind": "masked", "groups": 3} if protect is None else protect},
        **changes,
    }


def study(*how, **more):
    return Study.model_validate(words(*how, **more))


MEAN = {"combine": {"kind": "weighted_mean"}, "protect": {"kind": "masked"}}


def wdbc(sites, seed=0):
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    order = np.random.default_rng(seed).permutation(len(y))
    found = {}
    for site, part in zip(sites, np.array_split(order, len(sites)), strict=True):
        design, cut = np.column_stack([X[part], np.ones(len(part))]), len(part) // 4
        found[site] = Rows(design[cut:], y[part][cut:] * 1.0, design[:cut], y[part][:cut] * 1.0)
    return found


def attack(monkeypatch, by, change):
    """Some sites put other sums under their masks than their own."""
    real = masked.protect

    def spoilt(request, sums, sheet, vault, me):
        return real(request, change(sums) if me.site in by and "delta" in sums else sums, sheet, vault, me)

    monkeypatch.setattr(masked, "protect", spoilt)


def area(theta, data, by=()):
    honest = [rows for site, rows in data.items() if site not in by]
    truth, scores = (
        np.concatenate(parts) for parts in zip(*((it.y_valid, it.X_valid @ theta) for it in honest), strict=True)
    )
    return roc_auc_score(truth, scores)


def last(of, data, rounds, **how):
    return list(simulate(build(of), data, rounds, **how))[-1]


# --- the deal ---------------------------------------------------------------------------------------------------------


@given(
    st.sets(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=6, max_size=60),
    st.integers(2, 9),
    st.text(max_size=8),
)
def test_every_site_is_in_one_group_all_are_as_large_and_everybody_deals_alike(sites, groups, about):
    parts = deal(sites, groups, about)
    assert sorted(site for part in parts for site in part) == sorted(sites)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == deal(sorted(sites, reverse=True), groups, about)


def test_another_study_deals_other_groups_and_a_site_finds_its_own():
    assert deal(NINE, 3, "one") != deal(NINE, 3, "two")
    roster = {site: site.encode() for site in NINE}
    for part in deal(NINE, 3, "one"):
        assert all(tuple(roster_of(site, roster, 3, "one")) == part for site in part)
    assert roster_of("a", roster, 1, "one") is roster
    assert roster_of("stranger", roster, 3, "one") == {}


def test_groups_dealt_anew_each_round_would_tell_each_sites_rows_and_one_deal_tells_sums_alone():
    """Nine sites that send the same number each round: a few rounds of other groups are nine equations."""
    rows = np.random.default_rng(0).integers(20, 400, 9).astype(float)

    def equations(studies):
        lines = [[float(site in part) for site in NINE] for one in studies for part in deal(NINE, 3, one)]
        return np.array(lines)

    anew = equations(["d0", "d1", "d2", "d3", "d4"])
    assert np.linalg.matrix_rank(anew) == 9
    np.testing.assert_allclose(np.linalg.lstsq(anew, anew @ rows, rcond=None)[0], rows, rtol=1e-10)
    once = equations(["d0"] * 100)
    assert np.linalg.matrix_rank(once) == 3
    nearest = np.linalg.lstsq(once, once @ rows, rcond=None)[0]
    assert len(set(nearest.round(6))) == 3  # the means of the groups, and nothing within one


# --- the median of groups ---------------------------------------------------------------------------------------------


def test_the_model_is_the_median_of_the_groups_means_to_half_a_step(monkeypatch):
    of, data = study(), wdbc(NINE)
    plan, sent = build(of), {}
    real = masked.protect

    def spied(request, sums, sheet, vault, me):
        if "delta" in sums:
            sent[me.site] = sums["delta"].copy()
        return real(request, sums, sheet, vault, me)

    monkeypatch.setattr(masked, "protect", spied)
    closed = next(simulate(plan, data, 1))
    parts = deal(NINE, 3, plan.digest)
    expected = np.median([np.mean([sent[site] for site in part], axis=0) for part in parts], axis=0)
    step = float(Grid(np.array(8.0), 32).step(3))
    start = plan.start(plan.no_statistics())
    assert np.abs(closed.state.theta - start.theta - expected).max() <= step / 2 + 1e-15
    assert closed.heard == NINE
    assert closed.training[TOGETHER][0] == sum(len(rows.y) for rows in data.values())


@pytest.mark.parametrize("wire", [False, True])
def test_what_is_told_is_of_all_together_as_with_one_sum(wire):
    data = wdbc(NINE)
    of = study()
    start = replace(build(of).start(build(of).no_statistics()), round=2, champion=Champion(1, np.ones(31)))
    found = last(of, data, 0, state=start, wire=wire)
    plain = study(protect={"kind": "plain"})
    agreed = {name: array for name, array in start.statistics.items() if name != "rows"}
    shown = last(plain, data, 0, state=replace(start, study=plain.digest, statistics=agreed))
    assert found.scores.keys() == found.paired.keys() == {TOGETHER}
    for got, one_by_one in (
        (found.scores[TOGETHER][0], [it for it, _ in shown.scores.values()]),
        (found.paired[TOGETHER], [*shown.paired.values()]),
    ):
        np.testing.assert_allclose(got, np.sum(one_by_one, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.scores[TOGETHER][1], np.sum([it for _, it in shown.scores.values()], axis=0))


def test_one_of_nine_that_flips_its_updates_breaks_the_mean_and_not_the_median_of_groups(monkeypatch):
    data, rounds = wdbc(NINE), 8
    fair = area(last(study(), data, rounds).state.theta, data)
    attack(monkeypatch, "e", lambda sums: {**sums, "delta": -10 * sums["delta"]})
    held = area(last(study(), data, rounds).state.theta, data, "e")
    broken = area(last(study(**MEAN), data, rounds).state.theta, data, "e")
    assert fair > 0.985
    assert held > 0.985
    assert broken < 0.1


def test_two_attackers_in_two_groups_are_more_than_three_groups_stand(monkeypatch):
    of, data = study(), wdbc(NINE)
    parts = deal(NINE, 3, of.digest)
    attack(monkeypatch, {parts[0][0], parts[1][0]}, lambda sums: {**sums, "delta": -10 * sums["delta"]})
    assert area(last(of, data, 8).state.theta, data) < 0.1  # said, so that nobody takes it for more than it is


@given(st.integers(1, 3), st.integers(0, 4), st.data())
def test_no_number_of_a_median_lies_outside_those_of_the_honest(attackers, more, data):
    number = st.floats(-1e9, 1e9)
    fair = data.draw(
        st.lists(st.lists(number, min_size=2, max_size=2), min_size=attackers + 1 + more, max_size=attackers + 1 + more)
    )
    foul = data.draw(st.lists(st.lists(number, min_size=2, max_size=2), min_size=attackers, max_size=attackers))
    rule = median(attackers)
    total = rule.start(2)
    for update in (*fair, *foul):
        total = rule.add(total, np.array(update), 1.0)
    found = rule.finish(total)
    assert (found >= np.min(fair, axis=0)).all()
    assert (found <= np.max(fair, axis=0)).all()


def test_a_median_of_single_updates_wants_two_for_each_attacker_and_one_more():
    data = wdbc(("a", "b", "c"))
    plain = study(protect={"kind": "plain"})
    assert last(plain, data, 1).scores.keys() == {"a", "b", "c"}
    with pytest.raises(QuorumError, match="expected 3 updates or more for a median that 1 cannot sway, found 2"):
        last(plain, {site: data[site] for site in "ab"}, 1)


# --- groups that are lost or lie --------------------------------------------------------------------------------------


def test_of_three_groups_of_three_none_may_lose_a_site():
    with pytest.raises(
        QuorumError, match="expected masked sums of at least 3 groups of sites, found those of 2: a median of fewer"
    ):
        last(study(), wdbc(NINE), 1, lost=lambda request, site: site == "e" and request.ask == "train")


@pytest.mark.parametrize("phase", ["shares", "train", "agree", "open"])
def test_of_five_groups_one_that_loses_a_site_is_left_out_and_its_sites_are_told_why(phase):
    of, data = study(protect={"kind": "masked", "groups": 5}), wdbc(FIFTEEN)
    gone = next(part for part in deal(FIFTEEN, 5, of.digest) if "e" in part)
    closed = list(
        simulate(build(of), data, 2, lost=lambda request, site: (site, request.ask, request.round) == ("e", phase, 1))
    )
    assert closed[0].heard == tuple(site for site in FIFTEEN if site not in gone)
    assert set(closed[0].refused) == set(gone)
    assert all(why.startswith("its group of masked sums is left out: ") for why in closed[0].refused.values())
    assert closed[1].heard == FIFTEEN  # it is back, with new keys


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda sums: {**sums, "weight": np.array([5.0])}, "expected a weight of 3, one for each site, found another"),
        (
            lambda sums: {**sums, "train": np.array([-1e6, 0.0])},
            "expected updates of 3 sites trained on patients, found fewer rows",
        ),
    ],
)
def test_a_group_whose_counts_break_the_rules_is_left_out(monkeypatch, change, said):
    of, data = study(protect={"kind": "masked", "groups": 5}), wdbc(FIFTEEN)
    gone = next(part for part in deal(FIFTEEN, 5, of.digest) if "e" in part)
    attack(monkeypatch, "e", change)
    closed = next(simulate(build(of), data, 1))
    assert closed.heard == tuple(site for site in FIFTEEN if site not in gone)
    assert closed.refused == dict.fromkeys(gone, f"its group of masked sums is left out: {said}")


def test_a_group_whose_sum_is_beyond_what_its_sites_can_send_is_left_out(monkeypatch):
    of, data = study(protect={"kind": "masked", "groups": 5, "bits": 64}), wdbc(FIFTEEN)
    gone = next(part for part in deal(FIFTEEN, 5, of.digest) if "e" in part)
    real = Sheet.words
    calls = []

    def spoilt(self, sums, sites, link):
        words = real(self, sums, sites, link)
        if "delta" in sums and sums["delta"].tobytes() in marked:
            calls.append(1)
            words["words.delta"] = np.full_like(words["words.delta"], 1 << 60)
        return words

    marked = set()
    attack(monkeypatch, "e", lambda sums: marked.add(sums["delta"].tobytes()) or sums)
    monkeypatch.setattr(Sheet, "words", spoilt)
    closed = next(simulate(build(of), data, 1))
    assert calls == [1]
    assert set(closed.refused) == set(gone)
    assert "expected a sum of 'delta' within what 3 sites can send, found a larger one" in closed.refused["e"]


@pytest.mark.parametrize(("steps", "fine"), [(3, True), (-3, True), (4, False), (-4, False)])
def test_a_sum_is_held_against_the_bound_of_those_who_were_heard(steps, fine):
    sheet = Sheet({"delta": Grid(np.array(1.0), 32, clip=True)}, {"delta": (1,)})
    level = sheet.grids["delta"].levels(9)
    total = {"words.delta": np.array([steps * level], np.int32).view(np.uint32), "words.sums": np.zeros(1, np.uint64)}
    if fine:
        sheet.require(total, 9, 3)
    else:
        with pytest.raises(UpdateRejected, match="within what 3 sites can send"):
            sheet.require(total, 9, 3)


def test_a_site_of_too_small_a_group_sends_nothing():
    keys = {site: identity.new_key() for site in NINE[:8]}
    roster = {site: identity.public_key(key) for site, key in keys.items()}
    plan = build(study())
    small = next(part for part in deal(NINE[:8], 3, plan.digest) if len(part) == 2)
    request = replace(
        open_round(plan.start(), build(study(protect={"kind": "plain"})), "train", NINE).request,
        study=plan.digest,
        ask="keys",
    )
    _, _, reply = handle_masked(
        request, Vault(), Self(small[0], keys[small[0]], roster), {}, None, plan, OPEN, plan.rng(0, "a")
    )
    assert reply.refusal == "its group under masks has fewer than 3 sites on the roster"


# --- what does not go together ----------------------------------------------------------------------------------------

DP = {"dp": {"unit": "patient", "epsilon": 3.0, "patients": 200, "rounds": 5}}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            words(protect={"kind": "masked"}),
            "a median needs the updates one by one, which masks hide: set privacy.protect.groups to 3 or more",
        ),
        (
            words(attackers=2, protect={"kind": "masked", "groups": 4}),
            "set privacy.protect.groups to 5 or more for 2 that may attack (found 4)",
        ),
        (
            words(combine={"kind": "weighted_mean"}),
            "groups under masks show more than one sum does, and a mean gains nothing by it",
        ),
        (words(privacy=DP), "a median and differential privacy do not go together"),
        (words(weights="patients"), "a median counts every site alike"),
        (words(weights=dict.fromkeys(NINE, 1.0)), "a median counts every site alike"),
        (
            words(protect={"kind": "masked", "groups": 3, "margin": 0.1}),
            "a count of sites that got worse would be seen group by group",
        ),
        (words(combine={"kind": "crumb"}), "'weighted_mean', 'median'"),
    ],
)
def test_what_does_not_compose_is_refused_with_the_reason(how, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        Study.model_validate(how)


def test_too_few_sites_for_the_groups_or_the_median_are_refused_before_anything_runs():
    masks.enough(study(), NINE)
    with pytest.raises(StudyError, match="expected at least 9 sites for 3 groups of 3 or more under masks, found 8"):
        masks.enough(study(), NINE[:8])
    with pytest.raises(StudyError, match="expected at least 3 sites for a median that 1 cannot sway, found 2"):
        masks.enough(study(protect={"kind": "plain"}), "ab")
    weighing = Operations.model_validate({"rounds": 1, "gate": {"policy": "down-weight"}})
    with pytest.raises(StudyError, match="found `down-weight` under"):
        masks.require(study(protect={"kind": "plain"}), weighing)


def test_studies_without_groups_keep_the_digest_they_had():
    plain = study(combine={"kind": "weighted_mean"}, protect={"kind": "masked"})
    assert plain.model_dump(mode="json")["privacy"]["protect"] == {
        "kind": "masked",
        "clip": 8.0,
        "bits": 32,
        "batch": 32,
    }
    assert plain.model_dump(mode="json")["algorithm"]["combine"] == {"kind": "weighted_mean"}
    assert study().digest != plain.digest
    assert build(plain.model_copy(update={"privacy": Privacy()})).study.median is None


# --- hospitals apart --------------------------------------------------------------------------------------------------

HOSPITALS = ("east", "fifth", "north", "other", "south", "third", "upper", "valley", "west")


def test_hospitals_apart_train_the_model_of_one_process_and_keep_to_their_group(apart):
    protocol = {
        'weights = "patients" ': 'weights = "uniform" ',
        "server = { rate = 1.0 } ": 'combine = { kind = "median" }\nserver = { rate = 1.0 } ',
    }
    study = apart(masked='{ kind = "masked", groups = 3 }', sites=HOSPITALS, protocol=protocol)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        while asking.request.ask != "open":
            asking = run.aggregate(asking, study.ask(run, asking))
        study.ask(run, asking)  # opened, and then the coordinator dies
    sampled = [sample.document() for sample in samples(study.hospital("west"))]
    assert [it["ask"] for it in sampled] == [
        "gate",
        *["keys", "shares", "statistics"],
        *["keys", "shares", "train"],
        *["keys", "shares", "score"],
    ]
    assert not any(it["header"]["refusal"] for it in sampled)
    with study.run() as run:
        assert study.drive(run) == study.reference()[-1][1]
    assert [it.outcome for it in study.replies()] == ["taken"] * len(study.replies())
    hospital = study.hospital("east")
    group = hospital.book.fact(f"group {study.plan.digest}")
    assert "east" in group
    assert len(group) == 3
    other = {**study.roster, "stranger": identity.public_key(identity.new_key())}  # deals others into its group
    assert set(roster_of("east", other, 3, study.plan.digest)) != set(group)
    hospital.book.learn("roster", {name: key.hex() for name, key in other.items()})
    with study.run() as run:
        study.gate(run)
        asking = run.open("score")
        study.ask(run, asking)
    assert "its group under masks would be another one" in hospital.book.asked(1)[0].reason


def test_the_report_says_that_the_sum_of_each_group_is_seen():
    said = " The hospitals fall into 3 groups, and the sum of each group is seen by itself."
    assert limits_of(study())[0].endswith(said)
    assert "groups" not in limits_of(study(combine={"kind": "weighted_mean"}, protect={"kind": "masked"}))[0]
