"""Every strategy with every model: what goes together computes what an independent oracle computes, what does not is refused with its reason.

The oracles of averaging are ten lines: complex-step derivatives of losses that are written anew here, and the papers' server steps. Sites make
one full step a round, so a weighted mean of updates is one pooled step; a rule against attackers sees eight sites of the same rows, all honest.
The oracles of exact fits are statsmodels and scikit-learn. Adding a strategy or a model adds a row to a table below, or these tests fail.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from pydantic import ValidationError
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import GaussianNB
from statsmodels.discrete.discrete_model import NegativeBinomial
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.miscmodels.ordinal_model import OrderedModel

from fedrounds.core import catalogue
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.simulate import simulate
from fedrounds.core.strategy import COMBINES, PRESETS
from fedrounds.core.study import Study
from fedrounds.core.table import Table

HEART = Path(__file__).parents[2] / "shared" / "data" / "heart_disease_uci" / "heart_all_sites.csv"
RATE, ROUNDS = 0.05, 5
FEATURES = ("x1", "x2", "x3")
STARTS = [[-1.0, 0.5, 0.0], [1.0, -0.5, 0.0]]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # kind: the target that it is tried on, its options
    "linear": ("regression", {"l2": 0.01}),
    "huber": ("regression", {"l2": 0.01, "bend": 1.0}),
    "logistic": ("binary", {"l2": 0.01}),
    "svm": ("binary", {"l2": 0.01}),
    "module": (
        "binary",
        {"l2": 0.01, "name": "torch.nn:Linear", "parameters": 4, "options": {"in_features": 3, "out_features": 1}},
    ),
    "poisson": ("counts", {"l2": 0.01}),
    "gamma": ("positive", {"l2": 0.01}),
    "negative_binomial": ("counts", {}),
    "multinomial": ("multiclass", {"l2": 0.01}),
    "ordinal": ("multiclass", {}),
    "naive_bayes": ("multiclass", {}),
    "cox": ("survival", {"at_risk": 1}),
    "mlp": ("binary", {"l2": 0.01, "hidden": [4]}),
    "boosting": ("binary", {"most": 20, "trees": 20, "depth": 3, "min_rows": 1, "bins": 256}),
    "kmeans": ("none", {"starts": STARTS}),
    "pca": ("none", {"components": 2}),
}
TARGETS: dict[str, dict[str, Any]] = {
    "regression": {"kind": "regression", "column": "number"},
    "positive": {"kind": "regression", "column": "positive"},
    "counts": {"kind": "regression", "column": "count"},
    "binary": {"kind": "binary", "column": "yes", "positive": [1], "negative": [0]},
    "multiclass": {"kind": "multiclass", "column": "grade", "classes": [0, 1, 2]},
    "survival": {"kind": "survival", "time": "time", "event": "yes", "grid": {"last": 12, "steps": 12}},
    "none": {"kind": "none"},
}
STRATEGIES = [*PRESETS, *COMBINES, "exact"]
KINDS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in catalogue.words(catalogue.Model)}
PAIRS = [(strategy, model) for strategy in STRATEGIES for model in MODELS]
VALID = [(s, m) for s, m in PAIRS if ("exact" if s == "exact" else "averaging") in KINDS[m].algorithms]
INVALID = [pair for pair in PAIRS if pair not in VALID]
TOLERANCE = {
    "ordinal": 1e-6,
    "negative_binomial": 1e-6,
    "boosting": 0.01,
}  # of exact fits; 1e-8 else, and 1e-9 of averaging
DATA = [
    "synthetic",
    pytest.param(
        "heart", marks=pytest.mark.skipif(not HEART.is_file(), reason=f"the real heart data are not here ({HEART})")
    ),
]


def study(strategy: str, model: str) -> Study:
    """A study of the pair; what an averaging strategy says beside its name is one full step a round."""
    target, options = MODELS[model]
    averages = strategy != "exact"
    algorithm: dict[str, Any] = {"preset": strategy}
    if averages:
        algorithm["local"] = {"rate": RATE, "batch": "all"}
    return Study.model_validate(
        {
            "name": "pair",
            "target": TARGETS[target],
            "features": [{"type": "number", "name": name} for name in FEATURES],
            "validation": {"fold": "fold"},
            "model": {"kind": model, **options},
            "algorithm": algorithm,
            "weights": "uniform" if strategy in COMBINES else "patients",
        }
    )


@cache
def tables(data: str) -> dict[str, Table]:
    """Three uneven sites, or four real hospitals: three numbers a patient, and an outcome of every kind."""
    found = {}
    if data == "heart":
        with HEART.open() as file:
            lines = [
                row
                for row in csv.DictReader(file)
                if all(row[name] for name in ("age", "thalach", "oldpeak", "trestbps"))
            ]
        for site in sorted({row["site"] for row in lines}):
            rows = [row for row in lines if row["site"] == site]
            X = np.array([[float(row[name]) for name in ("age", "thalach", "oldpeak")] for row in rows])
            grade = np.array([float(row["num"]) for row in rows])
            pressure = np.array([float(row["trestbps"]) for row in rows])
            found[site] = outcomes(
                X,
                pressure / 20,
                np.maximum(pressure, 1) / 100,
                grade**2,  # counts that vary more than a Poisson's
                np.minimum(grade, 2),
                np.clip(X[:, 1] // 15, 1, 12),
            )
        return found
    rng = np.random.default_rng(5)
    for site, rows in {"east": 160, "north": 40, "west": 90}.items():
        X = rng.normal(size=(rows, 3)) * [10, 1, 0.2] + [50, 0, 1]
        eta = 0.05 * (X[:, 0] - 50) + 0.6 * X[:, 1]
        grade = np.digitize(eta + rng.logistic(size=rows), [-0.5, 1.0]).astype(float)
        mean = rng.gamma(2, np.exp(0.3 * eta) / 2)
        found[site] = outcomes(
            X,
            eta + rng.standard_t(3, rows),
            rng.gamma(2, np.exp(eta) / 2) + 0.01,
            rng.poisson(3 * mean),
            grade,
            np.ceil(rng.exponential(6, rows)).clip(1, 12),
        )
    return found


def outcomes(X, number, positive, count, grade, time) -> Table:
    """A site's table."""
    told = {"number": number, "positive": positive, "count": count, "grade": grade, "yes": grade > 0, "time": time}
    columns = {**dict(zip(FEATURES, X.T, strict=True)), **told}
    return Table(
        {name: np.asarray(value, float) for name, value in columns.items()} | {"fold": np.full(len(X), "train", object)}
    )


