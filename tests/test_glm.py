"""Federated Newton equals one fit to all patients in one place: coefficients, standard errors, z, p, deviance and AIC of statsmodels."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from pydantic import ValidationError

from fedrounds.core.errors import DataContractError, NoFit, StudyError
from fedrounds.core.operations import Operations
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.regression import regression
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.ledger import Ledger
from fedrounds.tasks import masks
from fedrounds.tasks.baselines import compare

SIZES = {"east": 400, "north": 37, "south": 1, "west": 150}
FAMILIES = {
    "linear": sm.families.Gaussian(),
    "logistic": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
    "gamma": sm.families.Gamma(sm.families.links.Log()),
}
TARGETS: dict[str, dict[str, Any]] = {
    "logistic": {"kind": "binary", "column": "y", "positive": [1], "negative": [0]},
}


def study_of(model: str, /, **more: Any) -> Study:
    return Study.model_validate(
        {
            "name": "toy",
            "target": TARGETS.get(model, {"kind": "regression", "column": "y"}),
            "features": [
                {"type": "number", "name": "age", "range": [0, 120]},
                {"type": "number", "name": "dose", "range": [0, 2000]},
                {"type": "category", "name": "ward", "categories": ["a", "b", "c"], "encode": "drop_first"},
            ],
            "validation": {"fold": "fold"},
            "model": {"kind": model},
            "algorithm": "exact",
        }
        | more
    )


def _outcome(model: str, eta: np.ndarray, offset: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    match model:
        case "linear":
            return 40 + 10 * eta + rng.normal(0, 5, len(eta))
        case "logistic":
            return (rng.random(len(eta)) < 1 / (1 + np.exp(-eta))).astype(float)
        case "poisson":
            return rng.poisson(np.exp(eta + offset + 2)).astype(float)
        case _:
            return rng.gamma(2, np.exp(eta + 6) / 2) + 1e-3


def tables(model: str, seed: int = 0) -> dict[str, Table]:
    rng = np.random.default_rng(seed)
    found: dict[str, Table] = {}
    for site, rows in SIZES.items():
        age, dose, ward = rng.normal(60, 12, rows), rng.gamma(2, 200, rows), rng.integers(0, 3, rows)
        eta = 0.02 * (age - 60) - 0.0008 * dose + 0.4 * (ward == 2) + 0.3
        offset = np.log(rng.uniform(0.5, 4, rows))
        y = _outcome(model, eta, offset, rng)
        words = np.array(["a", "b", "c"], object)[ward]
        weight = rng.integers(1, 5, rows).astype(float)
        fold = np.full(rows, "train", object)
        columns = {"age": age, "dose": dose, "ward": words, "y": y, "offset": offset, "weight": weight, "fold": fold}
        found[site] = Table(columns)
    return found


def pooled(parts: dict[str, Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    def whole(name: str) -> np.ndarray:
        return np.concatenate([parts[site].columns[name] for site in sorted(parts)])

    ward = whole("ward")
    ones = np.ones(len(ward))
    X = np.column_stack([whole("age"), whole("dose"), ward == "b", ward == "c", ones]).astype(float)
    return X, whole("y"), whole("offset"), whole("weight")


def fitted(study: Study, parts: dict[str, Table], **options: Any):
    plan = build(study)
    cohorts = {site: clean(table, study, site) for site, table in parts.items()}
    closed = list(simulate(plan, cohorts, 1, **options))
    return plan, closed[-1].state


def close(found: Any, expected: Any, to: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=to, atol=1e-12)


@pytest.mark.parametrize("beside", ["plain", "offset", "weight", "both"])
@pytest.mark.parametrize("model", FAMILIES)
def test_equals_the_pooled_fit_of_statsmodels(model: str, beside: str):
    parts = tables(model)
    more = {"offset": "offset"} if beside in ("offset", "both") else {}
    more |= {"case_weights": "weight"} if beside in ("weight", "both") else {}
    found = regression(*fitted(study_of(model, **more), parts))
    assert found is not None
    X, y, offset, weight = pooled(parts)
    options = {"offset": offset} if "offset" in more else {}
    options |= {"freq_weights": weight} if "case_weights" in more else {}
    expected = sm.GLM(y, X, family=FAMILIES[model], **options).fit(tol=1e-14, maxiter=200)
    rows = found.rows
    assert [row.name for row in rows] == ["age", "dose", "ward=b", "ward=c", "intercept"]
    close([row.value for row in rows], expected.params)
    close([row.error for row in rows], expected.bse)
    close([row.z for row in rows], expected.tvalues)
    close([row.p for row in rows], expected.pvalues, 1e-7)
    close([[row.low, row.high] for row in rows], expected.conf_int())
    close([found.deviance, found.aic, found.log_likelihood], [expected.deviance, expected.aic, expected.llf])
    close(found.dispersion, expected.scale)
    assert found.patients == len(y)


@pytest.mark.parametrize("model", FAMILIES)
def test_takes_two_to_ten_exchanges(model: str):
    study = study_of(model)
    plan = build(study)
    cohorts = {site: clean(table, study, site) for site, table in tables(model).items()}
    asked: list[int] = []

    def lost(request: Any, site: str) -> bool:
        if request.ask == "train" and site == "east":
            asked.append(request.exchange)
        return False

    list(simulate(plan, cohorts, 1, lost=lost))
    assert 2 <= len(asked) <= 10


@pytest.mark.parametrize("model", FAMILIES)
def test_any_split_of_the_patients_gives_the_same_fit(model: str):
    parts = tables(model)
    names = sorted(parts)
    whole = {name: np.concatenate([parts[site].columns[name] for site in names]) for name in parts["east"].columns}
    study = study_of(model)
    one = fitted(study, {"one": Table(whole)})[1]
    many = fitted(study, parts)[1]
    close(many.theta, one.theta, 1e-11)


def test_ridge_equals_an_oracle_whose_gradient_vanishes():
    parts = tables("logistic")
    plan, state = fitted(study_of("logistic", model={"kind": "logistic", "l2": 0.1}), parts)
    X, y, _, _ = pooled(parts)
    Z = (X[:, :4] - state.statistics["center"]) / state.statistics["scale"]
    A = np.column_stack([Z, np.ones(len(y))])
    theta, penalty = np.zeros(5), 0.1 * len(y) * np.array([1, 1, 1, 1, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-A @ theta))
        theta -= np.linalg.solve((A * (p * (1 - p))[:, None]).T @ A + np.diag(penalty), A.T @ (p - y) + penalty * theta)
    close(state.theta, theta)
    table = regression(plan, state)
    assert table is not None
    assert table.penalised


def test_a_second_round_on_the_same_patients_changes_nothing_and_takes_one_exchange():
    study, parts = study_of("poisson"), tables("poisson")
    plan = build(study)
    cohorts = {site: clean(table, study, site) for site, table in parts.items()}
    _, first, second, _ = simulate(plan, cohorts, 2)
    close(second.state.theta, first.state.theta, 1e-12)
    assert second.state.round == 2


def test_masked_sums_give_the_same_fit_to_their_grid():
    parts = tables("poisson")
    hidden = {"protect": {"kind": "masked", "bits": 64}}
    del parts["south"]
    clear = fitted(study_of("poisson"), parts)[1]
    masked = fitted(study_of("poisson", privacy=hidden), parts, quorum=3)[1]
    close(masked.theta, clear.theta, 1e-7)


def test_scores_of_the_model_that_came_in_arrive_with_the_round():
    study = study_of("logistic", validation={"fraction": 0.3})
    plan = build(study)
    cohorts = {site: clean(table, study, site) for site, table in tables("logistic").items() if site != "south"}
    closed = list(simulate(plan, cohorts, 2))
    assert [round_.scored for round_ in closed] == [0, 0, 1, 2]
    assert set(closed[1].scores) == set(cohorts)
    assert closed[1].training["east"][0] == float((~cohorts["east"].valid).sum())
    close(closed[2].scores["west"][0], closed[3].scores["west"][0], 1e-6)


def test_a_site_that_is_lost_midway_counts_in_nothing_that_follows():
    parts = tables("linear")
    study = study_of("linear")
    cohorts = {site: clean(table, study, site) for site, table in parts.items()}

    def lost(request: Any, site: str) -> bool:
        return request.ask == "train" and request.exchange >= 1 and site == "west"

    closed = list(simulate(build(study), cohorts, 1, lost=lost))
    del parts["west"]
    statistics = closed[0].state.statistics
    left = list(
        simulate(
            build(study),
            {s: c for s, c in cohorts.items() if s != "west"},
            1,
            state=replace(build(study).start(statistics)),
        )
    )
    close(closed[1].state.theta, left[0].state.theta, 1e-11)


def faulty(column: str, change: Any, model: str = "logistic") -> dict[str, Table]:
    return {site: Table({**table.columns, column: change(table)}) for site, table in tables(model).items()}


def test_collinear_columns_are_named():
    parts = faulty("dose", lambda table: 3 * table.columns["age"] + 1)
    with pytest.raises(NoFit, match=r"found (age \+ dose|dose \+ age) bound together over all sites: leave one out"):
        fitted(study_of("logistic"), parts)


def test_a_level_that_no_patient_has_is_named():
    def without(table: Table):
        return np.where(table.columns["ward"] == "c", "a", table.columns["ward"]).astype(object)

    with pytest.raises(NoFit, match="found 'ward=c' the same for all: leave it out"):
        fitted(study_of("logistic", preprocess={"standardise": "numbers"}), faulty("ward", without))


def test_one_hot_levels_beside_an_intercept_are_named():
    features = [{"type": "category", "name": "ward", "categories": ["a", "b"]}]
    with pytest.raises(NoFit, match=r'ward=(a|b|other).*encode = "drop_first" for a category'):
        fitted(study_of("logistic", features=features), tables("logistic"))


def test_a_column_that_decides_the_outcome_is_named():
    parts = faulty("y", lambda table: (table.columns["age"] > 60).astype(float))
    with pytest.raises(NoFit, match="found that age does so for some patients: its coefficient has no finite value"):
        fitted(study_of("logistic", features=[{"type": "number", "name": "age", "range": [0, 120]}]), parts)


def test_a_level_whose_patients_all_have_one_outcome_is_named():
    def all_ill(table: Table):
        return np.where(table.columns["ward"] == "c", 1.0, table.columns["y"])

    with pytest.raises(NoFit, match="found that ward=c does so for some patients"):
        fitted(study_of("logistic"), faulty("y", all_ill))


def test_ridge_settles_what_is_collinear_empty_or_separated():
    model = {"kind": "logistic", "l2": 0.01}
    for parts in (
        faulty("dose", lambda table: 3 * table.columns["age"] + 1),
        faulty("y", lambda table: (table.columns["age"] > 60).astype(float)),
        faulty("ward", lambda table: np.full(table.rows, "a", object)),
    ):
        assert np.isfinite(fitted(study_of("logistic", model=model), parts)[1].theta).all()


def test_a_site_whose_own_patients_leave_columns_open_takes_part():
    parts = tables("linear")
    parts["north"] = Table({**parts["north"].columns, "ward": np.full(37, "a", object), "age": np.full(37, 50.0)})
    found = regression(*fitted(study_of("linear"), parts))
    X, y, _, _ = pooled(parts)
    assert found is not None
    close([row.value for row in found.rows], sm.OLS(y, X).fit().params)


@pytest.mark.parametrize(("model", "wanted"), [("poisson", "0 or more"), ("gamma", "above 0")])
def test_targets_that_a_model_cannot_have_are_refused(model: str, wanted: str):
    parts = tables(model)
    with pytest.raises(DataContractError, match=f"that are {wanted} in column 'y' at site 'north'"):
        clean(Table({**parts["north"].columns, "y": np.full(37, -1.0)}), study_of(model), "north")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": "uniform"}, "an exact fit counts every patient alike"),
        ({"model": {"kind": "mlp"}}, "a mlp model is averaged"),
        ({"protocol": {"codec": "float32"}}, "need all their digits"),
        ({"algorithm": "fedavg", "case_weights": "weight"}, "case weights go with sums over patients"),
        (
            {"model": {"kind": "mlp"}, "algorithm": "fedavg", "offset": "offset"},
            "an offset is added to a linear predictor",
        ),
        ({"offset": "age"}, "'age' is the offset and cannot be a feature too"),
    ],
)
def test_what_does_not_go_with_an_exact_fit_is_refused_with_the_reason(more: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        study_of("linear", **more)


def test_a_hospital_whose_own_patients_settle_no_model_alone_has_none_to_compare_with(tmp_path):
    parts = tables("linear")
    parts["north"] = Table({**parts["north"].columns, "dose": 3 * parts["north"].columns["age"]})
    study = study_of("linear", validation={"fraction": 0.3})
    plan, cohorts = build(study), {site: clean(table, study, site) for site, table in parts.items() if site != "south"}
    state = list(simulate(plan, cohorts, 1))[-1].state
    wards = {site: SimpleNamespace(cohort=cohort, policy=OPEN, fingerprint=site) for site, cohort in cohorts.items()}
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.begin(study)
        folder = SimpleNamespace(study=study)
        compare(
            SimpleNamespace(wards=wards, last={"sites": wards}, state=state, plan=plan, ledger=ledger, folder=folder)
        )
        found = ledger.noted("baselines")
    assert sorted(found["local"]) == ["east", "west"]
    assert sorted(found["pooled"]) == ["east", "north", "west"]


@pytest.mark.parametrize("policy", ["policy", "warning", "info"])
def test_a_gate_that_would_weigh_a_site_less_is_refused(policy: str):
    operations = Operations.model_validate({"rounds": 1, "gate": {policy: "down-weight"}})
    with pytest.raises(
        StudyError, match="with an exact fit, which counts every patient alike: set it to exclude or warn"
    ):
        masks.require(study_of("linear"), operations)
    masks.require(study_of("linear", algorithm="fedavg"), operations)


def test_averaging_goes_to_the_same_rates_as_the_exact_fit():
    parts = {site: table for site, table in tables("poisson").items() if site != "south"}
    features = [{"type": "number", "name": "age", "range": [0, 120]}]
    full = {"preset": "fedavg", "local": {"rate": 0.05, "batch": "all"}}
    averaged = study_of("poisson", features=features, algorithm=full, offset="offset")
    cohorts = {site: clean(table, averaged, site) for site, table in parts.items()}
    state = list(simulate(build(averaged), cohorts, 400))[-1].state
    exact = fitted(study_of("poisson", features=features, offset="offset"), parts)[1]
    close(state.theta, exact.theta, 1e-6)
    assert state.theta[-1] == 1.0
