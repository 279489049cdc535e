"""DP-SGD: each guarantee of `core/privacy/dpsgd.py`, by hand where it can be."""

from __future__ import annotations

import numpy as np
import pytest

from fedrounds.core.models.linear import Linear, linear
from fedrounds.core.models.logistic import Logistic, logistic
from fedrounds.core.models.mlp import Mlp, mlp
from fedrounds.core.models.multinomial import Multinomial, multinomial
from fedrounds.core.privacy import dpsgd
from fedrounds.core.privacy.dpsgd import Descent, clipping, descend
from fedrounds.core.privacy.noise import Gaussian

MODELS = {
    "linear": (Linear(kind="linear"), linear(4), "regression"),
    "no intercept": (Linear(kind="linear", intercept=False), linear(5, intercept=False), "regression"),
    "logistic": (Logistic(kind="logistic"), logistic(4), "binary"),
    "multinomial": (Multinomial(kind="multinomial"), multinomial(4, 3), "multiclass"),
    "one layer": (Mlp(kind="mlp", hidden=(6,)), mlp(4, (6,), "binary"), "binary"),
    "two layers": (Mlp(kind="mlp", hidden=(6, 5)), mlp(4, (6, 5), "multiclass", 3), "multiclass"),
    "a number": (Mlp(kind="mlp", hidden=(6,)), mlp(4, (6,), "regression"), "regression"),
}


def rows(task, n=40):
    rng = np.random.default_rng(3)
    X = np.hstack([rng.normal(size=(n, 4)) * 2, np.ones((n, 1))])
    y = {
        "regression": rng.normal(size=n) * 3,
        "binary": (rng.random(n) < 0.5) * 1.0,
        "multiclass": rng.integers(0, 3, n) * 1.0,
    }
    return rng, X, y[task]


@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_each_patients_own_gradient(name):
    model, family, task = MODELS[name]
    rng, X, y = rows(task)
    theta = rng.normal(size=family.layout.size)
    by_hand = np.zeros(family.layout.size)
    for i in range(len(y)):
        gradient = family.gradient(theta, X[i : i + 1], y[i : i + 1])
        by_hand += gradient * min(1.0, 0.7 / np.linalg.norm(gradient))
    assert clipping(model, family.layout, task, 0.7)(theta, X, y) == pytest.approx(by_hand, abs=1e-7)
    unclipped = clipping(model, family.layout, task, 1e6)(theta, X, y)
    assert unclipped == pytest.approx(family.gradient(theta, X, y) * len(y), abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_patient_moves_the_sum_by_at_most_the_bound_whatever_is_in_the_row(name):
    model, family, task = MODELS[name]
    rng, X, y = rows(task)
    theta = rng.normal(size=family.layout.size)
    clipped = clipping(model, family.layout, task, 0.5)
    with np.errstate(all="ignore"):  # as `answer.handle` has it
        for wild in (1.0, 1e3, 1e150, 1e300):
            moved = clipped(theta, X * wild, y) - clipped(theta, X[:-1] * wild, y[:-1])
            assert np.linalg.norm(moved) <= 0.5 + 1e-9
        assert np.isfinite(clipped(theta * 1e308, X, y)).all()


def how(size, steps=5, batch=10.0, rate=1.0, sample_rate=0.25, multiplier=1.0):
    return Descent(rate, steps, sample_rate, batch, Gaussian(1.0, multiplier, size))


def test_an_empty_batch_still_noises_and_counts():
    moved = descend(
        lambda theta, X, y: np.zeros(2000), np.zeros(2000), how(2000), np.zeros(2000), np.zeros((0, 5)), np.zeros(0)
    )
    claimed = np.sqrt(5) * how(2000).mechanism.deviation / 10.0  # five steps, divided by the public batch
    assert moved.std() == pytest.approx(claimed, rel=0.1)


def test_a_step_divides_by_the_public_batch_and_not_by_who_is_there():
    alone = how(1, steps=1, sample_rate=1.0, multiplier=0.01)
    ten, forty = (
        descend(
            lambda theta, X, y: np.array([float(len(y))]), np.zeros(1), alone, np.zeros(1), np.ones((n, 1)), np.ones(n)
        )[0]
        for n in (10, 40)
    )
    assert (ten, forty) == pytest.approx((-1.0, -4.0), abs=0.02)


def test_batches_are_drawn_anew_each_step_and_their_size_varies():
    sizes = []

    def clipped(theta, X, y):
        sizes.append(len(y))
        return np.zeros(1)

    descend(clipped, np.zeros(1), how(1, steps=400), np.zeros(1), np.ones((80, 1)), np.ones(80))
    assert len(sizes) == 400
    assert np.mean(sizes) == pytest.approx(20, abs=1)
    assert np.var(sizes) == pytest.approx(80 * 0.25 * 0.75, rel=0.3)


def test_two_rounds_from_the_same_rows_differ():
    model, family, task = MODELS["logistic"]
    _, X, y = rows(task)
    clipped = clipping(model, family.layout, task, 1.0)
    first, second = (descend(clipped, np.zeros(5), how(5), np.zeros(5), X, y) for _ in range(2))
    assert (first != second).all()


def test_the_penalty_pulls_without_noise():
    quiet = how(1, steps=1, multiplier=1e-3, batch=1e9)
    moved = descend(
        lambda theta, X, y: np.zeros(1), np.array([0.1]), quiet, np.array([2.0]), np.ones((3, 1)), np.ones(3)
    )
    assert moved == pytest.approx([1.8])


def test_noise_is_drawn_in_parts_where_it_would_not_fit_at_once(monkeypatch):
    monkeypatch.setattr(dpsgd, "AT_ONCE", 7)
    moved = descend(
        lambda theta, X, y: np.zeros(3), np.zeros(3), how(3, steps=11), np.zeros(3), np.ones((4, 1)), np.ones(4)
    )
    assert (moved != 0).all()