def whole(parts: dict[str, Table], model: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows in one place: X standardised (n, 3) and the outcome (n,)."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([parts[site].columns[name] for site in sorted(parts)])

    X = np.column_stack([column(name) for name in FEATURES])
    outcome = {
        "regression": "number",
        "positive": "positive",
        "counts": "count",
        "binary": "yes",
        "multiclass": "grade",
    }
    y = column(outcome[MODELS[model][0]]) if MODELS[model][0] in outcome else np.zeros(len(X))
    return (X - X.mean(0)) / X.std(0, ddof=1), y


def trained(of: Study, parts: dict[str, Table], rounds: int):
    plan = build(of)
    cohorts = {site: clean(table, of, site) for site, table in parts.items()}
    return plan, list(simulate(plan, cohorts, rounds))[-1].state


# --- averaging ------------------------------------------------------------------------------------------------------

LOSSES = {  # mean loss of theta on X with its column of ones, written for complex numbers
    "linear": lambda t, X, y: np.mean((X @ t - y) ** 2) / 2,
    "huber": lambda t, X, y: np.mean(bent(X @ t - y, 1.0)),
    "logistic": lambda t, X, y: np.mean(np.log(1 + np.exp(X @ t)) - y * (X @ t)),
    "svm": lambda t, X, y: np.mean(above(1 - (2 * y - 1) * (X @ t)) ** 2),
    "poisson": lambda t, X, y: np.mean(np.exp(X @ t) - y * (X @ t)),
    "gamma": lambda t, X, y: np.mean(y * np.exp(-(X @ t)) + X @ t),
    "multinomial": lambda t, X, y: np.mean(
        np.log(np.exp(X @ t.reshape(4, 3)).sum(1)) - (X @ t.reshape(4, 3))[np.arange(len(y)), y.astype(int)]
    ),
    "module": lambda t, X, y: LOSSES["logistic"](t, X, y),
    "mlp": lambda t, X, y: LOSSES["logistic"](t[16:], np.column_stack([above(X @ t[:16].reshape(4, 4)), X[:, 3:]]), y),
}
FREE = {
    "multinomial": range(9, 12),
    "mlp": [12, 13, 14, 15, 20],
}  # intercepts and biases: no penalty; the last one else


def above(z):
    return np.where(z.real > 0, z, 0)


def bent(r, bend):
    return np.where(np.abs(r.real) <= bend, r**2 / 2, bend * (r * np.sign(r.real) - bend / 2))


def slope(model: str, theta, X, y):
    """The gradient of mean loss + l2/2 |theta|², by complex steps."""
    found = np.array([LOSSES[model](theta + 1e-30j * unit, X, y).imag / 1e-30 for unit in np.eye(len(theta))])
    penalised = np.ones(len(theta))
    penalised[list(FREE.get(model, [-1]))] = 0
    return found + 0.01 * penalised * theta


def textbook(strategy: str, model: str, theta, X, y, reported):
    """So many rounds of a strategy, on all rows in one place."""
    v, m, h = 0.0 * theta + 1e-6, 0.0 * theta, 0.0 * theta
    for _ in range(ROUNDS):
        delta = -RATE * (slope(model, theta, X, y) - h)
        match strategy:
            case "fedavgm":
                m = 0.9 * m + delta
                theta = theta + m
            case "fedadagrad":
                v = v + delta**2
                theta = theta + 0.1 * delta / (np.sqrt(v) + 1e-3)
            case "fedadam" | "fedyogi":
                m = 0.9 * m + 0.1 * delta
                v = 0.99 * v + 0.01 * delta**2 if strategy == "fedadam" else v - 0.01 * delta**2 * np.sign(v - delta**2)
                theta = theta + 0.1 * m / (np.sqrt(v) + 1e-3)
            case "feddyn":
                h = h - 0.1 * delta
                theta = theta + delta - h / 0.1
            case "qfedavg":
                loss = reported(theta)
                theta = theta + delta / (1 + delta @ delta / (RATE * loss))
            case _:  # of one full step a round, and so of ditto, whose own models leave the global one alone
                theta = theta + delta
    return theta


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("strategy", "model"), [pair for pair in VALID if pair[0] != "exact"])
def test_an_averaging_strategy_goes_where_its_textbook_loop_goes(strategy: str, model: str, data: str):
    parts = tables(data)
    if strategy in COMBINES:  # the same rows at eight sites: nobody attacks, and nobody differs
        first = parts[min(parts)]
        parts = {f"site{i}": first for i in range(8)}
    X, y = whole({"a": parts[min(parts)]} if strategy in COMBINES else parts, model)
    of = study(strategy, model)
    plan, state = trained(of, parts, ROUNDS)
    X = np.column_stack([X, np.ones(len(X))])

    def reported(theta):
        return float(plan.family.losses(plan.family.predict(theta, X), y).mean())

    # eight copies have the sample deviation of eight: what the study agreed on is what it standardised by
    if strategy in COMBINES:
        n = len(y)
        X[:, :3] *= np.sqrt((8 * n - 1) / (8 * n - 8))
    expected = textbook(strategy, model, plan.start().theta, X, y, reported)
    assert np.abs(expected - plan.start().theta).max() > 1e-3
    np.testing.assert_allclose(state.theta, expected, rtol=1e-9, atol=1e-9)


