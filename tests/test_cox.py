"""Cox's proportional hazards by sums: the same as statsmodels' fit to all rows in one place, ties, strata and standard errors included."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.duration.hazard_regression import PHReg

from fedrounds.core.errors import NoFit, UpdateRejected
from fedrounds.core.exact import Solved
from fedrounds.core.models.cox import Cox, cox, newton_cox
from fedrounds.core.params import Array
from fedrounds.core.partial import by_interval, partial
from fedrounds.core.preprocess import Rows
from fedrounds.core.strategy import Exact as Settings

EORTC = Path(__file__).parents[1] / "../shared/data/eortc_simulated/eortc.csv"


def people(seed: int, n: int, width: int = 3, count: int = 12) -> tuple[Array, Array]:
    """Made-up patients: (n, p) and ±interval (n,)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width))
    time = rng.exponential(np.exp(-X @ np.linspace(0.8, -0.4, width))) * count / 2
    censored = rng.uniform(0, 1.5 * count, n)
    index = np.clip(np.ceil(np.minimum(time, censored)), 1, count)
    return X, np.where((time <= censored) & (time <= count), index, -index)


def rows(X: Array, y: Array) -> Rows:
    return Rows(np.column_stack([X, np.ones(len(X))]), y, np.zeros((0, X.shape[1] + 1)), np.zeros(0))


def fit(
    parts: list[tuple[Array, Array]], count: int = 12, lost: Any = None, names: Any = None, **options: Any
) -> Solved:
    """A fit by sums over sites; `lost(exchange, site)` sites do not answer."""
    width = parts[0][0].shape[1]
    model = Cox.model_validate({"kind": "cox", "at_risk": 1, **options})
    rule = newton_cox(names or tuple(f"x{j}" for j in range(width)), count, model, Settings.model_validate("exact"))
    work = rule.start(np.zeros(width + count), {})
    for exchange in range(50):
        asked = {name: work[name] for name in rule.takes(exchange)}
        totals: dict[str, Array] = {}
        for site, (X, y) in enumerate(parts):
            if lost is None or not lost(exchange, site):
                sums = rule.sums(asked, {}, rows(X, y))[1]
                assert {name: array.shape for name, array in sums.items()} == rule.shapes(exchange)
                totals = {name: totals.get(name, 0.0) + array for name, array in sums.items()}
        solved = rule.solve(work, totals)
        if solved.done:
            return solved
        work = solved.work
    raise AssertionError("no end")


def pooled(parts: list[tuple[Array, Array]], ties: str, strata: bool) -> Any:
    """statsmodels' fit to all rows in one place."""
    X, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    sites = np.repeat(np.arange(len(parts)), [len(part) for _, part in parts])
    model = PHReg(np.abs(y), X, status=(y > 0).astype(int), ties=ties, strata=sites if strata else None)
    return model.fit(start_params=model.fit(disp=0, gtol=1e-12).params, disp=0, gtol=1e-12)


def equal(solved: Solved, oracle: Any, tolerance: float = 1e-8) -> None:
    width = len(oracle.params)
    assert np.abs(solved.theta[:width] - oracle.params).max() < tolerance
    errors = np.sqrt(np.diag(np.linalg.inv(solved.facts["information"])))
    assert np.abs(errors - oracle.bse).max() < tolerance
    assert abs(float(solved.facts["log_likelihood"][0]) - oracle.llf) < tolerance * abs(oracle.llf)


