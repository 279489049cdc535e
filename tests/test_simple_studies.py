"""Studies of naive Bayes, k-means, components, ordered classes and counts, from tables to models: the fit to all patients in one place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from fedrounds.core.answer import Policy
from fedrounds.core.coefficients import on_original_scale
from fedrounds.core.errors import DataContractError, NoFit, StudyError
from fedrounds.core.evaluate import metrics, total
from fedrounds.core.export import example, pipeline
from fedrounds.core.operations import Gate
from fedrounds.core.plan import build
from fedrounds.core.portrait import portrait
from fedrounds.core.preprocess import clean, encode
from fedrounds.core.profile import names_of
from fedrounds.core.regression import regression
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.reports.portrait import groups_of
from fedrounds.tasks.draft import draft, evidence
from fedrounds.tasks.track import _save

SITES = {"east": 180, "north": 60, "south": 1, "west": 140}
GRADES = ["mild", "moderate", "severe"]
TARGETS = {
    "binary": {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]},
    "multiclass": {"kind": "multiclass", "column": "grade", "classes": GRADES},
    "regression": {"kind": "regression", "column": "visits"},
    "none": {"kind": "none"},
}
STARTS = [[-1.0, -0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]]
MODELS = {
    "naive Bayes of two": ("binary", {"kind": "naive_bayes"}),
    "naive Bayes of three": ("multiclass", {"kind": "naive_bayes"}),
    "k-means": ("none", {"kind": "kmeans", "starts": STARTS}),
    "components": ("none", {"kind": "pca", "components": 2}),
    "ordinal": ("multiclass", {"kind": "ordinal"}),
    "counts": ("regression", {"kind": "negative_binomial"}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def study(name, **more):
    target, model = MODELS[name]
    return Study.model_validate(
        {
            "name": "simple",
            "patient_id": "id",
            "target": TARGETS[target],
            "features": [
                {"type": "number", "name": "age", "unit": "years", "range": [0, 120], "missing": [-9]},
                {"type": "number", "name": "dose", "range": [0, 4000]},
                {"type": "category", "name": "ward", "categories": ["a", "b", "c"], "encode": "drop_first"},
            ],
            "model": model,
            "algorithm": "exact",
        }
        | more
    )


def tables(sizes=SITES):
    rng = np.random.default_rng(8)
    found = {}
    for site, rows in sizes.items():
        age, dose, ward = rng.normal(60, 12, rows).round(1), rng.gamma(2, 200, rows), rng.integers(0, 3, rows)
        score = 0.05 * (age - 60) - 0.001 * dose + 0.4 * (ward == 2)
        age[rng.random(rows) < 0.05] = -9.0
        found[site] = Table(
            {
                "id": np.array([f"{site}{i}" for i in range(rows)], object),
                "age": age,
                "dose": dose,
                "ward": np.array(["a", "b", "c"], object)[ward],
                "ill": np.where(score + rng.logistic(size=rows) > -0.4, "yes", "no").astype(object),
                "grade": np.array(GRADES, object)[np.digitize(score + rng.logistic(size=rows), [-1.0, 0.6])],
                "visits": rng.negative_binomial(2.0, 2.0 / (2.0 + 3.0 * np.exp(0.5 * score))).astype(float),
            }
        )
    return found


def run(name, rounds=1, sizes=SITES, options=None, **more):
    plan = build(study(name, **more))
    cohorts = {site: clean(table, plan.study, site) for site, table in tables(sizes).items()}
    closed = list(simulate(plan, cohorts, rounds, **(options or {})))
    return plan, cohorts, closed


def pooled(plan, cohorts, state):
    """X without ones and y of all training rows, in site order, as encoded by the agreed statistics; and of validation rows."""
    rows = [encode(cohorts[site], plan.study, state.statistics, plan.ones) for site in sorted(cohorts)]
    width = len(plan.columns)
    X, valid = (np.concatenate([getattr(part, of)[:, :width] for part in rows]) for of in ("X", "X_valid"))
    y, y_valid = (np.concatenate([getattr(part, of) for part in rows]) for of in ("y", "y_valid"))
    return X, y, valid, y_valid


@every_model
def test_the_model_of_a_study_is_the_fit_to_all_its_patients(name):
    plan, cohorts, closed = run(name)
    state = closed[-1].state
    X, y, _, _ = pooled(plan, cohorts, state)
    parts = plan.family.layout.split(state.theta)
    close = {"rtol": 0, "atol": 1e-8}
    assert state.memory["rows"][0] == len(y)
    match plan.study.model.kind:
        case "naive_bayes":
            fitted = GaussianNB().fit(X, y)
            np.testing.assert_allclose(parts["mean"], fitted.theta_, **close)
            np.testing.assert_allclose(parts["variance"], fitted.var_, **close)
        case "kmeans":
            fitted = KMeans(3, init=np.array(STARTS), n_init=1, algorithm="lloyd", tol=1e-10, max_iter=50).fit(X)
            np.testing.assert_allclose(parts["center"], fitted.cluster_centers_, **close)
            np.testing.assert_allclose(state.memory["inertia"], fitted.inertia_, rtol=1e-10)
        case "pca":
            fitted = PCA(2).fit(X)
            np.testing.assert_allclose(parts["component"], fitted.components_, **close)
            np.testing.assert_allclose(parts["variance"], fitted.explained_variance_, **close)
        case "ordinal":
            from statsmodels.miscmodels.ordinal_model import OrderedModel

            model = OrderedModel(y.astype(int), X, distr="logit")
            theirs = model.fit(method="bfgs", disp=0, gtol=1e-9, maxiter=1000)
            np.testing.assert_allclose(parts["coef"], theirs.params[:4], atol=1e-6)
            np.testing.assert_allclose(
                parts["threshold"], model.transform_threshold_params(theirs.params)[1:-1], atol=1e-6
            )
        case _:
            from statsmodels.discrete.discrete_model import NegativeBinomial

            theirs = NegativeBinomial(y, np.column_stack([X, np.ones(len(y))])).fit(
                disp=0, method="bfgs", gtol=1e-9, maxiter=1000
            )
            np.testing.assert_allclose(state.theta, theirs.params, atol=1e-6)


@every_model
def test_any_split_of_the_patients_gives_the_same_model(name):
    plan, cohorts, closed = run(name)
    whole = [cohorts[site] for site in sorted(cohorts)]
    values, y, valid = (np.concatenate([getattr(one, of) for one in whole]) for of in ("values", "y", "valid"))
    order = np.random.default_rng(1).permutation(len(y))
    others = {}
    for site, rows in {"a": order[:200], "b": order[200:203], "c": order[203:]}.items():
        others[site] = replace(whole[0], site=site, values=values[rows], y=y[rows], valid=valid[rows])
    theta = list(simulate(plan, others, 1))[-1].state.theta
    np.testing.assert_allclose(theta, closed[-1].state.theta, rtol=1e-7, atol=1e-7)


@every_model
def test_what_is_exported_predicts_as_the_core_does(name):
    plan, cohorts, closed = run(name)
    state, parts = closed[-1].state, tables()
    model = pipeline(plan, state)
    import pandas as pd

    frame = pd.concat(
        [pd.DataFrame({f.name: parts[site].columns[f.name] for f in plan.study.features}) for site in sorted(parts)]
    )
    rows = [
        encode(
            replace(cohorts[site], valid=np.zeros(cohorts[site].patients, bool)),
            plan.study,
            state.statistics,
            plan.ones,
        ).X
        for site in sorted(cohorts)
    ]
    X = np.concatenate(rows)
    found = plan.family.predict(state.theta, X)
    match plan.study.model.kind:
        case "kmeans":
            centers = plan.family.layout.split(state.theta)["center"]
            apart = X[:, :4] - centers[model.predict(frame)]
            np.testing.assert_allclose((apart**2).sum(1), found[:, 0], atol=1e-10)
        case "pca":
            back = model.named_steps["model"]["components"].inverse_transform(model.predict(frame))
            np.testing.assert_allclose(((X[:, :4] - back) ** 2).sum(1), found[:, 0], atol=1e-10)
        case "negative_binomial":
            np.testing.assert_allclose(model.predict(frame), found, rtol=1e-10)
        case _:
            chances = model.predict_proba(frame)
            np.testing.assert_allclose(chances[:, 1] if found.ndim == 1 else chances, found, atol=1e-10)


@pytest.mark.parametrize("name", ["k-means", "components"])
def test_where_nothing_is_predicted_the_headline_is_the_share_accounted_for(name):
    plan, cohorts, closed = run(name)
    state = closed[-1].state
    X, _, valid, _ = pooled(plan, {site: cohorts[site] for site in closed[-1].scores}, state)  # one has no training row
    found = metrics(plan.task, *total(closed[-1].scores))
    parts = plan.family.layout.split(state.theta)
    left = plan.family.predict(state.theta, valid)[:, 0].sum()
    spread = ((valid - X.mean(0)) ** 2).sum()
    assert found["n"] == len(valid)
    assert found["distance"] == pytest.approx(left / len(valid), rel=1e-12)
    assert found["explained"] == pytest.approx(1 - left / spread, rel=1e-10)
    assert 0.2 < found["explained"] < 1
    np.testing.assert_allclose(parts["mean"], X.mean(0), atol=1e-12)


@every_model
def test_a_second_round_on_the_same_patients_finds_the_same_model(name):
    _, _, closed = run(name, rounds=2)
    np.testing.assert_allclose(closed[2].state.theta, closed[1].state.theta, rtol=1e-8, atol=1e-8)


@every_model
def test_masked_sums_give_the_same_model_to_their_grid(name):
    _, _, plain = run(name, sizes={"east": 90, "north": 90, "south": 100, "west": 80})
    _, _, masked = run(
        name,
        sizes={"east": 90, "north": 90, "south": 100, "west": 80},
        privacy={"protect": {"kind": "masked", "batch": 64}},
    )
    np.testing.assert_allclose(masked[-1].state.theta, plain[-1].state.theta, rtol=1e-4, atol=1e-4)


def test_a_hospital_refuses_sums_of_a_group_that_is_too_small():
    _, _, closed = run(
        "naive Bayes of three",
        sizes={"east": 180, "north": 22, "west": 140},
        options={"policy": Policy(minimum_patients=10)},
    )
    assert "a group of its patients that it would send sums of is below" in closed[1].refused["north"]
    assert set(closed[1].training) == {"east", "west"}


def test_a_site_that_is_lost_midway_counts_in_nothing_that_follows():
    def lost(request, site):
        return request.ask == "train" and request.exchange == 1 and site == "west"

    plan, cohorts, closed = run("components", options={"lost": lost})
    state = closed[1].state
    X, *_ = pooled(plan, {site: cohorts[site] for site in cohorts if site != "west"}, state)
    np.testing.assert_allclose(plan.family.layout.split(state.theta)["component"], PCA(2).fit(X).components_, atol=1e-8)


def test_the_regression_table_of_ordered_classes_and_counts_is_that_of_statsmodels():
    from statsmodels.discrete.discrete_model import NegativeBinomial
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    for name in ("ordinal", "counts"):
        plan, cohorts, closed = run(name)
        state = closed[-1].state
        X, y, _, _ = pooled(plan, cohorts, state)
        raw = X * state.statistics["scale"] + state.statistics["center"]
        found = regression(plan, state)
        values, errors = np.array([row.value for row in found.rows]), np.array([row.error for row in found.rows])
        if name == "ordinal":
            scaler = StandardScaler(with_mean=False).fit(raw)  # theirs needs columns of one scale to converge
            model = OrderedModel(y.astype(int), scaler.transform(raw), distr="logit")
            theirs = model.fit(method="bfgs", disp=0, gtol=1e-9, maxiter=1000)
            np.testing.assert_allclose(values[:4], theirs.params[:4] / scaler.scale_, rtol=1e-5)
            np.testing.assert_allclose(values[4:], model.transform_threshold_params(theirs.params)[1:-1], rtol=1e-5)
            np.testing.assert_allclose(errors[:5], np.append(theirs.bse[:4] / scaler.scale_, theirs.bse[4]), rtol=1e-4)
            assert [row.name for row in found.rows[4:]] == ["threshold 1", "threshold 2"]
        else:
            theirs = NegativeBinomial(y, np.column_stack([X, np.ones(len(y))])).fit(
                disp=0, method="bfgs", gtol=1e-9, maxiter=1000
            )
            np.testing.assert_allclose(values[:4], theirs.params[:4] / state.statistics["scale"], rtol=1e-5)
            np.testing.assert_allclose(errors[:4], theirs.bse[:4] / state.statistics["scale"], rtol=1e-4)
        assert found.log_likelihood == pytest.approx(theirs.llf, abs=1e-6)
        assert found.aic == pytest.approx(theirs.aic, abs=1e-5)
        assert found.patients == len(y)


@every_model
def test_what_a_model_says_of_its_features_is_coefficients_or_a_portrait(name):
    plan, cohorts, closed = run(name)
    state = closed[-1].state
    said = on_original_scale(plan, state.theta, state.statistics), portrait(plan, state.theta, state.statistics)
    linear = plan.study.model.kind in ("ordinal", "negative_binomial")
    assert [it is not None for it in said] == [linear, not linear]
    if plan.study.model.kind == "kmeans":
        X, *_ = pooled(plan, cohorts, state)
        nearest = ((X[:, None] - plan.family.layout.split(state.theta)["center"]) ** 2).sum(2).argmin(1)
        raw = X * state.statistics["scale"] + state.statistics["center"]
        np.testing.assert_allclose(said[1].values[:, 1], raw[nearest == 1].mean(0), rtol=1e-10)
        assert said[1].columns[0] == ("age", "years", None)
        assert said[1].columns[3] == ("ward", "", "c")


def test_a_study_without_a_target_needs_no_column_and_profiles_its_features_alone():
    plan, cohorts, _ = run("k-means")
    assert not any(one.y.any() for one in cohorts.values())
    assert list(names_of(plan.study).values()) == ["age", "dose", "ward"]


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("k-means", {"algorithm": "fedavg"}, 'set algorithm = "exact"'),
        ("k-means", {"target": TARGETS["binary"]}, "a binary target goes with"),
        ("ordinal", {"target": {"kind": "none"}}, "a none target goes with kmeans or pca, found model 'ordinal'"),
        ("components", {"model": {"kind": "pca", "components": 0}}, "greater than or equal to 1"),
        ("naive Bayes of two", {"offset": "dose2"}, "has none"),
    ],
)
def test_what_does_not_go_together_is_refused(name, more, said):
    with pytest.raises(ValidationError, match=said):
        study(name, **more)


def test_starts_and_components_fit_the_columns():
    with pytest.raises(StudyError, match="expected starts of 4 numbers"):
        build(study("k-means", model={"kind": "kmeans", "starts": [[0.0], [1.0]]}))
    with pytest.raises(StudyError, match="expected 4 components at most"):
        build(study("components", model={"kind": "pca", "components": 5}))


def test_counts_that_are_none_are_refused_at_the_hospital():
    table = tables()["east"]
    table.columns["visits"][3] = 1.5
    with pytest.raises(DataContractError, match="whole numbers from 0"):
        clean(table, study("counts"), "east")


def test_a_round_that_finds_no_fit_says_so():
    with pytest.raises(NoFit, match="expected 300 training patients of every cluster"):
        run("k-means", model={"kind": "kmeans", "starts": STARTS, "fewest": 300})


def test_the_report_shows_centres_means_and_loadings_side_by_side():
    for name, said in {
        "k-means": ("Cluster 3", "ward = c", "nearest to it"),
        "naive Bayes of three": ("Class severe", "±", "independent within a class"),
        "components": ("Component 2 (", "of the variance together", "Loadings"),
    }.items():
        plan, _, closed = run(name)
        state = closed[-1].state
        page = groups_of(portrait(plan, state.theta, state.statistics), 1)
        assert all(words in page for words in said)


@pytest.mark.parametrize("name", ["k-means", "components"])
def test_a_suite_is_drafted_of_the_features_alone_where_nothing_is_predicted(name):
    of, parts = study(name), tables({"east": 180, "west": 140})
    seen = evidence(of, {site: (table, ()) for site, table in parts.items()})
    columns = {one["kwargs"].get("column") for one in draft(of, Gate(), seen)}
    assert {"age", "dose", "ward"} <= columns
    assert not {"", "ill", "grade", "visits"} & columns


@pytest.mark.parametrize(
    ("name", "serves"), [("k-means", "predict"), ("components", "predict"), ("ordinal", "predict_proba")]
)
def test_what_mlflow_serves_is_what_the_pipeline_says(name, serves, tmp_path):
    import mlflow.pyfunc

    plan, _, closed = run(name)
    model = pipeline(plan, closed[-1].state)
    _save(plan, model, tmp_path / "model")
    frame = example(plan.study)
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(np.asarray(served.predict(frame)), getattr(model, serves)(frame))