# --- exact ----------------------------------------------------------------------------------------------------------


def pooled_glm(kind):
    def fit(X, y):
        """Ridge by the normal equations of Newton's method, from statsmodels' own derivatives."""
        A = np.column_stack([X, np.ones(len(X))])
        of, theta, penalty = sm.GLM(y, A, family=kind), np.zeros(4), 0.01 * len(y) * np.array([1, 1, 1, 0.0])
        theta[3] = kind.link(np.mean(y))
        for _ in range(100):
            gradient = of.score(theta, scale=1.0) - penalty * theta
            theta = theta + np.linalg.solve(-of.hessian(theta, scale=1.0, observed=True) + np.diag(penalty), gradient)
        return {"theta": theta}

    return fit


def pooled_ordinal(X, y):
    model = OrderedModel(y.astype(int), X, distr="logit")
    theirs = model.fit(method="bfgs", disp=0, gtol=1e-10, maxiter=2000)
    return {"coef": theirs.params[:3], "threshold": model.transform_threshold_params(theirs.params)[1:-1]}


def pooled_negative_binomial(X, y):
    theirs = NegativeBinomial(y, np.column_stack([X, np.ones(len(y))])).fit(
        disp=0, method="bfgs", gtol=1e-10, maxiter=2000
    )
    return {"theta": theirs.params}


