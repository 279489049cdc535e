"""A trained model as a scikit-learn pipeline: the same numbers as the core's on raw rows, and nothing in it that skops would not load."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fedrounds.core.export import example, pipeline, preprocessing
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.simulate import simulate
from fedrounds.core.strategy import PRESETS
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks.lean import skops_io

TARGETS = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "label", "classes": ["a", "b", 3]},
}
MODELS = {
    "linear": ("regression", {"kind": "linear"}),
    "linear without intercept": ("regression", {"kind": "linear", "intercept": False}),
    "logistic": ("binary", {"kind": "logistic", "l2": 0.01}),
    "multinomial": ("multiclass", {"kind": "multinomial"}),
    **{f"mlp {target}": (target, {"kind": "mlp", "hidden": [5, 3]}) for target in TARGETS},
}
FEATURES = [
    {"type": "number", "name": "age"},
    {"type": "number", "name": "dose", "impute": -1.5},
    {"type": "number", "name": "pressure", "missing": [0, -9, "?"]},
    {"type": "number", "name": "sugar", "missing": [0, -9, "?"]},
    {"type": "category", "name": "ward", "categories": ["red", "blue"], "missing": ["unknown", -9]},
    {"type": "category", "name": "stage", "categories": [1, 2, 3], "missing": [9, "?"]},
    {"type": "category", "name": "smoker", "categories": ["never", "now"], "encode": "drop_first", "missing": ["?"]},
    {"type": "category", "name": "grade", "categories": [0, 1], "encode": "drop_first", "missing": [-1]},
    {"type": "category", "name": "mixed", "categories": ["1_yes", 2]},
    {"type": "category", "name": "sex", "categories": [2, 1, 0], "missing": [7]},
    {"type": "category", "name": "shift", "categories": [3, 1, 2], "encode": "drop_first", "missing": [0, "0.0", 9]},
]


def study(model="logistic", **changes):
    target, words = MODELS[model]
    given = {"name": "raw", "target": TARGETS[target], "features": FEATURES, "validation": {"fraction": 0.0}}
    return Study.model_validate(given | {"model": words, "algorithm": "fedavg"} | changes)


def raw(n=120, seed=0) -> pd.DataFrame:
    """Rows as a hospital has them: every way to be missing, and levels that nobody foresaw."""
    rng = np.random.default_rng(seed)
    frame = {
        "age": rng.choice([np.nan, *rng.normal(60, 10, 30)], n),
        "dose": rng.choice([np.nan, 0.0, 2.5, 1e6], n),
        "pressure": rng.choice([np.nan, 0.0, -9.0, 120.0, 141.5, 95.0], n),
        "sugar": rng.choice([-9.0, *rng.normal(5, 1, 9)], n),
        "ward": rng.choice(np.array(["red", "blue", "green", "unknown", "-9", None], object), n),
        "stage": rng.choice([1.0, 2.0, 3.0, 4.0, 9.0, np.nan], n),
        "smoker": rng.choice(np.array(["never", "now", "then", "?", None], object), n),
        "grade": rng.choice([0.0, 1.0, 2.0, -1.0, np.nan], n),
        "sex": rng.choice([0.0, 1.0, 2.0, 7.0, 5.0, np.nan], n),
        "shift": rng.choice([0.0, 1.0, 2.0, 3.0, 4.0, 9.0, np.nan], n),
        "mixed": rng.choice(np.array(["1_yes", "2", "3", None], object), n),
    }
    return pd.DataFrame(frame)


def table(frame: pd.DataFrame) -> Table:
    """The same rows as a source gives them, with a target."""
    rng = np.random.default_rng(9)
    columns = {"y": rng.normal(size=len(frame)), "label": rng.choice(["a", "b", "3"], len(frame)).astype(object)}
    for name in frame:
        cells = frame[name].to_numpy()
        columns[name] = cells if cells.dtype == np.float64 else np.array([cell or "" for cell in cells], object)
    return Table(columns)


def trained(of):
    """A plan and a state that has trained on two hospitals."""
    plan = build(of)
    cohorts = {site: clean(table(raw(seed=seed)), of, site) for site, seed in (("east", 1), ("west", 2))}
    return plan, list(simulate(plan, cohorts, 2))[-1].state


def predicted(fitted, frame):
    """In the core's shape: a value, a probability of yes, or a probability a class."""
    if not hasattr(fitted, "predict_proba"):
        return fitted.predict(frame)
    probabilities = fitted.predict_proba(frame)
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def by_the_core(plan, state, frame):
    cohort = clean(table(frame), plan.study, "north")
    return plan.family.predict(state.theta, encode_rows(cohort, plan.study, state.statistics, plan.ones).X)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("standardise", ["numbers", "all", "none"])
