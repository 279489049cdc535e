"""A round: any carrier and any arrival order give the same bits; what does not answer the request is refused; a state survives its bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from fedrounds.core import state as states
from fedrounds.core.answer import Policy, handle
from fedrounds.core.errors import QuorumError, StateError, UpdateRejected
from fedrounds.core.messages import Reply, decode, encode, pack, unpack
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows, clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.round import Asking, Closed, close_exchange, open_round
from fedrounds.core.simulate import simulate
from fedrounds.core.state import Champion
from fedrounds.core.strategy import PRESETS
from fedrounds.core.study import Study
from fedrounds.core.table import Table

TARGETS = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "label", "classes": ["a", "b", "c"]},
}
MODELS = {
    "linear": ("regression", {"kind": "linear", "l2": 0.01}),
    "linear without intercept": ("regression", {"kind": "linear", "intercept": False}),
    "logistic": ("binary", {"kind": "logistic"}),
    "multinomial": ("multiclass", {"kind": "multinomial", "l2": 0.01}),
    **{
        f"mlp{hidden} {target}": (target, {"kind": "mlp", "hidden": hidden})
        for target in TARGETS
        for hidden in ([5], [4, 3])
    },
}
LOCALS = {"adam": {"kind": "adam"}, "every row at once": {"batch": "all"}}


def study(model="logistic", algorithm="fedavg", **changes):
    """Numbers with gaps, a category with gaps and an unforeseen level."""
    target, words = MODELS[model]
    return Study.model_validate(
        {
            "name": "mixed",
            "patient_id": "id",
            "target": TARGETS[target],
            "features": [
                {"type": "number", "name": "age", "missing": ["?"]},
                {"type": "number", "name": "dose"},
                {"type": "category", "name": "ward", "categories": ["red", "blue"], "missing": ["?"]},
            ],
            "model": words,
            "algorithm": algorithm,
        }
        | changes
    )


def cohorts(of, sites=("east", "north", "west"), n=40):
    """A table for each site, as text, cleaned."""
    found = {}
    for k, site in enumerate(sites):
        rng = np.random.default_rng(k)
        age, y = rng.normal(50 + k, 10, n), rng.normal(size=n)
        columns = {
            "id": [f"{site}{i}" for i in range(n)],
            "age": ["?" if gap else f"{value:.2f}" for value, gap in zip(age, rng.random(n) < 0.1, strict=True)],
            "dose": ["" if gap else f"{value:.3f}" for value, gap in zip(y, rng.random(n) < 0.2, strict=True)],
            "ward": rng.choice(["red", "blue", "green", "?"], n).tolist(),
            "y": [f"{value:.4f}" for value in y + rng.normal(size=n)],
            "label": rng.choice(["a", "b", "c"], n).tolist(),
        }
        found[site] = clean(Table({name: np.array(cells, object) for name, cells in columns.items()}), of, site)
    return found


def bits(closed):
    """Everything a closed round says, as bytes."""
    scores = [(site, sums.tobytes(), cells.tobytes()) for site, (sums, cells) in sorted(closed.scores.items())]
    return states.dump(closed.state), closed.scored, scores, sorted(closed.training.items())


def asked(ask="train", quorum=1, start=None):
    """An open round of three sites on ready rows, and what each site answers."""
    plan = build(study())
    rng = np.random.default_rng(5)
    data = {}
    for site in ("east", "north", "west"):
        X = np.column_stack([rng.normal(size=(20, len(plan.columns))), np.ones(20)])
        y = (X[:, 0] > 0).astype(float)
        data[site] = Rows(X[:15], y[:15], X[15:], y[15:])
    asking = open_round(start or plan.start(plan.no_statistics()), plan, ask, data, quorum)
    policy = Policy(minimum_patients=5)
    replies = [
        handle(asking.request, {}, rows, plan, policy, site, plan.rng(1, site))[1] for site, rows in data.items()
    ]
    return plan, asking, replies


# --- one mathematics, any carrier -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("algorithm", [*PRESETS, *LOCALS])
def test_messages_carried_as_bytes_give_the_same_bits_as_the_plain_loop(model, algorithm):
    of = study(model, {"preset": "fedavg", "local": LOCALS[algorithm]} if algorithm in LOCALS else algorithm)
    plan, data = build(of), cohorts(of)
    plain = [bits(closed) for closed in simulate(plan, data, rounds=3)]
    wired = [bits(closed) for closed in simulate(plan, data, rounds=3, wire=True)]
    assert plain == wired
    assert len(plain) == 5  # statistics, three rounds, the scores of the last model


@pytest.mark.parametrize("algorithm", ["fedavg", "fedyogi"])
def test_the_order_in_which_sites_are_given_changes_no_bit(algorithm):
    of = study(algorithm=algorithm)
    plan, data = build(of), cohorts(of)
    results = {
        tuple(map(str, map(bits, simulate(plan, {site: data[site] for site in order}, 2))))
        for order in permutations(data)
    }
    assert len(results) == 1


def test_a_round_carried_on_from_stored_bytes_gives_the_same_bits():
    of = study(algorithm="fedadam")
    plan, data = build(of), cohorts(of)
    through = [closed.state for closed in simulate(plan, data, rounds=4)]
    stored = states.load(states.dump(through[2]))  # after round 2
    *_, last = simulate(plan, data, rounds=2, state=stored)
    assert states.dump(last.state) == states.dump(through[4])


def test_a_site_draws_the_same_in_the_same_round_and_otherwise_not():
    plan = build(study())
    draws = {(r, site): plan.rng(r, site).random() for r in (1, 2) for site in ("east", "west")}
    assert len(set(draws.values())) == 4
    assert plan.rng(1, "east").random() == draws[1, "east"]
    assert build(study(seed=1)).rng(1, "east").random() != draws[1, "east"]


# --- opening and closing ----------------------------------------------------------------------------------------------


def test_a_round_asks_every_site_the_same_about_the_model_that_stands():
    plan, asking, _ = asked()
    assert asking.sites == ("east", "north", "west")
    assert (asking.request.round, asking.request.exchange, asking.request.ask) == (1, 0, "train")
    assert asking.request.base == asking.state.model_digest
    assert asking.request.study == plan.digest
    assert sorted(asking.request.arrays) == ["center", "impute", "scale", "theta"]


def test_a_closed_round_counts_one_up_and_scores_the_model_that_came_in():
    plan, asking, replies = asked()
    closed = close_exchange(asking, plan, replies)
    assert isinstance(closed, Closed)
    assert (closed.state.round, closed.scored, closed.ask) == (1, 0, "train")
    assert {site: (rows, share) for site, (rows, _, share) in closed.training.items()} == dict.fromkeys(
        asking.sites, (15.0, 15.0)
    )
    assert {site: sums[0] for site, (sums, _) in closed.scores.items()} == dict.fromkeys(asking.sites, 5.0)


def test_a_visit_for_scores_changes_nothing():
    plan, asking, replies = asked("score")
    closed = close_exchange(asking, plan, replies)
    assert closed.state == asking.state
    assert (asking.request.round, closed.scored) == (0, 0)


def test_statistics_take_two_exchanges_of_one_round():
    of = study()
    plan, data = build(of), cohorts(of)
    asking, exchanges = open_round(plan.start(), plan, "statistics", data), []
    while isinstance(asking, Asking):
        exchanges.append((asking.request.round, asking.request.exchange, sorted(asking.request.arrays)))
        replies = [handle(asking.request, {}, data[s], plan, Policy(), s, plan.rng(0, s))[1] for s in asking.sites]
        asking = close_exchange(asking, plan, replies)
    assert exchanges == [(0, 0, []), (0, 1, ["about", "impute"])]
    assert (asking.state.round, asking.state.exchange, dict(asking.state.work)) == (0, 0, {})
    assert sorted(asking.state.statistics) == ["center", "impute", "scale"]


def test_a_site_that_refuses_is_noted_and_not_asked_again_in_the_round():
    of = study()
    plan, data = build(of), cohorts(of)
    asking = open_round(plan.start(), plan, "statistics", data)
    replies = [handle(asking.request, {}, data[s], plan, Policy(), s, plan.rng(0, s))[1] for s in asking.sites]
    replies[1] = replace(replies[1], refusal="its gate failed", arrays={})
    second = close_exchange(asking, plan, replies)
    assert second.sites == ("east", "west")
    assert second.refused == {"north": "its gate failed"}


def test_too_few_answers_close_nothing_and_say_who_refused():
    plan, asking, replies = asked(quorum=3)
    with pytest.raises(QuorumError, match=r"at least 3 sites, found 2 of 3 \(the others did not answer\)"):
        close_exchange(asking, plan, replies[:2])
    replies[1] = replace(replies[1], refusal="its gate failed", arrays={})
    with pytest.raises(QuorumError, match="north: its gate failed"):
        close_exchange(asking, plan, replies)


def changed(reply, **what):
    return replace(reply, **what)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"study": "f" * 64}, "expected study"),
        ({"round": 2}, "expected round 1 in the reply of 'east', found 2"),
        ({"exchange": 1}, "expected exchange 0"),
        ({"ask": "score"}, "expected ask train"),
        ({"base": "f" * 64}, "expected base"),
        ({"site": "south"}, "expected a reply of east, north, west, found one of 'south'"),
        ({"arrays": {}}, "expected arrays"),
    ],
)
def test_a_reply_to_another_request_is_refused(change, said):
    plan, asking, replies = asked()
    with pytest.raises(UpdateRejected, match=said):
        close_exchange(asking, plan, [replace(replies[0], **change), *replies[1:]])


def test_a_refusal_to_another_request_is_refused_too():
    plan, asking, replies = asked()
    with pytest.raises(UpdateRejected, match="expected round"):
        close_exchange(asking, plan, [replace(replies[0], round=9, refusal="no", arrays={}), *replies[1:]])


def test_two_replies_of_a_site_are_refused():
    plan, asking, replies = asked()
    with pytest.raises(UpdateRejected, match="one reply a site, in site order, found 'east' after 'east'"):
        close_exchange(asking, plan, [replies[0], *replies])


def test_replies_out_of_site_order_are_refused():
    plan, asking, replies = asked()
    with pytest.raises(UpdateRejected, match="in site order, found 'east' after 'north'"):
        close_exchange(asking, plan, [replies[1], replies[0], replies[2]])


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("delta", np.zeros(3), r"expected delta of shape .*, found .3,. from site 'east': its cohort lacks or adds"),
        ("histogram", np.zeros((1, 2, 51)), "expected histogram of shape"),
        ("extra", np.zeros(1), "expected arrays"),
        ("train", np.array([0.0, 1.0]), "expected an update trained on patients, found 0 rows at site 'east'"),
        ("train", np.array([-15.0, 1.0]), "found -15 rows"),
    ],
)
def test_arrays_that_do_not_fit_the_study_are_refused(name, array, said):
    plan, asking, replies = asked()
    odd = replace(replies[0], arrays={**replies[0].arrays, name: array})
    with pytest.raises(UpdateRejected, match=said):
        close_exchange(asking, plan, [odd, *replies[1:]])


def test_a_failed_close_leaves_the_open_round_as_it_was():
    plan, asking, replies = asked()
    before = states.dump(asking.state)
    with pytest.raises(UpdateRejected):
        close_exchange(asking, plan, [*replies[:2], replace(replies[2], round=7)])
    assert states.dump(asking.state) == before
    assert asking.refused == {}
    assert close_exchange(asking, plan, replies).state.round == 1


# --- a site's answer --------------------------------------------------------------------------------------------------


def reply_of(rows=20, policy=None, plan=None, asking=None, X=None):
    plan, asking = plan or build(study()), asking
    asking = asking or open_round(plan.start(plan.no_statistics()), plan, "train", ["east"])
    X = np.ones((rows, plan.family.layout.size)) if X is None else X
    y = np.arange(len(X)) % 2.0
    return handle(asking.request, {"kept": y}, Rows(X, y, X, y), plan, policy or Policy(), "east", plan.rng(1, "east"))


def test_a_site_under_the_minimum_cohort_refuses_and_sends_no_number():
    _, reply = reply_of(rows=9)
    assert reply.refusal == "its training patients are below the site's minimum cohort of 10"
    assert reply.arrays == {}
    assert reply_of(rows=10)[1].refusal == ""


def test_a_site_refuses_finer_histograms_than_it_allows():
    of = study(validation={"bins": 51})
    assert (
        reply_of(plan=build(of))[1].refusal == "score histograms of 51 bins are finer than the 50 that the site allows"
    )
    assert reply_of(plan=build(of), policy=Policy(finest_bins=51))[1].refusal == ""


def test_a_site_refuses_a_study_that_is_not_the_one_it_has():
    other = build(study(seed=1))
    asking = open_round(other.start(other.no_statistics()), other, "train", ["east"])
    assert "the study file here is another one" in reply_of(asking=asking)[1].refusal


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model", ["linear", "mlp[4, 3] binary", "mlp[5] multiclass"])
def test_a_site_whose_numbers_overflow_refuses_and_forgets_what_it_did(model):
    plan = build(study(model))
    start = plan.start(plan.no_statistics())
    far = np.where(np.arange(len(start.theta)) % 2, 1e200, -1e200)
    asking = open_round(replace(start, theta=far), plan, "train", ["east"])
    memory, reply = reply_of(plan=plan, asking=asking, X=np.full((20, len(plan.columns) + 1), 1e200))
    assert "no longer finite: lower the learning rate" in reply.refusal
    assert reply.arrays == {}
    assert list(memory) == ["kept"]
    assert decode(encode(reply), Reply) == reply


# --- the state --------------------------------------------------------------------------------------------------------


def stored_state(champion):
    plan = build(study(algorithm="fedadam"))
    start = plan.start({"impute": np.array([0.1, -0.0, 3.0]), "center": np.zeros(5), "scale": np.full(5, 1 / 3)})
    return replace(start, round=7, exchange=1, work={"sum": np.array([[1.5]])}, champion=champion)


CHAMPION = Champion(3, np.array([1 / 3, -0.0]))


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_state_comes_back_from_its_bytes_bit_for_bit(champion):
    before = stored_state(champion)
    after = states.load(states.dump(before))
    assert states.dump(after) == states.dump(before)
    assert (after.study, after.round, after.exchange) == (before.study, 7, 1)
    assert after.model_digest == before.model_digest
    for kind in ("memory", "statistics", "work"):
        assert {k: v.tobytes() for k, v in getattr(after, kind).items()} == {
            k: v.tobytes() for k, v in getattr(before, kind).items()
        }
    assert (after.champion is None) == (champion is None)
    if champion:
        assert after.champion.round == champion.round
        assert after.champion.theta.tobytes() == champion.theta.tobytes()


@pytest.mark.parametrize("losses", [None, {"east": [12.0, 1 / 7]}])
def test_a_state_of_the_first_release_which_kept_the_champions_losses_still_loads(losses):
    header, arrays = unpack(states.dump(stored_state(CHAMPION)))
    old = pack({key: header[key] for key in ("study", "round", "exchange")} | {"champion": [3, losses]}, arrays)
    assert states.dump(states.load(old)) == states.dump(stored_state(CHAMPION))


def test_damaged_bytes_are_no_state():
    whole = states.dump(stored_state(CHAMPION))
    foreign = encode(asked()[1].request)
    for blob in (b"", whole[:-1], whole + b"\0", whole[:40] + b"\0" + whole[41:], foreign):
        with pytest.raises(StateError, match="restore the ledger from a copy"):
            states.load(blob)


def test_a_model_is_named_by_parameters_statistics_and_study():
    base = stored_state(None)
    names = {
        base.model_digest,
        replace(base, theta=base.theta + 1e-16 + 1).model_digest,
        replace(base, statistics={**base.statistics, "center": np.ones(5)}).model_digest,
        replace(base, study="f" * 64).model_digest,
    }
    assert len(names) == 4
    assert replace(base, round=99, memory={}, work={}, champion=CHAMPION).model_digest == base.model_digest


# --- the champion -----------------------------------------------------------------------------------------------------


def test_the_champion_is_scored_beside_the_model_that_came_in_and_only_sums_of_differences_leave():
    plan = build(study())
    start = replace(plan.start(plan.no_statistics()), round=4)
    rival = np.linspace(-1, 1, len(start.theta))
    plan, asking, replies = asked(start=replace(start, champion=Champion(2, rival)))
    assert sorted(asking.request.arrays) == ["center", "champion", "impute", "scale", "theta"]
    assert sorted(replies[0].arrays) == ["delta", "histogram", "paired", "scores", "train"]
    closed = close_exchange(asking, plan, replies)
    alone = close_exchange(*_scored_by(replace(start, theta=rival)))
    for site, (n, difference, squares) in closed.paired.items():
        assert n == 5
        assert difference == pytest.approx(closed.scores[site][0][1] - alone.scores[site][0][1], abs=1e-12)
        assert squares >= difference**2 / n
    assert list(closed.paired) == ["east", "north", "west"]
    assert alone.paired == {}


def test_two_sites_by_hand_send_the_sums_of_their_paired_differences():
    line = build(study("linear without intercept", features=[{"type": "number", "name": "age"}]))
    start = replace(line.start(line.no_statistics()), round=2, theta=np.array([1.0]), champion=Champion(1, np.zeros(1)))
    asking = open_round(start, line, "score", ["east", "west"])
    x, y = {"east": [1.0, 2.0], "west": [3.0]}, {"east": [1.0, 1.0], "west": [1.0]}
    replies = []
    for site in asking.sites:  # squared errors of y = x: 0, 1 and 4; of y = 0: 1, 1 and 1
        rows = Rows(np.ones((1, 1)), np.ones(1), np.array(x[site])[:, None], np.array(y[site]))
        replies.append(handle(asking.request, {}, rows, line, Policy(minimum_patients=1), site, line.rng(2, site))[1])
    closed = close_exchange(asking, line, replies)
    assert {site: sums.tolist() for site, sums in closed.paired.items()} == {"east": [2, -1, 1], "west": [1, 3, 9]}
    few = handle(asking.request, {}, rows, line, Policy(minimum_patients=1), "west", line.rng(2, "west"))[1]
    foreign = replace(few, arrays={**few.arrays, "paired": np.array([2.0, 3.0, 9.0])})
    with pytest.raises(UpdateRejected, match="both models scored on the same rows at site 'west'"):
        close_exchange(asking, line, [replies[0], foreign])


def test_a_champion_that_is_the_model_itself_is_not_compared_with_itself():
    plan = build(study())
    start = replace(plan.start(plan.no_statistics()), round=2)
    for champion in (None, Champion(2, start.theta)):
        asking = open_round(replace(start, champion=champion), plan, "train", ["east"])
        assert "champion" not in asking.request.arrays


def _scored_by(start):
    plan, asking, replies = asked("score", start=start)
    return asking, plan, replies


def test_a_site_may_give_its_clean_table_or_its_rows_encoded_already():
    of = study()
    plan, data = build(of), cohorts(of)["east"]
    statistics = next(iter(simulate(plan, {"east": data}, rounds=0))).state.statistics
    request = open_round(plan.start(statistics), plan, "train", ["east"]).request
    answers = [
        handle(request, {}, rows, plan, Policy(), "east", plan.rng(1, "east"))[1]
        for rows in (data, encode_rows(data, of, statistics, plan.ones))
    ]
    assert encode(answers[0]) == encode(answers[1])
    assert not answers[0].refusal