def pooled_kmeans(X, y):
    return {
        "center": KMeans(2, init=np.array(STARTS), n_init=1, algorithm="lloyd", tol=1e-10, max_iter=50)
        .fit(X)
        .cluster_centers_
    }


def pooled_pca(X, y):
    theirs = PCA(2).fit(X)
    return {"component": theirs.components_, "variance": theirs.explained_variance_}


def pooled_naive_bayes(X, y):
    theirs = GaussianNB().fit(X, y)
    return {"mean": theirs.theta_, "variance": theirs.var_}


EXACT = {
    "linear": pooled_glm(sm.families.Gaussian()),
    "logistic": pooled_glm(sm.families.Binomial()),
    "poisson": pooled_glm(sm.families.Poisson()),
    "gamma": pooled_glm(sm.families.Gamma(sm.families.links.Log())),
    "negative_binomial": pooled_negative_binomial,
    "ordinal": pooled_ordinal,
    "naive_bayes": pooled_naive_bayes,
    "kmeans": pooled_kmeans,
    "pca": pooled_pca,
}
OTHERS = ("cox", "boosting")  # below: one needs times, the other has no theta to compare


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("model", EXACT)
def test_an_exact_fit_is_the_one_to_all_rows_in_one_place(model: str, data: str):
    parts = tables(data)
    plan, state = trained(study("exact", model), parts, 1)
    found = {**plan.family.layout.split(state.theta), "theta": state.theta}
    for name, expected in EXACT[model](*whole(parts, model)).items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE.get(model, 1e-8))


@pytest.mark.parametrize("data", DATA)
def test_a_fit_of_hazards_is_the_one_to_all_rows_in_one_place(data: str):
    parts = tables(data)
    plan, state = trained(study("exact", "cox"), parts, 1)
    X, _ = whole(parts, "cox")
    time, died = (np.concatenate([parts[site].columns[name] for site in sorted(parts)]) for name in ("time", "yes"))
    theirs = PHReg(time, X, status=died.astype(int), ties="efron").fit(disp=0, gtol=1e-12)
    np.testing.assert_allclose(plan.family.layout.split(state.theta)["coef"], theirs.params, atol=1e-8)


@pytest.mark.parametrize("data", DATA)
def test_boosted_trees_are_those_of_one_site_and_as_good_as_scikit_learns(data: str):
    parts = tables(data)
    plan, state = trained(study("exact", "boosting"), parts, 1)
    names = sorted(parts)
    together = {
        "one": Table(
            {name: np.concatenate([parts[site].columns[name] for site in names]) for name in parts[names[0]].columns}
        )
    }
    one = trained(study("exact", "boosting"), together, 1)[1]
    np.testing.assert_allclose(state.theta, one.theta, rtol=0, atol=1e-9)
    X, y = whole(parts, "boosting")
    ours = roc_auc_score(y, plan.family.predict(state.theta, np.column_stack([X, np.ones(len(X))])))
    theirs = HistGradientBoostingClassifier(
        max_iter=20, max_depth=3, min_samples_leaf=1, l2_regularization=1.0, max_leaf_nodes=None, early_stopping=False
    )
    assert abs(ours - roc_auc_score(y, theirs.fit(X, y).predict_proba(X)[:, 1])) <= TOLERANCE["boosting"]


# --- what does not go together --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "model"), INVALID)
def test_a_pair_that_does_not_go_together_is_refused_with_its_reason(strategy: str, model: str):
    said = (
        f"a {model} model is averaged, and no sums over patients fit it"
        if strategy == "exact"
        else (f"a {model} model is fitted by sums over patients, and no gradient leads there")
    )
    with pytest.raises(ValidationError, match=said):
        study(strategy, model)


def test_the_tables_name_every_model_and_every_valid_pair_has_an_oracle():
    assert set(MODELS) == set(KINDS)
    assert {model for strategy, model in VALID if strategy != "exact"} == set(LOSSES)
    assert {model for strategy, model in VALID if strategy == "exact"} == {*EXACT, *OTHERS}
    assert len(VALID) + len(INVALID) == len(STRATEGIES) * len(MODELS)
