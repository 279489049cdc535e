"""A study whose sums are hidden, of each kind of model, and rows for its four sites: for tests of masks and of encryption."""

from __future__ import annotations

import numpy as np

from fedrounds.core.masked import TOGETHER
from fedrounds.core.preprocess import clean
from fedrounds.core.study import Study
from fedrounds.core.table import Table

SITES = ("east", "north", "south", "west")
TARGETS = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "multiclass": {"kind": "multiclass", "column": "label", "classes": ["a", "b", "c"]},
}
MODELS = {
    "linear": ("regression", {"kind": "linear", "l2": 0.01}),
    "logistic": ("binary", {"kind": "logistic"}),
    "multinomial": ("multiclass", {"kind": "multinomial", "l2": 0.01}),
    "mlp": ("binary", {"kind": "mlp", "hidden": [4, 3]}),
}


def study(model="logistic", algorithm="fedavg", **protect):
    target, words = MODELS[model]
    return Study.model_validate(
        {
            "name": "masked",
            "patient_id": "id",
            "target": TARGETS[target],
            "features": [
                {"type": "number", "name": "age", "missing": ["?"], "range": [0, 120]},
                {"type": "number", "name": "dose", "missing": [""], "range": [-10, 10]},
                {"type": "category", "name": "ward", "categories": ["red", "blue"], "missing": ["?"]},
            ],
            "model": words,
            "algorithm": algorithm,
            "privacy": {"protect": {"kind": "masked", "batch": 4, **protect}},
        }
    )


def cohorts(of, positive=()):
    """A table for each site, as text, cleaned; some have one class alone."""
    found = {}
    for k, site in enumerate(SITES):
        rng, n = np.random.default_rng(k), 30 + 10 * k
        y = np.abs(rng.normal(size=n)) + 0.1 if site in positive else rng.normal(size=n)
        columns = {
            "id": [f"{site}{i}" for i in range(n)],
            "age": [
                "?" if gap else f"{a:.2f}" for a, gap in zip(rng.normal(50, 9, n), rng.random(n) < 0.1, strict=True)
            ],
            "dose": [f"{value:.3f}" for value in np.clip(y, -3, 3)],
            "ward": rng.choice(["red", "blue", "green", "?"], n).tolist(),
            "y": [f"{value:.4f}" for value in y],
            "label": rng.choice(["a", "b", "c"], n).tolist(),
        }
        found[site] = clean(Table({name: np.array(cells, object) for name, cells in columns.items()}), of, site)
    return found


def close(hidden, plain, atol):
    """The same statistics, model and scores, of all sites together."""
    for name, array in plain[-1].state.statistics.items():
        np.testing.assert_allclose(hidden[-1].state.statistics[name], array, rtol=1e-7, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(hidden[-1].state.theta, plain[-1].state.theta, rtol=0, atol=atol)
    assert hidden[-1].scores.keys() == {TOGETHER}
    together = np.sum([sums for sums, _ in plain[-1].scores.values()], axis=0)
    found = hidden[-1].scores[TOGETHER][0]
    assert found[0] == together[0]
    np.testing.assert_allclose(
        found[1:3], together[1:3], rtol=1e-6 + 30 * atol, atol=4 * 2.0**-10
    )  # squares: steps of 2^-9
    assert abs(found[3] - together[3]) <= 1e-2 + 2 * (
        atol > 1e-6
    )  # a prediction on the edge may fall on its other side
    assert hidden[-1].scores[TOGETHER][1].sum() == sum(cells.sum() for _, cells in plain[-1].scores.values())
