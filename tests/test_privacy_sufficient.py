"""Least squares by one noised release: each guarantee of `core/privacy/sufficient.py`, what is refused, and what is left of the fit."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from pydantic import ValidationError

from fedrounds.core.answer import handle
from fedrounds.core.messages import Reply
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy import private
from fedrounds.core.privacy.accounting import epsilon
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.privacy.sufficient import fitted, mechanism, vector
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study

STATED = {
    "unit": "patient",
    "epsilon": 4.0,
    "delta": 1e-4,
    "patients": 2000,
    "rounds": 2,
    "sample_rate": 1.0,
    "steps": 1,
}
TRUE = np.array([12.0, -20.0, 150.0])  # two coefficients and the intercept
SITES = ("east", "north", "south", "west")


def protocol(masked=False, l2=0.0, **changes):
    """A study of two numbers whose target lies between 0 and 300."""
    dp = STATED | {"target": [0.0, 300.0]} | changes.pop("dp", {})
    found = {
        "name": "squares",
        "features": [{"type": "number", "name": name, "range": [0, 100]} for name in ("age", "dose")],
        "target": {"kind": "regression", "column": "days"},
        "model": {"kind": "linear", "l2": l2},
        "algorithm": "exact",
        "privacy": {"dp": {word: value for word, value in dp.items() if value is not None}},
    }
    if masked:
        found["privacy"]["protect"] = {"kind": "masked"}
    return found | changes


def plan_of(**changes):
    return build(Study.model_validate(protocol(**changes)))


PLAN = plan_of()
DP = PLAN.study.privacy.dp


def rows(n=2000, seed=0):
    """Patients as a design matrix of standardised columns and the ones."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=(n, 2)), np.ones(n)])
    y = X @ TRUE + rng.normal(0, 15, n)
    return Rows(X, y, X[:50], y[:50])


def visited(plan, data):
    """The model that one round leaves."""
    first, _ = simulate(plan, data, 1)
    return first.state.theta


# --- guarantees -------------------------------------------------------------------------------------------------------


def test_a_patient_moves_the_vector_by_at_most_the_sensitivity_whatever_is_in_the_row():
    rng, bound = np.random.default_rng(0), mechanism(DP, 3).sensitivity
    assert bound == pytest.approx(sqrt(2) * 3), "R² is the number of columns"
    for _ in range(500):
        X = rng.normal(size=(4, 3)) * rng.choice([0.1, 1.0, 1e3, 1e200], (4, 1))
        y = rng.normal(size=4) * 10.0 ** rng.integers(-3, 300)
        X[-1, 0], y[-1] = rng.choice([X[-1, 0], np.nan, np.inf, 1e308]), rng.choice([y[-1], np.nan, -np.inf])
        moved = vector(X[-1:], y[-1:], 1.0, 0.0, 300.0)
        assert np.isfinite(moved).all()
        assert np.linalg.norm(moved) <= bound * (1 + 1e-12)
        assert vector(X, y, 1.0, 0.0, 300.0) == pytest.approx(vector(X[:-1], y[:-1], 1.0, 0.0, 300.0) + moved)
    extreme = vector(np.array([[9.0, 9.0, 1.0]]), np.array([300.0]), 1.0, 0.0, 300.0)
    assert 0.7 * bound < np.linalg.norm(extreme) < bound, "a long row counts for less, its target with it"
    assert np.linalg.norm(vector(np.ones((1, 3)), np.array([300.0]), 1.0, 0.0, 300.0)) == pytest.approx(bound), (
        "reached"
    )


def test_nothing_of_the_rows_leaves_but_one_vector_whose_noise_is_that_which_is_reckoned_with():
    state = PLAN.start(PLAN.no_statistics())
    request = open_round(state, PLAN, "train", SITES).request
    said = [
        handle(request, {}, rows(40), PLAN, OPEN, "east", np.random.default_rng(0))[1].arrays["moments"]
        for _ in range(1500)
    ]
    assert set(request.arrays) == {"theta", *state.statistics}
    assert private.LEAVES["train"] == {"delta", "moments"}
    found, bare = np.array(said), vector(rows(40).X, rows(40).y, 1.0, 0.0, 300.0)
    deviation = mechanism(DP, 3).deviation
    assert found.std() == pytest.approx(np.sqrt(deviation**2 + bare.var()), rel=0.05)
    assert (found - bare).std(0) == pytest.approx(np.full(9, deviation), rel=0.1)
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 5 / sqrt(1500), "every round draws anew"
    assert deviation == pytest.approx(DP.training_event().multiplier * mechanism(DP, 3).sensitivity, rel=0.05)


