"""Metrics from sums: what is pooled from sites equals what scikit-learn finds on all rows together."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from fedrounds.core.evaluate import auc, calibration, metrics, score, total, training_loss
from fedrounds.core.models.family import binary_log_losses, class_log_losses, squared_errors

RNG = np.random.default_rng(6)
SITES = {"west": slice(0, 40), "east": slice(40, 50), "north": slice(50, 300)}  # unequal, and not in name order


def pooled(task, prediction, losses, y, bins=50):
    """Every site scores its own rows; the metrics of the total."""
    parts = {site: score(task, prediction[rows], losses[rows], y[rows], bins) for site, rows in SITES.items()}
    return metrics(task, *total(parts))


def test_regression_metrics_are_scikit_learns_on_all_rows():
    y = RNG.normal(5, 2, 300)
    prediction = y + RNG.normal(size=300)
    found = pooled("regression", prediction, squared_errors(prediction, y), y)
    assert found == pytest.approx(
        {
            "n": 300,
            "mse": sk.mean_squared_error(y, prediction),
            "rmse": sk.root_mean_squared_error(y, prediction),
            "r2": sk.r2_score(y, prediction),
        },
        rel=1e-12,
    )


def binary_rows():
    p = RNG.beta(2, 2, 300)
    return p, (RNG.random(300) < p).astype(float)


def test_binary_metrics_are_scikit_learns_on_all_rows_and_auc_is_so_within_its_stated_error():
    p, y = binary_rows()
    found = pooled("binary", p, binary_log_losses(p, y), y)
    assert found["n"] == 300
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p), rel=1e-12)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p), rel=1e-12)
    assert found["accuracy"] == sk.accuracy_score(y, p > 0.5)
    exact = sk.roc_auc_score(y, p)
    assert abs(found["auc"] - exact) <= found["auc_error"] < 0.02
    fine = pooled("binary", p, binary_log_losses(p, y), y, bins=10_000)
    assert abs(fine["auc"] - exact) <= fine["auc_error"] < 2e-4


def test_probabilities_that_are_bin_edges_lose_nothing():
    p = RNG.integers(0, 11, 300) / 10
    y = (RNG.random(300) < p).astype(float)
    assert pooled("binary", p, p, y, bins=10)["auc"] == pytest.approx(
        sk.roc_auc_score(y, np.minimum(p, 0.9)), abs=1e-12
    )


def test_multiclass_metrics_are_scikit_learns_on_all_rows():
    p = RNG.dirichlet([1, 1, 1], 300)
    y = np.array([RNG.choice(3, p=row) for row in p]).astype(float)
    found = pooled("multiclass", p, class_log_losses(p, y), y, bins=10_000)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p), rel=1e-9)
    assert found["brier"] == pytest.approx(((p - np.eye(3)[y.astype(int)]) ** 2).sum() / 300, rel=1e-12)
    assert found["accuracy"] == sk.accuracy_score(y, p.argmax(1))
    exact = sk.roc_auc_score(y, p, multi_class="ovr", average="macro")
    assert abs(found["auc"] - exact) <= found["auc_error"] < 2e-3


def test_a_metric_that_the_rows_cannot_carry_is_absent():
    none = np.zeros(0)
    assert metrics("binary", *score("binary", none, none, none, 10)) == {"n": 0.0}
    assert metrics("regression", *score("regression", none, none, none, 10)) == {"n": 0.0}
    assert metrics("multiclass", *score("multiclass", np.zeros((0, 3)), none, none, 10)) == {"n": 0.0}
    ones = np.ones(3)
    assert "auc" not in metrics("binary", *score("binary", ones / 2, ones, ones, 10))
    assert "r2" not in metrics("regression", *score("regression", ones, ones, ones, 10))


def test_the_area_counts_pairs_and_halves_ties():
    assert auc(np.array([[2.0, 0.0], [0.0, 2.0]])) == (1.0, 0.0)
    assert auc(np.array([[0.0, 2.0], [2.0, 0.0]])) == (0.0, 0.0)
    assert auc(np.array([[3.0, 0.0], [5.0, 0.0]])) == (0.5, 0.5)
    assert auc(np.array([[3.0, 0.0], [0.0, 0.0]])) is None


def test_the_total_adds_in_name_order_so_that_arrival_changes_no_bit():
    parts = {site: (RNG.normal(size=4), RNG.normal(size=(1, 2, 5))) for site in "cab"}
    forward, backward = total(parts), total(dict(reversed(parts.items())))
    assert forward[0].tobytes() == backward[0].tobytes()
    assert forward[1].tobytes() == backward[1].tobytes()


def test_calibration_of_honest_probabilities_lies_on_the_diagonal():
    p = RNG.random(100_000)
    y = (RNG.random(100_000) < p).astype(float)
    predicted, observed, rows = calibration(score("binary", p, p, y, 50)[1][0])
    assert rows.sum() == 100_000
    np.testing.assert_allclose(predicted, np.arange(0.05, 1, 0.1), atol=0.005)
    np.testing.assert_allclose(observed, predicted, atol=0.02)


def test_calibration_leaves_out_empty_groups():
    histogram = np.zeros((2, 50))
    histogram[:, 0] = 3, 1
    predicted, observed, rows = calibration(histogram)
    assert (predicted.tolist(), observed.tolist(), rows.tolist()) == ([0.01], [0.25], [4])


def test_the_training_loss_is_the_mean_of_the_sites_plain_and_by_their_weights():
    assert training_loss({"a": (10, 1.0, 0.6), "b": (20, 4.0, 0.4)}) == pytest.approx((0.15, 0.14), abs=1e-15)
    assert training_loss({"a": (10, 1.0, 10), "b": (30, 6.0, 30)}) == pytest.approx((0.15, 0.175), abs=1e-15)
