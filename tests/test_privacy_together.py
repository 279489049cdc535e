"""Noise that sites make together under masks: each guarantee of `noised.py` and `joint.py`, and builds that were weakened on purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from math import exp, pi, sqrt
from secrets import token_bytes

import numpy as np
import pytest
from pydantic import ValidationError

from fedrounds.core import masked, sheets
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.privacy import excess, joint, noised, private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.epoch import threshold
from fedrounds.core.privacy.excess import LINK
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.noise import Gaussian
from fedrounds.core.privacy.noised import Noised
from fedrounds.core.privacy.sheet import Sheet
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.reports import account
from fedrounds.tasks import masks

SITES = ("east", "north", "south", "west")
DP = {"unit": "patient", "epsilon": 3.0, "delta": 1e-3, "patients": 200, "rounds": 4, "steps": 3}


def protocol(protect=None, weights="uniform", **dp):
    age = {"type": "number", "name": "age", "range": [0, 100]}
    sex = {"type": "category", "name": "sex", "categories": ["f", "m"]}
    return {
        "name": "together",
        "weights": weights,
        "features": [age, sex],
        "target": {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]},
        "model": {"kind": "logistic", "l2": 0.01},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.5}},
        "privacy": {"protect": {"kind": "masked", **(protect or {})}, "dp": DP | dp},
    }


def study(**changes):
    return Study.model_validate(protocol(**changes))


def cohorts(of, n=200, sites=SITES):
    found = {}
    for seed, site in enumerate(sites):
        rng = np.random.default_rng(seed)
        age, sex = rng.uniform(20, 90, n), np.where(rng.integers(0, 2, n), "m", "f").astype(object)
        ill = np.where(rng.random(n) < 1 / (1 + np.exp(-(age - 55) / 10)), "yes", "no").astype(object)
        found[site] = clean(Table({"age": age, "sex": sex, "ill": ill}, {}), of, site)
    return found


def made(size=20_000, z=2.0, clip=1.0, patients=100.0, bits=64, colluders=None):
    return Noised(np.array(clip * patients), bits, mechanism=Gaussian(clip, z, size), colluders=colluders)


def opened(grid, vectors, roster, heard=None):
    """What the coordinator knows of these sites together, where so many were heard, and each has told what so many can do without."""
    links = [token_bytes(LINK) for _ in vectors]
    words = [grid.words("x", vector, roster, link)[0] for vector, link in zip(vectors, links, strict=True)]
    total = np.sum(words, axis=0, dtype=words[0].dtype)
    if heard:
        told = [excess.spare(link, heard, roster) for link in links]
        total = total - grid.excess("x", vectors[0].size, roster, heard, told)
    return grid.numbers(total, roster)


# --- the noise in a sum -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sites", "colluders"), [(3, None), (4, None), (4, 0), (7, None), (10, 2)])
def test_every_sum_has_the_noise_that_is_accounted_for_though_all_that_may_be_are_lost_and_liars_tell_theirs(
    sites, colluders
):
    grid = made(colluders=colluders)
    known = sites - threshold(sites) if colluders is None else colluders
    left = opened(grid, [np.zeros(20_000)] * (threshold(sites) - known), sites)
    assert left.std() == pytest.approx(grid.mechanism.deviation, rel=0.025)
    everybody = opened(grid, [np.zeros(20_000)] * sites, sites)
    assert everybody.std() == pytest.approx(grid.deviation(sites, sites), rel=0.025)


@pytest.mark.parametrize(("sites", "colluders"), [(3, None), (4, None), (4, 0), (7, None), (10, 2), (40, None)])
def test_what_those_who_were_heard_can_do_without_is_taken_out_and_what_is_accounted_for_stays(sites, colluders):
    grid = made(size=8_000, colluders=colluders)
    known = sites - threshold(sites) if colluders is None else colluders
    for heard in {threshold(sites), (threshold(sites) + sites) // 2, sites}:
        honest_ones = opened(grid, [np.zeros(8_000)] * (heard - known), sites, heard)  # less all that liars drew
        least = grid.mechanism.deviation
        assert 0.96 * least < honest_ones.std() < 1.04 * least * sqrt((heard - known) / (heard - known - 0.999)), heard
    everybody = opened(grid, [np.zeros(8_000)] * sites, sites, sites)
    assert everybody.std() == pytest.approx(grid.deviation(sites, sites, sites), rel=0.04)
    assert grid.deviation(sites, sites, sites) == pytest.approx(
        grid.mechanism.deviation * sqrt(sites / (sites - known))
    )


def test_a_sum_of_which_some_do_not_tell_keeps_their_noise_and_says_so():
    grid, links = made(), [token_bytes(LINK) for _ in range(4)]
    words = [grid.words("x", np.zeros(20_000), 4, link)[0] for link in links]
    told = [excess.spare(link, 4, 4) for link in links[:2]]
    left = grid.numbers(np.sum(words, axis=0, dtype=np.uint64) - grid.excess("x", 20_000, 4, 4, told), 4)
    assert left.std() == pytest.approx(grid.deviation(4, 4, 2), rel=0.025)
    assert grid.deviation(4, 4, 2) == pytest.approx(grid.mechanism.deviation * sqrt(2 / 3 + 2 / 2))


def test_a_build_that_tells_what_more_sites_than_were_heard_can_do_without_leaves_too_little():
    grid = made()
    seven_of_ten = [np.zeros(20_000)] * (7 - 3)  # less the three that lie
    assert opened(grid, seven_of_ten, 10, heard=7).std() == pytest.approx(grid.mechanism.deviation, rel=0.025)
    assert opened(grid, seven_of_ten, 10, heard=10).std() < 0.8 * grid.mechanism.deviation


def test_a_link_tells_the_parts_after_it_and_none_before():
    root = token_bytes(LINK)
    whole = list(islice(excess.seeds(root, "delta"), 3))
    assert excess.rungs(10) == (10, 9, 8, 7)
    for heard, known in ((10, 3), (9, 2), (8, 1)):
        link = excess.spare(root, heard, 10)
        assert list(islice(excess.seeds(link, "delta"), known)) == whole[3 - known :]
        assert not set(islice(excess.seeds(link, "delta"), 100)) & set(whole[: 3 - known]), "a hash does not run back"
    assert excess.spare(root, 7, 10) == excess.NOTHING, "the fewest need all of it"
    assert not set(whole) & set(islice(excess.seeds(root, "noised"), 3)), "each sum of an exchange has noise of its own"


@pytest.mark.parametrize("sites", [3, 4, 50, 64, 200, 1000])
def test_noise_is_ready_for_every_number_of_survivors_in_parts_that_are_large_enough(sites):
    rungs = excess.rungs(sites)
    assert (rungs[0], rungs[-1], len(rungs)) == (sites, threshold(sites), min(sites - threshold(sites) + 1, 16))
    assert list(rungs) == sorted(set(rungs), reverse=True)
    grid = made(size=100)
    parts = np.array(grid.parts(sites))
    liars = sites - threshold(sites)
    for heard in range(threshold(sites), sites + 1):
        kept = (parts[: excess.rung(heard, sites) + 1] ** 2).sum() * (heard - liars)
        assert kept >= grid.mechanism.sigma**2 * (1 - 1e-12), "of those who do not lie"


def test_noise_that_nobody_can_have_again_is_asked_for_by_name():
    with pytest.raises(ValueError, match="expected a link of 32 bytes for the noise of 'delta', found 0"):
        made(size=10).words("delta", np.zeros(10), 4)


def test_shares_that_do_not_reckon_with_the_lost_and_the_liars_are_seen_as_too_little(monkeypatch):
    monkeypatch.setattr(noised, "honest", lambda sites, colluders: threshold(sites))
    monkeypatch.setattr(noised, "rungs", lambda sites: (sites,))
    grid = made()
    left = opened(grid, [np.zeros(20_000)] * 3, 10)
    assert left.std() < 0.6 * grid.mechanism.deviation


def test_one_patient_moves_a_sum_by_no_more_than_is_accounted_for_on_the_grid(monkeypatch):
    monkeypatch.setattr(noised, "discrete_gaussian", lambda sigma, count, bits: np.zeros(count, np.int64))
    rng, grid = np.random.default_rng(0), made(size=50, z=1.0)
    for _ in range(200):
        patient = rng.normal(size=50)
        patient /= np.linalg.norm(patient)
        others = rng.normal(size=50) * rng.choice([0.1, 100.0])  # within the bound, and beyond it
        moved = opened(grid, [others + patient], 4) - opened(grid, [others], 4)
        assert np.linalg.norm(moved) * grid.mechanism.multiplier <= grid.mechanism.deviation


def test_every_answer_draws_anew():
    grid = made()
    links = [token_bytes(LINK) for _ in range(2)]
    once, again = (grid.words("x", np.zeros(20_000), 4, link)[0].view(np.int64).astype(float) for link in links)
    assert abs(np.corrcoef(once, again)[0, 1]) < 4 / sqrt(20_000)
    first, other = (next(excess.seeds(excess.first_link(b"s" * 32, it, "east"), "x")) for it in (b"one", b"other"))
    assert first != other, "an announcement has a chain of its own"


def test_the_sum_of_shares_is_as_good_as_one_discrete_gaussian():
    assert noised.gap(4.0, 2) == pytest.approx(10 * exp(-16 * pi**2))
    k = np.arange(-60, 61)
    one = np.exp(-(k**2) / (2 * 4.0**2))
    one /= one.sum()
    both, wide = np.convolve(one, one)[60:-60], np.exp(-(k**2) / (4 * 4.0**2))
    wide /= wide.sum()
    middle = np.abs(k) <= 20
    assert np.abs(np.log(both[middle] / wide[middle])).max() < 1e-9, "to what doubles can tell"
    coarse = np.exp(-(k**2) / (2 * 0.5**2))
    coarse /= coarse.sum()
    gap = np.abs(
        np.log(
            np.convolve(coarse, coarse)[60:-60][58:63]
            / (np.exp(-(k**2) / (4 * 0.5**2)) / np.exp(-(k**2) / (4 * 0.5**2)).sum())[58:63]
        )
    )
    assert 1e-3 < gap.max() < noised.gap(0.5, 2), "and where it is not, τ says so"


def test_shares_too_small_to_add_up_to_a_gaussian_are_refused():
    with pytest.raises(UpdateRejected, match=r"expected a share of noise of 4 steps or more, found 3\.9"):
        made(size=10).parts(3_500)


def test_a_sum_that_might_not_fit_its_word_is_refused_and_one_that_is_large_wraps_nothing():
    grid = made(size=10, bits=32, patients=2e6)
    with pytest.raises(UpdateRejected, match=r"found 32 bits: set privacy\.protect\.bits to 64"):
        grid.words("delta", np.zeros(10), 4, bytes(LINK))
    fits = made(size=10, bits=32)
    total = opened(fits, [np.full(10, 1e9)] * 4, 4)
    assert total == pytest.approx(400.0, abs=10 * fits.deviation(4, 4))
    with pytest.raises(UpdateRejected, match="expected finite numbers"):
        fits.words("delta", np.full(10, np.nan), 4, bytes(LINK))


@pytest.mark.parametrize(("colluders", "said"), [(3, "found privacy.dp.colluders = 3"), (2, "")])
def test_more_liars_than_a_sum_has_sites_are_refused_before_anything_runs(colluders, said):
    of = study(colluders=colluders)
    if said:
        with pytest.raises(StudyError, match=said):
            masks.enough(of, SITES)
    else:
        masks.enough(of, SITES)


# --- a study ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protect": {"bits": 16}}, "words of 32 or 64 bits, found privacy.protect.bits = 16"),
        ({"steps": 65}, "expected at most 64 privacy.dp.steps, found 65"),
        ({"protect": {"kind": "plain"}, "colluders": 1}, "leave out privacy.dp.colluders and spare"),
        ({"protect": {"kind": "plain"}, "spare": 1}, "leave out privacy.dp.colluders and spare"),
        ({"weights": "patients"}, "would tell each site's number of patients"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        study(**changes)


def test_a_study_older_than_these_words_keeps_its_digest():
    of = study(protect={"kind": "plain"})
    assert "colluders" not in of.model_dump_json()
    assert study(protect={"kind": "plain"}, spare=0, colluders=None).digest == of.digest
    assert study(colluders=1).digest != study().digest
    assert Study.model_validate(study(colluders=1).model_dump(mode="json")) == study(colluders=1)


def test_all_that_is_made_of_rows_is_noised_and_nothing_else_travels():
    of = study()
    assert {name: type(grid) for name, grid in joint.grids(of, "train", {"delta": (5,), "weight": (1,)}).items()} == {
        "delta": Noised,
        "weight": Grid,
    }
    assert isinstance(joint.grids(of, "statistics", {"noised": (7,)})["noised"], Noised)
    for ask, name in (("train", "train"), ("score", "scores"), ("score", "histogram"), ("train", "paired")):
        with pytest.raises(UpdateRejected, match=f"noised numbers alone under differential privacy, found '{name}'"):
            joint.grids(of, ask, {name: (2,)})


def test_a_round_is_its_steps_of_descent_on_the_sums_that_were_opened(monkeypatch):
    of, spied, real = study(), [], Sheet.words
    plan = build(of)

    def spy(sheet, sums, sites, link):
        words = real(sheet, sums, sites, link)
        spied.append((sheet, {name: array.copy() for name, array in words.items()}, sums, link))  # masks go on in place
        return words

    monkeypatch.setattr(Sheet, "words", spy)
    first, second, *_ = simulate(plan, cohorts(of), 1)
    theta, dp = first.state.theta, of.privacy.dp
    assert second.state.statistics.keys() == {"impute", "center", "scale"}
    for step in range(dp.steps):
        told = spied[4 + 4 * step : 8 + 4 * step]  # after the statistics of four
        total = {
            name: np.sum([it[1][name] for it in told], axis=0, dtype=one.dtype) for name, one in told[0][1].items()
        }
        told[0][0].lighten(total, 4, 4, [excess.spare(it[3], 4, 4) for it in told])
        sums, clipped = told[0][0].sums(total, 4)
        assert (clipped, sums["weight"][0]) == (0, 4.0)
        theta = theta - 0.5 * (sums["delta"] / 4 / dp.batch + 0.01 * plan.family.penalised * theta)
    np.testing.assert_array_equal(second.state.theta, theta)
    assert (second.state.round, second.state.exchange, dict(second.state.work)) == (1, 0, {})
    for sheet, words, sums, _ in spied[4:16]:
        noise = words["words.delta"].view(np.int32) - np.rint(sums["delta"] / sheet.grids["delta"].mechanism.step)
        assert np.abs(noise).max() > 50, "each has noise of its own before its masks"


def test_a_study_still_learns_and_tells_no_score():
    of = study(epsilon=8.0, steps=10)
    plan = build(of)
    *closed, last = simulate(plan, cohorts(of), 4)
    assert plan.family.layout.split(last.state.theta)["coef"][0] > 0.3, "age makes ill"
    assert all(
        [it.scores, it.training, it.paired, it.profiles] == [{}] * 4 and it.clipped == 0 for it in (*closed, last)
    )
    assert all(it.heard == SITES for it in closed)


@pytest.mark.parametrize("phase", ["train", "agree", "open"])
def test_a_site_lost_at_any_step_leaves_the_round_to_the_others(phase):
    of = study()
    lost = lambda request, site: (site, request.ask, request.round, request.exchange) == ("south", phase, 1, 1)  # noqa: E731
    found = list(simulate(build(of), cohorts(of), 2, lost=lost))
    assert found[1].heard == (("east", "north", "west") if phase == "train" else SITES)
    assert found[2].heard == SITES


def test_a_step_beyond_the_rounds_is_refused():
    plan = build(study())
    with pytest.raises(UpdateRejected, match="expected a round of 3 exchanges, was asked for exchange 3"):
        plan.algorithms["train"].takes(3)
    with pytest.raises(UpdateRejected, match="expected statistics in one exchange"):
        plan.algorithms["statistics"].takes(1)


def test_stated_weights_scale_what_a_patient_adds_down_and_never_up():
    stated = {"east": 1.0, "north": 4.0, "south": 2.0, "west": 4.0}
    of = study(weights=stated)
    for site, weight in stated.items():
        found = sheets.weighed(of, {"delta": np.ones(1)}, site, sheets.scale(of, {}))
        assert (found["delta"][0], found["weight"][0]) == (weight / 4, weight)
    assert list(simulate(build(of), cohorts(of), 1))[1].heard == SITES


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_statistics_and_every_step_of_every_round_and_what_is_spare_cost_what_the_study_states():
    of = study(spare=5)
    first, one = private.events(of, "statistics"), private.events(of, "train")
    assert one[0].times == 1, "an exchange is one release"
    assert 2.99 < epsilon([*first, *one * (4 * 3 + 5)], 1e-3) <= 3.0
    assert epsilon([*first, *one * (4 * 3)], 1e-3) < 2.9
    assert one[0].multiplier > private.events(study(), "train")[0].multiplier


def test_the_noise_of_sites_together_is_less_than_that_of_each_and_the_forecast_says_by_how_much():
    apart, together = (forecast(build(study(protect=protect)), 4, 4) for protect in ({"kind": "plain"}, {}))
    assert together.epsilons == apart.epsilons
    assert together.noise == pytest.approx(apart.noise / sqrt(3))
    assert together.blurred == pytest.approx(apart.blurred / sqrt(3))
    assert any("privacy.dp.spare" in text for text in together.warnings)
    assert not any(
        "privacy.dp.spare" in text for text in (*apart.warnings, *forecast(build(study(spare=3)), 4, 4).warnings)
    )


# --- an attack --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bare(Noised):
    """A build that forgot its noise: words are those of a plain grid."""

    def words(self, name, numbers, sites, link):
        return Grid.words(replace(Grid(self.bound, self.bits, clip=True)), name, numbers, sites)

    def numbers(self, words, sites):
        return Grid(self.bound, self.bits).numbers(words, sites)


def guesses(kind, trials=400):
    """How often who knows all other patients and two of four sites tells from a sum whether a patient was drawn: 1/2 is chance."""
    rng, right = np.random.default_rng(0), 0
    direction = rng.normal(size=64)
    direction /= np.linalg.norm(direction)
    grid = kind(np.array(100.0), 64, mechanism=Gaussian(1.0, 2.0, 64))
    for _ in range(trials):
        inside = rng.random() < 0.5
        total = opened(grid, [direction * inside, np.zeros(64)], 4)  # the two that do not tell
        right += (float(total @ direction) > 0.5) == inside
    return right / trials


def test_who_knows_all_but_one_patient_and_the_noise_of_liars_guesses_no_better_than_the_noise_allows():
    assert guesses(Bare) == 1.0
    assert guesses(Noised) < 0.60 + 0.08, "z = 2 allows Φ(1/4) = 0.60"


# --- hospitals apart --------------------------------------------------------------------------------------------------

PRIVATE = {'weights = "patients"': 'weights = "uniform"', ", epochs = 2, batch = 32": ""}


def protect(spare=0):
    dp = f'{{ unit = "patient", epsilon = 4.0, patients = 200, rounds = 3, steps = 2, spare = {spare} }}'
    return f'{{ kind = "masked" }}\ndp = {dp}'


def spent(apart, site):
    return apart.hospital(site).budgets.spent(site).get(apart.plan.digest, [])


def test_what_the_ledgers_hold_after_a_run_by_mail_is_what_was_forecast_and_no_loss_is_told(apart):
    found = apart(masked=protect(), protocol=PRIVATE, sites=SITES)
    with found.run() as run:
        found.drive(run)
        told = run.ledger.visits()[-1].record
    foreseen = forecast(found.plan, 4, 3)
    delta = found.plan.study.privacy.dp.budget.delta
    for site in SITES:
        assert epsilon(spent(found, site), delta) == pytest.approx(foreseen.epsilons[-1])
        assert len(spent(found, site)) == 1 + 3 * 2
        assert found.hospital(site).budgets.broken() == 0
    assert told["privacy"]["epsilon"] == pytest.approx(foreseen.epsilons[-1])
    assert (told["metrics"], told["histogram"], told["training"]) == ({}, [], {})
    assert told["masked"] == {"heard": 4, "clipped": 0}


@pytest.mark.parametrize("moment", ["before its words", "before it stored them", "before it sent them"])
def test_an_agent_that_dies_has_spent_and_never_twice_for_what_was_sent(apart, monkeypatch, moment):
    found = apart(masked=protect(spare=2), protocol=PRIVATE)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with found.run() as run:
        found.gate(run)
        asking = run.open("statistics")
        while asking.request.ask != "statistics":
            asking = run.aggregate(asking, found.ask(run, asking))
        hospital = found.hospital("north")
        broken = {
            "before its words": (masked, "protect"),
            "before it stored them": (hospital.book, "keep"),
            "before it sent them": (hospital, "send"),
        }
        kept = getattr(*broken[moment])
        monkeypatch.setattr(*broken[moment], dies)
        with pytest.raises(KeyboardInterrupt):
            found.ask(run, asking, ["north"])
        one = private.events(found.plan.study, "statistics")
        monkeypatch.setattr(*broken[moment], kept)
        found.hospital("north", anew=True)
        assert spent(found, "north") == [*one], "whether or not anything left"
        found.agent("north")
        again = moment != "before it sent them"
        assert spent(found, "north") == [*one] * (1 + again), "the same bytes cost nothing, others do"


def test_what_is_asked_again_costs_again_until_nothing_is_spare(apart):
    found = apart(masked=protect(spare=1), protocol=PRIVATE)
    with found.run() as run:
        found.gate(run)
        found.visit(run, "statistics")
        for _ in range(3):
            found.visit(run, "train")
        assert len(spent(found, "east")) == 1 + 3 * 2
        asking = run.open("train")
        asking = run.aggregate(asking, found.ask(run, asking))  # the spare one
        while asking.request.exchange == 0:
            asking = run.aggregate(asking, found.ask(run, asking))
        messages = found.ask(run, asking)
        with pytest.raises(QuorumError):
            run.aggregate(asking, messages)
    assert len(spent(found, "east")) == 1 + 3 * 2 + 1
    assert "its privacy budget would be exceeded" in found.hospital("east").book.asked(1)[0].reason


def test_a_report_says_that_sums_were_masked_and_noised_together():
    said = account.limits_of(study())[0]
    assert "made their noise together" in said
    assert "no secure aggregation" not in said
    assert "no secure aggregation" in account.limits_of(study(protect={"kind": "plain"}))[0]