@pytest.mark.parametrize("model", MODELS)
def test_it_predicts_on_raw_rows_what_the_core_predicts(model, standardise):
    changes = {"algorithm": {"preset": "fedavg", "local": {"rate": 1e-12}}} if standardise == "none" else {}
    plan, state = trained(study(model, preprocess={"standardise": standardise}, **changes))
    frame = raw(300, seed=7)
    expected = by_the_core(plan, state, frame)
    fitted = pipeline(plan, state)
    same(predicted(fitted, frame), expected)
    skops = skops_io()
    stored = skops.dumps(fitted)
    assert skops.get_untrusted_types(data=stored) in ([], ["numpy.dtype"])
    same(predicted(skops.loads(stored, trusted=["numpy.dtype"]), frame), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_it_does_so_whatever_has_trained_it(preset):
    plan, state = trained(study(algorithm=preset))
    frame = raw(50, seed=3)
    same(predicted(pipeline(plan, state), frame), by_the_core(plan, state, frame))


def test_a_study_that_drops_rows_predicts_the_same_on_those_it_keeps_and_fills_the_rest():
    few = [feature for feature in FEATURES if feature["name"] in ("age", "pressure", "ward", "stage", "grade")]
    of = study(features=few, preprocess={"missing": "drop_row"})
    plan = build(of)
    cohorts = {site: clean(table(raw(600, seed)), of, site) for site, seed in (("east", 1), ("west", 2))}
    assert all(cohort.patients > 30 for cohort in cohorts.values())
    state = list(simulate(plan, cohorts, 2))[-1].state
    frame = raw(600, seed=5)
    found = predicted(pipeline(plan, state), frame)
    cohort = clean(table(frame), of, "north")
    kept = ~np.isnan(clean(table(frame), study(features=few), "north").values).any(axis=1)
    assert 30 < cohort.patients == kept.sum() < 600
    same(found[kept], by_the_core(plan, state, frame))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("column", [feature["name"] for feature in FEATURES])
def test_a_column_that_is_missing_in_every_row_is_filled(column):
    plan, state = trained(study())
    frame = raw(20, seed=6)
    frame[column] = np.nan if frame[column].dtype == np.float64 else pd.Series([None] * 20, dtype=object)
    filled = table(frame)
    others = Table({name: cells for name, cells in filled.columns.items() if name != column})
    cohort = clean(others, plan.study, "north", absent=(column,))
    rows = encode_rows(cohort, plan.study, state.statistics, plan.ones)
    same(predicted(pipeline(plan, state), frame), plan.family.predict(state.theta, rows.X))


def test_text_columns_of_pandas_own_type_are_understood():
    plan, state = trained(study())
    frame = raw(60, seed=8)
    typed = frame.astype(dict.fromkeys(("ward", "smoker", "mixed"), "str"))
    same(predicted(pipeline(plan, state), typed), by_the_core(plan, state, frame))


def test_the_columns_order_does_not_matter_and_whole_numbers_may_be_integers():
    plan, state = trained(study())
    frame = raw(40, seed=4)
    frame["age"] = np.arange(40.0, 80.0)
    shuffled = frame[frame.columns[::-1]].astype({"age": "int64"})
    same(predicted(pipeline(plan, state), shuffled), by_the_core(plan, state, frame))


def test_steps_that_are_handed_over_give_the_same_pipeline():
    plan, state = trained(study("mlp binary"))
    frame = raw(30, seed=2)
    steps = preprocessing(plan, state.statistics)
    same(predicted(pipeline(plan, state, steps), frame), predicted(pipeline(plan, state), frame))


def test_the_example_is_made_up_from_the_dictionary():
    of = study(features=[FEATURES[0] | {"range": [18, 100]}, FEATURES[4], FEATURES[5]])
    assert example(of).to_dict("list") == {
        "age": [38.5, 59.0, 79.5],
        "ward": ["red", "blue", "red"],
        "stage": [1, 2, 3],
    }
