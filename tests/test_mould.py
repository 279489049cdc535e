"""A model's file that parameters are poured into anew says what skops would have written, or is not used."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.linear_model import LinearRegression

from fedrounds.core.export import pipeline
from fedrounds.core.plan import build
from fedrounds.core.study import Study
from fedrounds.tasks.lean import skops_io
from fedrounds.tasks.model_folder import ModelFolder
from fedrounds.tasks.mould import Mould, cast, parameters
from fedrounds.tasks.track import TRUSTED, _save

TARGETS = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "label", "classes": ["a", "b", "c"]},
}
MODELS = {
    "linear": ("regression", {"kind": "linear"}),
    "linear without intercept": ("regression", {"kind": "linear", "intercept": False}),
    "logistic": ("binary", {"kind": "logistic"}),
    "multinomial": ("multiclass", {"kind": "multinomial"}),
    **{f"mlp {target}": (target, {"kind": "mlp", "hidden": [5, 3]}) for target in TARGETS},
}
FEATURES = [
    {"type": "number", "name": "age"},
    {"type": "number", "name": "sugar", "missing": [0, -9]},
    {"type": "category", "name": "ward", "categories": ["red", "blue"], "missing": ["unknown"]},
]


def study(model="logistic", **changes):
    target, words = MODELS[model]
    given = {"name": "raw", "target": TARGETS[target], "features": FEATURES, "validation": {"fraction": 0.0}}
    return Study.model_validate(given | {"model": words, "algorithm": "fedavg"} | changes)


def trained(of):
    """A plan and a state: parameters and statistics of nobody."""
    plan, rng = build(of), np.random.default_rng(1)
    width = len(plan.columns)
    agreed = {"impute": np.array([50.0, 6.0, 1.0]), "center": rng.normal(size=width), "scale": rng.uniform(1, 2, width)}
    state = plan.start(agreed)
    return plan, replace(state, theta=rng.normal(size=len(state.theta)))


def raw() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    ward = rng.choice(np.array(["red", "blue", "green", "unknown", None], object), 50)
    return pd.DataFrame({"age": rng.normal(60, 9, 50), "sugar": rng.choice([np.nan, -9.0, 5.5], 50), "ward": ward})


def predicted(fitted, frame):
    return getattr(fitted, "predict_proba" if hasattr(fitted, "predict_proba") else "predict")(frame)


@pytest.mark.parametrize("model", MODELS)
def test_a_filled_mould_is_the_model_to_the_bit(model):
    plan, state = trained(study(model))
    made = cast(state, lambda state: pipeline(plan, state), skops_io().dumps(pipeline(plan, state)))
    assert made is not None
    theta = np.random.default_rng(5).normal(size=len(state.theta))
    theta[:2] = 0.0, -1e-300
    found = skops_io().loads(made[1].filled(theta), trusted=TRUSTED)
    expected = pipeline(plan, replace(state, theta=theta))
    frame = raw()
    np.testing.assert_array_equal(predicted(found, frame), predicted(expected, frame))
    for name, value in vars(expected[-1]).items():
        np.testing.assert_equal(vars(found[-1])[name], value) if name != "_label_binarizer" else None


def test_a_model_that_does_not_hold_every_parameter_once_has_no_mould():
    theta = parameters(4)
    for made in (theta[1:] - theta[:1], np.append(theta[:3], 0.5), theta[:3], np.append(theta, theta)):
        fitted = LinearRegression()
        fitted.coef_, fitted.intercept_ = made, 0.0
        assert Mould.of(skops_io().dumps(fitted), 4) is None


def test_a_mould_that_gives_another_model_is_refused():
    plan, state = trained(study("logistic"))
    other = skops_io().dumps(pipeline(plan, replace(state, theta=state.theta + 1e-9)))
    assert cast(state, lambda state: pipeline(plan, state), other) is None


# --- kept for the next run --------------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise AssertionError("MLflow wrote the folder, though one was kept")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory):
    """A plan, a state and the folder that a first run left, its kept file beside it."""
    plan, state = trained(study("logistic"))
    place = tmp_path_factory.mktemp("kept")
    ModelFolder(plan, _save, place / "kept.zip").write(state, "a", place / "model")
    return plan, state, place


def test_a_later_run_needs_no_skops_and_writes_the_same_folder(kept, tmp_path):
    plan, state, place = kept
    ModelFolder(plan, refuse, place / "kept.zip").write(state, "a", tmp_path / "model")
    first, later = ({file.name: file for file in folder.iterdir()} for folder in (place / "model", tmp_path / "model"))
    assert first.keys() == later.keys()
    for name in first.keys() - {"model.skops", "MLmodel"}:
        assert first[name].read_bytes() == later[name].read_bytes()
    one, two = (yaml.safe_load(files["MLmodel"].read_text()) for files in (first, later))
    assert {key for key in one if one[key] != two[key]} == {"model_uuid", "utc_time_created"}
    one, two = (skops_io().load(files["model.skops"], trusted=TRUSTED) for files in (first, later))
    np.testing.assert_array_equal(predicted(one, raw()), predicted(two, raw()))


def test_other_statistics_are_another_model(kept, tmp_path):
    plan, state, place = kept
    moved = replace(state, statistics={**state.statistics, "impute": state.statistics["impute"] + 1})
    shutil.copy(place / "kept.zip", tmp_path / "kept.zip")
    ModelFolder(plan, _save, tmp_path / "kept.zip").write(moved, "b", tmp_path / "model")
    found = skops_io().load(tmp_path / "model" / "model.skops", trusted=TRUSTED)
    np.testing.assert_array_equal(predicted(found, raw()), predicted(pipeline(plan, moved), raw()))


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: _flipped(whole), lambda _: b""]
)
def test_a_damaged_file_is_not_taken_up(kept, tmp_path, damage):
    plan, state, place = kept
    (tmp_path / "kept.zip").write_bytes(damage((place / "kept.zip").read_bytes()))
    folder = ModelFolder(plan, _save, tmp_path / "kept.zip")
    folder.write(state, "b", Path(tmp_path / "model"))
    found = skops_io().load(tmp_path / "model" / "model.skops", trusted=TRUSTED)
    np.testing.assert_array_equal(predicted(found, raw()), predicted(pipeline(plan, state), raw()))
    assert (tmp_path / "kept.zip").stat().st_size == (place / "kept.zip").stat().st_size


def _flipped(whole: bytes) -> bytes:
    """One bit of a parameter."""
    at = whole.index(parameters(1).tobytes()[:8])
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
