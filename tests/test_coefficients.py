"""Coefficients on the original scale: the score that they give on raw rows is the exported pipeline's, and small cases are right by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedrounds.core.coefficients import on_original_scale
from fedrounds.core.export import pipeline
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean, columns_of
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Category, Study, canonical
from fedrounds.core.table import Table

FEATURES = [
    {"type": "number", "name": "age", "unit": "years"},
    {"type": "number", "name": "pressure", "unit": "mmHg", "missing": [0, -9]},
    {"type": "category", "name": "ward", "categories": ["red", "blue"], "missing": ["unknown"]},
    {"type": "category", "name": "stage", "categories": [1, 2, 3], "missing": [9]},
    {"type": "category", "name": "smoker", "categories": ["never", "now", "then"], "encode": "drop_first"},
]
MODELS = {
    "linear": ("regression", {"kind": "linear"}),
    "linear without intercept": ("regression", {"kind": "linear", "intercept": False}),
    "logistic": ("binary", {"kind": "logistic", "l2": 0.01}),
    "multinomial": ("multiclass", {"kind": "multinomial"}),
    "mlp": ("binary", {"kind": "mlp", "hidden": [4]}),
}
TARGETS = {
    "regression": {"kind": "regression", "column": "y", "unit": "days"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "label", "classes": ["a", "b", 3]},
}


def study(model: str, standardise: str = "numbers") -> Study:
    target, words = MODELS[model]
    rate = 1e-5 if standardise == "none" else 0.05
    return Study.model_validate(
        {
            "name": "raw",
            "target": TARGETS[target],
            "features": FEATURES,
            "validation": {"fraction": 0.0},
            "preprocess": {"standardise": standardise},
            "model": words,
            "algorithm": {"preset": "fedavg", "local": {"rate": rate}},
        }
    )


def raw(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.choice([np.nan, *rng.normal(60, 10, 30)], n),
            "pressure": rng.choice([np.nan, 0.0, -9.0, 120.0, 141.5, 95.0], n),
            "ward": rng.choice(np.array(["red", "blue", "green", "unknown", None], object), n),
            "stage": rng.choice([1.0, 2.0, 3.0, 4.0, 9.0, np.nan], n),
            "smoker": rng.choice(np.array(["never", "now", "then", None], object), n),
        }
    )


def table(frame: pd.DataFrame) -> Table:
    rng = np.random.default_rng(9)
    columns = {"y": rng.normal(size=len(frame)), "label": rng.choice(["a", "b", "3"], len(frame)).astype(object)}
    for name in frame:
        cells = frame[name].to_numpy()
        columns[name] = cells if cells.dtype == np.float64 else np.array([cell or "" for cell in cells], object)
    return Table(columns)


def trained(of: Study):
    plan = build(of)
    cohorts = {site: clean(table(raw(120, seed)), of, site) for site, seed in (("east", 1), ("west", 2))}
    return plan, list(simulate(plan, cohorts, 3))[-1].state


def by_hand(found, of: Study, impute, frame: pd.DataFrame) -> np.ndarray:
    """The linear predictor (n, k) as a person would work it out: a table of coefficients, and a raw row with nothing standardised."""
    scores = np.tile(np.array(found.intercept), (len(frame), 1))
    for at, row in enumerate(frame.to_dict("records")):
        for j, feature in enumerate(of.features):
            cell = row[feature.name]
            gone = cell is None or cell != cell or canonical(cell) in {canonical(code) for code in feature.missing}
            own = [column for column in found.columns if column.feature == feature.name]
            if not isinstance(feature, Category):
                scores[at] += np.array(own[0].values) * (impute[j] if gone else cell)
                continue
            levels = [canonical(level) for level in feature.categories]
            named = [*levels, "other"]
            level = named[int(impute[j])] if gone else canonical(cell)
            if level not in levels:
                level = "other" if feature.encode == "one_hot" else named[int(impute[j])]
            for column in own:
                scores[at] += np.array(column.values) * (column.level == level)
    return scores


@pytest.mark.parametrize("standardise", ["numbers", "all", "none"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "mlp"])
def test_they_score_raw_rows_as_the_exported_pipeline_does(model, standardise):
    of = study(model, standardise)
    plan, state = trained(of)
    assert standardise == "none" or np.ptp(state.statistics["scale"]) > 1
    frame = raw(200, seed=7)
    found = by_hand(on_original_scale(plan, state.theta, state.statistics), of, state.statistics["impute"], frame)
    fitted = pipeline(plan, state)
    expected = fitted.predict(frame) if plan.task == "regression" else fitted.decision_function(frame)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, np.reshape(expected, (len(frame), -1)), rtol=0, atol=1e-9)


def test_a_small_case_is_right_by_hand():
    of = study("logistic")
    plan = build(of)
    width = len(plan.columns)
    theta = np.arange(1.0, width + 2.0)  # age 1, pressure 2, ward 3 4 5, stage 6 7 8 9, smoker 10 11, intercept 12
    statistics = {"impute": np.zeros(5), "center": np.zeros(width), "scale": np.ones(width)}
    statistics["center"][:2], statistics["scale"][:2] = (60.0, 130.0), (10.0, 20.0)
    found = on_original_scale(plan, theta, statistics)
    assert found.classes == ("",)
    assert found.intercept == (12.0 - 1 * 60 / 10 - 2 * 130 / 20,)
    assert [column.values for column in found.columns[:2]] == [(0.1,), (0.1,)]
    assert [column.scale for column in found.columns[:3]] == [10.0, 20.0, 1.0]
    assert [(c.feature, c.level) for c in found.columns[2:5]] == [("ward", "red"), ("ward", "blue"), ("ward", "other")]
    assert [column.centred for column in found.columns[2:5]] == [(-0.5,), (0.5,), (1.5,)]
    assert found.columns[-1].centred is None
    assert found.reference == {"smoker": "never"}
    assert [name for feature in of.features for name in columns_of(feature)] == list(plan.columns)


def test_a_neural_network_has_none():
    plan = build(study("mlp"))
    assert on_original_scale(plan, plan.start().theta, plan.no_statistics()) is None


def test_a_multinomial_model_has_one_for_each_class():
    plan, state = trained(study("multinomial"))
    found = on_original_scale(plan, state.theta, state.statistics)
    assert found.classes == ("a", "b", "3")
    assert len(found.intercept) == len(found.columns[0].values) == 3