def split(X: Array, y: Array, sites: int) -> list[tuple[Array, Array]]:
    """Uneven parts, the last one the largest."""
    ends = (len(y) * np.arange(1, sites) ** 2 // sites**2).tolist()
    return list(zip(np.split(X, ends), np.split(y, ends), strict=True))


@pytest.mark.parametrize("strata", [False, True])
@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("sites", [1, 2, 4])
def test_coefficients_and_errors_are_those_of_one_fit_to_all_rows(sites: int, ties: str, strata: bool) -> None:
    parts = split(*people(1, 400), sites)
    equal(fit(parts, ties=ties, strata="site" if strata else None), pooled(parts, ties, strata))


def test_a_site_of_one_row_one_without_events_and_one_with_nothing_but_events_are_fitted_as_if_all_were_one() -> None:
    X, y = people(2, 200)
    no_event, all_events = np.flatnonzero(y < 0)[:15], np.flatnonzero(y > 0)[:20]
    rest = np.setdiff1d(np.arange(200), [*no_event, *all_events])
    parts = [(X[part], y[part]) for part in (no_event, all_events, rest[:1], rest[1:])]
    for ties, strata in (("breslow", False), ("efron", False), ("efron", True)):
        equal(fit(parts, ties=ties, strata="site" if strata else None), pooled(parts, ties, strata))


def test_columns_far_from_nought_and_of_very_different_sizes_lose_no_digits() -> None:
    X, y = people(3, 300)
    X = X * np.array([1e-3, 1.0, 50.0]) + np.array([0.0, 2000.0, 300.0])
    solved, centred = fit(split(X, y, 3)), X - X.mean(0)
    oracle = pooled([(centred / centred.std(0), y)], "efron", False)
    assert np.abs(solved.theta[:3] * centred.std(0) - oracle.params).max() < 1e-8
    errors = np.sqrt(np.diag(np.linalg.inv(solved.facts["information"]))) * centred.std(0)
    assert np.abs(errors - oracle.bse).max() < 1e-8


@pytest.mark.parametrize("strata", [None, "site"])
@pytest.mark.parametrize("exchange", range(1, 8))
def test_a_site_that_leaves_at_any_exchange_leaves_the_fit_to_the_others(exchange: int, strata: str | None) -> None:
    parts = split(*people(4, 400), 4)
    found = fit(parts, lost=lambda at, site: site == 3 and at >= exchange, strata=strata)
    gone = found.facts["rows"][0] < 400
    assert gone or exchange > 4  # the round may be over by then
    equal(found, pooled(parts[:3] if gone else parts, "efron", bool(strata)))


def test_a_site_that_leaves_or_comes_back_amid_a_round_leaves_the_fit_to_those_of_the_last_exchange() -> None:
    parts = split(*people(4, 400), 4)
    left = fit(parts, lost=lambda exchange, site: site == 3 and exchange >= 2)
    equal(left, pooled(parts[:3], "efron", False))
    back = fit(parts, lost=lambda exchange, site: site == 3 and exchange == 2)
    equal(back, pooled(parts, "efron", False))
    assert np.array_equal(back.facts["rows"], [400.0])


def test_the_baseline_is_breslows_estimate_and_the_loss_the_probability_of_what_was_seen() -> None:
    X, y = people(5, 300)
    solved = fit(split(X, y, 3), ties="breslow")
    beta, hazard = solved.theta[:3], solved.theta[3:]
    risk = np.exp(X @ beta)
    for k in range(1, 13):
        assert hazard[k - 1] == pytest.approx((y == k).sum() / risk[np.abs(y) >= k].sum(), rel=1e-12)
    model = cox(3, 12)
    prediction = model.predict(solved.theta, np.column_stack([X, np.ones(300)]))
    survival = np.exp(-np.cumsum(hazard) * risk[:, None])
    assert np.allclose(np.exp(-prediction[:, 1:]), survival, atol=1e-12)
    before = np.column_stack([np.ones(300), survival])
    n, k = np.arange(300), np.abs(y).astype(int)
    seen = np.where(y > 0, before[n, k - 1] - before[n, k], before[n, k])
    assert np.allclose(model.losses(prediction, y), -np.log(seen), atol=1e-10)
    assert model.losses(prediction[:1] * 0, np.array([3.0]))[0] == pytest.approx(-np.log(1e-12))  # what cannot be, was


def test_the_null_likelihood_counts_and_the_likelihood_ratio_are_those_of_one_fit() -> None:
    X, y = people(6, 250)
    for ties in ("breslow", "efron"):
        facts = fit(split(X, y, 3), ties=ties).facts
        null = PHReg(np.abs(y), X, status=(y > 0).astype(int), ties=ties).loglike(np.zeros(3))
        assert float(facts["log_likelihood_null"][0]) == pytest.approx(null, rel=1e-12)
        assert float(facts["events"][0]) == (y > 0).sum()


def test_residuals_by_interval_are_schoenfelds() -> None:
    X, y = people(7, 200)
    beta = np.array([0.3, -0.2, 0.5])
    here = partial(by_interval(X, y, beta, 12, "breslow"), beta, "breslow")
    risk = np.exp(X @ beta)
    for k in range(1, 13):
        at = np.abs(y) >= k
        expected = (X[y == k] - risk[at] @ X[at] / risk[at].sum()).sum(0)
        assert np.abs(here.scores[k - 1] - expected).max() < 1e-11
    found = pooled([(X, y)], "breslow", False)
    fitted = partial(by_interval(X, y, found.params, 12, "breslow"), found.params, "breslow")
    residuals = found.schoenfeld_residuals
    for k in range(1, 13):
        assert np.abs(fitted.scores[k - 1] - np.nansum(residuals[y == k], axis=0)).max() < 1e-8


@pytest.mark.parametrize("strata", [False, True])
@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_the_test_of_proportionality_is_the_score_test_of_a_slope_over_time(ties: str, strata: bool) -> None:
    """Textbook: rows are cut at every interval's end, and each column is joined by itself times g(t); statsmodels' score and Hessian at 0."""
    parts = split(*people(8, 250), 3)
    solved = fit(parts, ties=ties, strata="site" if strata else None)
    (X, y), sites = (
        (np.concatenate(part) for part in zip(*parts, strict=True)),
        np.repeat(np.arange(3), [len(p[1]) for p in parts]),
    )
    g, cut = np.linspace(-1, 1, 12), [(i, k) for i in range(len(y)) for k in range(1, int(abs(y[i])) + 1)]
    who, when = (np.array(part) for part in zip(*cut, strict=True))
    wide = np.column_stack([X[who], X[who] * g[when - 1, None]])
    model = PHReg(
        when,
        wide,
        status=(y[who] == when).astype(int),
        entry=when - 0.5,
        ties=ties,
        strata=sites[who] if strata else None,
    )
    at = np.concatenate([solved.theta[:3], np.zeros(3)])
    score, information = model.score(at), -model.hessian(at)
    for j, kept in enumerate([[0], [1], [2], [0, 1, 2]]):
        fitted, slopes = [0, 1, 2], [3 + k for k in kept]
        inner = information[np.ix_(slopes, slopes)] - information[np.ix_(slopes, fitted)] @ np.linalg.solve(
            information[np.ix_(fitted, fitted)], information[np.ix_(fitted, slopes)]
        )
        statistic = score[slopes] @ np.linalg.solve(inner, score[slopes])
        assert solved.facts["proportionality"][j, 0] == pytest.approx(statistic, rel=1e-6)


def test_an_effect_that_turns_is_found_and_one_that_stays_is_not() -> None:
    rng = np.random.default_rng(9)
    X = rng.integers(0, 2, (3000, 2)).astype(float)
    early, late = rng.exponential(8 * np.exp(-X[:, 0]), 3000), rng.exponential(8 * np.exp(X[:, 0]), 3000)
    time = np.where(early < 4, early, 4 + late)
    index = np.clip(np.ceil(time), 1, 12)
    y = np.where(time <= 12, index, -index)
    turned, stayed = fit(split(X, y, 2)).facts["proportionality"][:2, 1]
    assert turned < 1e-10
    assert stayed > 0.01


def test_hospitals_of_a_public_simulation_are_fitted_as_one() -> None:
    if not EORTC.exists():
        pytest.skip("the simulated EORTC survival table is not beside this checkout (../shared/data/eortc_simulated)")
    table = list(csv.DictReader(EORTC.open()))
    time, event = np.array([float(row["y"]) for row in table]), np.array([row["uncens"] == "1" for row in table])
    center, X = np.array([int(row["center"]) for row in table]), np.array([[float(row["trt"])] for row in table])
    ends = np.arange(100.0, 4001.0, 100.0)
    index = np.minimum(np.searchsorted(ends, time) + 1, len(ends))
    y = np.where(event & (time <= ends[-1]), index, -index).astype(float)
    parts = [(X[center == site], y[center == site]) for site in range(1, 38)]
    for ties, strata in (("breslow", False), ("efron", False), ("breslow", True), ("efron", True)):
        equal(fit(parts, len(ends), ties=ties, strata="site" if strata else None), pooled(parts, ties, strata))


# --- refusals ---------------------------------------------------------------------------------------------------------


def refused(parts: list[tuple[Array, Array]], **options: Any) -> str:
    with pytest.raises((NoFit, UpdateRejected)) as caught:
        fit(parts, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("strata", [None, "site"])
def test_what_has_no_one_answer_is_refused_by_name(strata: str | None) -> None:
    X, y = people(10, 300)
    names = ("age", "stage", "sex")
    assert "expected events among the training patients, found none" in refused([(X, -np.abs(y))], strata=strata)
    double = X.copy()
    double[:, 2] = 2 * X[:, 0] - X[:, 1] + 3
    said = refused(split(double, y, 3), names=names, strata=strata)
    assert all(name in said for name in names)
    assert "bound together" in said
    double[:, 2] = 7.7
    assert "found 'sex' the same for all" in refused(split(double, y, 3), names=names, strata=strata)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("strata", [None, "site"])
def test_a_column_that_separates_is_refused_by_name(ties: str, strata: str | None) -> None:
    X, y = people(11, 300)
    X[:, 1] = y > 0  # whoever has the event carries it: the likelihood rises for ever
    y = np.where(y < 0, -12.0, y)
    said = refused(split(X, y, 2), names=("age", "stage", "sex"), ties=ties, strata=strata)
    assert "found that stage" in said
    assert "no finite value" in said
    X, y = people(12, 300)
    X[:, 0] = y < 0
    X[:, 0] *= np.arange(300) % 3 == 0  # a third of the censored alone carry it: never an event
    said = refused(split(X, y, 2), names=("age", "stage", "sex"), ties=ties, strata=strata)
    assert "found that age alone" in said


def test_a_level_that_no_patient_has_is_refused_by_name() -> None:
    X, y = people(13, 300)
    X[:, 2] = 0.0
    assert "found 'grade=4' the same for all" in refused(split(X, y, 2), names=("age", "sex", "grade=4"))


def test_a_site_with_few_at_risk_sends_nothing_and_says_from_which_interval_on() -> None:
    y = np.array([1.0, 2.0, -2.0, 3.0, -4.0, -4.0])
    said = refused([(np.arange(6.0)[:, None], y)], at_risk=3, count=5)
    assert "fewer than 3 of its training patients" in said
    assert "from interval 4 of 5 on" in said
    with pytest.raises(UpdateRejected, match="from interval 1 of 5 on"):
        fit([(np.zeros((2, 1)), np.array([1.0, -1.0]))], at_risk=3, count=5)


def test_a_strong_effect_that_is_finite_is_fitted_and_not_refused() -> None:
    rng = np.random.default_rng(14)
    X = np.column_stack([rng.integers(0, 2, 2000), rng.normal(size=2000)]).astype(float)
    time = rng.exponential(30 * np.exp(-4.0 * X[:, 0] - 1.0 * X[:, 1]))
    index = np.clip(np.ceil(time), 1, 12)
    parts = split(X, np.where(time <= 12, index, -index), 3)
    for ties in ("breslow", "efron"):
        equal(fit(parts, ties=ties), pooled(parts, ties, False), 1e-7)


def test_all_events_in_one_interval_leave_the_test_of_proportionality_open() -> None:
    X, y = people(15, 200)
    solved = fit([(X, np.where(np.abs(y) == 3, 3.0, -np.abs(y)))])
    assert np.isnan(solved.facts["proportionality"]).all()


@pytest.mark.parametrize(("strata", "most"), [(None, 7), ("site", 8)])
def test_strata_tell_of_weights_by_interval_once_and_a_fit_takes_few_exchanges(strata: str | None, most: int) -> None:
    parts, told = split(*people(16, 300), 3), list[bool]()
    model = Cox.model_validate({"kind": "cox", "at_risk": 1, "strata": strata})
    rule = newton_cox(("a", "b", "c"), 12, model, Settings.model_validate("exact"))
    work, done = rule.start(np.zeros(15), {}), False
    while not done:
        answers = [rule.sums(work, {}, rows(X, y))[1] for X, y in parts]
        told.append(any(sums["risk.0"].any() for sums in answers))
        solved = rule.solve(
            work, {name: sum((sums[name] for sums in answers[1:]), answers[0][name]) for name in answers[0]}
        )
        work, done = solved.work, solved.done
    assert len(told) <= most
    assert sum(told) == (1 if strata else len(told))
    assert told[-1]