def test_a_patient_is_read_off_exact_sums_and_not_off_noised_ones():
    X, y, release = rows(40).X, rows(40).y, mechanism(DP, 3)
    with_, without = vector(X, y, 1.0, 0.0, 300.0), vector(X[:-1], y[:-1], 1.0, 0.0, 300.0)
    assert with_[2] - without[2] == pytest.approx(
        sqrt(2) * np.prod(X[-1, [0, 2]] * min(1, sqrt(3) / np.linalg.norm(X[-1])))
    )
    assert release.deviation > np.abs(with_ - without).max(), "the noise in each number is more than any patient's part"
    assert epsilon([DP.training_event()], 1e-4) < 4.0


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_without_noise_and_cuts_the_fit_is_least_squares_and_with_l2_it_is_ridge():
    data, wide = rows(), DP.model_copy(update={"clip": 100.0})
    total = vector(data.X, data.y, 100.0, 0.0, 300.0)
    inside = np.clip(data.y, 0, 300)
    exact = np.linalg.lstsq(data.X, inside, rcond=None)[0]
    assert fitted(total, 0.0, 3, wide, np.zeros(3)) == pytest.approx(exact, rel=1e-6)
    penalty = 0.1 * np.array([1.0, 1.0, 0.0])
    ridge = np.linalg.solve(data.X.T @ data.X + 2000 * np.diag(penalty), data.X.T @ (inside - 150))
    assert fitted(total, 0.0, 3, wide, penalty) - [0, 0, 150] == pytest.approx(ridge, rel=1e-6)


def test_a_fit_to_nothing_but_noise_stays_in_bounds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        theta = fitted(rng.normal(0, 5.0, 9), 5.0, 3, DP, np.zeros(3))
        assert np.isfinite(theta).all()
        assert np.abs(theta - [0, 0, 150]).max() < 150 * 20, "as much ridge as the noise calls for"


def test_the_noised_fit_is_near_the_truth_apart_and_under_masks():
    data = {site: rows(seed=i) for i, site in enumerate(SITES)}
    truth = pytest.approx(TRUE, abs=2.5)
    assert visited(PLAN, data) == truth
    assert visited(plan_of(masked=True), data) == truth
    assert visited(PLAN, data).tolist() != visited(PLAN, data).tolist(), "no study seeds its noise"


def test_a_site_that_counts_for_less_is_refused():
    from fedrounds.core.errors import UpdateRejected

    state = PLAN.start(PLAN.no_statistics())
    asking = open_round(state, PLAN, "train", SITES, factors={"east": 0.5})
    replies = [handle(asking.request, {}, rows(), PLAN, OPEN, site, np.random.default_rng(0))[1] for site in SITES]
    assert isinstance(replies[0], Reply)
    with pytest.raises(UpdateRejected, match="every patient to count alike"):
        close_exchange(asking, PLAN, replies)


# --- what it costs and says -------------------------------------------------------------------------------------------


def test_both_rounds_and_round_0_cost_what_the_study_states():
    first, one = private.events(PLAN.study, "statistics"), private.events(PLAN.study, "train")
    assert one[0].rate == 1.0
    assert 3.99 < epsilon([*first, *one * 2], 1e-4) <= 4.0


def test_the_forecast_says_how_loud_the_noise_is_beside_the_sums():
    found = forecast(PLAN, 4, 2)
    assert found.noise == pytest.approx(mechanism(DP, 3).deviation * sqrt(2 * 3) / (2000 * 2))
    assert found.drowned == found.noise
    assert not found.warnings
    assert any("cannot work" in text for text in forecast(plan_of(dp={"patients": 20, "epsilon": 0.3}), 4, 2).warnings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dp": {"target": None}}, r"state privacy.dp.target = \[low, high\]"),
        ({"dp": {"target": [3.0, 3.0]}}, "a public range of the target"),
        ({"dp": {"steps": 5}}, "state privacy.dp.sample_rate = 1.0 and privacy.dp.steps = 1"),
        ({"dp": {"sample_rate": 0.5}}, "reads every patient once a round"),
        ({"model": {"kind": "linear", "intercept": False}}, "leave model.intercept at true"),
        ({"case_weights": "w"}, "counts each once"),
        ({"features": [{"type": "number", "name": "age"}]}, "needs the range of every number"),
        ({"algorithm": "fedavg", "weights": "uniform"}, "bounds the target of an exact fit, and this study descends"),
        ({"model": {"kind": "poisson"}}, "poisson"),
        (
            {"model": {"kind": "naive_bayes"}, "target": {"kind": "binary", "column": "ill", "positive_above": 0}},
            "naive_bayes",
        ),
        (
            {"model": {"kind": "logistic"}, "target": {"kind": "binary", "column": "ill", "positive_above": 0}},
            "the sums of an exact logistic fit have no bound that is known beforehand, or are taken anew at each step",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        Study.model_validate(protocol(**changes))


def test_a_hospital_as_a_whole_is_refused():
    dp = {"unit": "hospital", "epsilon": 4.0, "hospitals": 12, "rounds": 2}
    with pytest.raises(ValidationError, match="clips each one's update, and an exact fit has none"):
        Study.model_validate(protocol() | {"privacy": {"protect": {"kind": "masked"}, "dp": dp}})


def test_versions_of_such_fits_can_be_held_against_a_champion():
    plan = plan_of(dp={"scores": {"every": 1, "share": 0.2, "clip": 500.0}})
    state = replace(plan.start(plan.no_statistics()), round=2, theta=TRUE)
    assert set(open_round(state, plan, "score", SITES).request.arrays) == {"theta", *state.statistics}
    first, train, score = (private.events(plan.study, ask, champion=True) for ask in ("statistics", "train", "score"))
    assert 3.99 < epsilon([*first, *train * 2, *score], 1e-4) <= 4.0
