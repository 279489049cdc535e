"""The model families: their gradients, their predictions, and the scikit-learn estimators they become."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from fedrounds.core.models.linear import linear
from fedrounds.core.models.logistic import logistic
from fedrounds.core.models.mlp import mlp
from fedrounds.core.models.multinomial import multinomial

FEATURES = 4
FAMILIES = {  # name -> (family, what y is: 0 a value, else the number of classes)
    "linear": (linear(FEATURES), 0),
    "linear without intercept": (linear(FEATURES, intercept=False), 0),
    "logistic": (logistic(FEATURES), 2),
    "multinomial of 3": (multinomial(FEATURES, 3), 3),
    "multinomial of 2": (multinomial(FEATURES, 2), 2),
    "mlp regression": (mlp(FEATURES, (5,), "regression"), 0),
    "mlp regression, two layers": (mlp(FEATURES, (5, 3), "regression"), 0),
    "mlp binary": (mlp(FEATURES, (5,), "binary"), 2),
    "mlp binary, two layers": (mlp(FEATURES, (5, 3), "binary"), 2),
    "mlp of 3": (mlp(FEATURES, (5,), "multiclass", 3), 3),
    "mlp of 3, two layers": (mlp(FEATURES, (5, 3), "multiclass", 3), 3),
    "mlp of 2": (mlp(FEATURES, (5,), "multiclass", 2), 2),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def rows(name, n=40):
    """A family, a theta with no zero in it, and rows for it."""
    family, kinds = FAMILIES[name]
    rng = np.random.default_rng(7)
    theta = family.init(rng) + rng.normal(scale=0.5, size=family.layout.size)
    X = rng.normal(size=(n, FEATURES))
    if name != "linear without intercept":
        X = np.column_stack([X, np.ones(n)])
    y = rng.integers(kinds, size=n).astype(float) if kinds else rng.normal(size=n)
    return family, theta, X, y


def probabilities_or_means(estimator, X):
    """What `predict` promises to equal."""
    if not hasattr(estimator, "predict_proba"):
        return estimator.predict(X)
    return estimator.predict_proba(X)


@every_family
def test_gradient_is_the_slope_of_the_mean_loss_and_of_half_of_it_in_regression(name):
    family, theta, X, y = rows(name)
    half = 1.0 if FAMILIES[name][1] else 0.5

    def loss(at):
        return half * family.losses(family.predict(at, X), y).mean()

    step = 1e-6 * np.eye(theta.size)
    slope = [(loss(theta + d) - loss(theta - d)) / 2e-6 for d in step]
    np.testing.assert_allclose(family.gradient(theta, X, y), slope, atol=1e-8)


@every_family
def test_gradient_and_predict_give_the_same_bits_again_and_leave_their_arguments_alone(name):
    family, theta, X, y = rows(name)
    before = theta.copy(), X.copy(), y.copy()
    first = family.gradient(theta, X, y).tobytes(), family.predict(theta, X).tobytes()
    for a, b in zip((theta, X, y), before, strict=True):
        a.setflags(write=False)
        assert a.tobytes() == b.tobytes()
    assert (family.gradient(theta, X, y).tobytes(), family.predict(theta, X).tobytes()) == first
    theta, X, y = before  # elsewhere in memory
    assert (family.gradient(theta, X, y).tobytes(), family.predict(theta, X).tobytes()) == first


@every_family
def test_estimator_predicts_the_same_before_and_after_skops(name):
    from skops.io import dumps, get_untrusted_types, loads

    family, theta, X, _ = rows(name)
    estimator = family.estimator(theta)
    stored = dumps(estimator)
    assert get_untrusted_types(data=stored) == []
    theirs = X[:, :FEATURES]
    ours = family.predict(theta, X)
    for other in (estimator, loads(stored)):
        predicted = probabilities_or_means(other, theirs)
        np.testing.assert_allclose(
            ours, predicted[:, 1] if predicted.ndim > ours.ndim else predicted, rtol=0, atol=1e-12
        )
        if FAMILIES[name][1]:
            chosen = ours.argmax(axis=1) if ours.ndim == 2 else (ours > 0.5).astype(int)
            assert other.predict(theirs).tolist() == chosen.tolist()
            assert other.classes_.tolist() == list(range(FAMILIES[name][1]))


@every_family
def test_estimator_keeps_its_numbers_when_theta_changes_afterwards(name):
    family, theta, X, _ = rows(name)
    estimator = family.estimator(theta)
    before = probabilities_or_means(estimator, X[:, :FEATURES])
    theta[:] = 9.0
    assert np.array_equal(probabilities_or_means(estimator, X[:, :FEATURES]), before)


def test_penalised_marks_all_but_intercepts_and_biases():
    assert linear(2).penalised.tolist() == [1, 1, 0]
    assert linear(2, intercept=False).penalised.tolist() == [1, 1]
    assert logistic(2).penalised.tolist() == [1, 1, 0]
    assert multinomial(2, 3).penalised.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert mlp(2, (2,), "binary").penalised.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 0]
    two = mlp(1, (1, 2), "multiclass", 3)
    assert two.penalised.tolist() == [1, 0] + [1, 1, 0, 0] + [1] * 6 + [0] * 3
    assert two.penalised.dtype == np.float64


def test_layouts_name_the_parts_in_order():
    assert dict(linear(2, intercept=False).layout.shapes) == {"coef": (2,)}
    assert list(linear(2).layout.shapes.items()) == [("coef", (2,)), ("intercept", (1,))]
    assert list(multinomial(2, 3).layout.shapes.items()) == [("coef", (2, 3)), ("intercept", (3,))]
    assert list(mlp(4, (5, 3), "binary").layout.shapes.items()) == [
        ("hidden_1", (5, 5)),
        ("hidden_2", (5, 3)),
        ("hidden_2_bias", (3,)),
        ("output", (3, 1)),
        ("output_bias", (1,)),
    ]


@every_family
def test_init_is_the_same_for_the_same_seed(name):
    family = FAMILIES[name][0]
    start = family.init(np.random.default_rng(3))
    assert start.shape == family.penalised.shape == (family.layout.size,)
    assert start.tobytes() == family.init(np.random.default_rng(3)).tobytes()
    if name.startswith("mlp"):
        assert start.tobytes() != family.init(np.random.default_rng(4)).tobytes()
        assert np.array_equal(start == 0.0, family.penalised == 0.0)  # biases, and nothing else
    else:
        assert not start.any()


def test_init_of_an_mlp_has_the_variances_of_he_and_glorot():
    family = mlp(200, (300, 100), "multiclass", 50)
    parts = family.layout.split(family.init(np.random.default_rng(0)))
    assert parts["hidden_1"][:-1].var() == pytest.approx(2 / 200, rel=0.05)
    assert parts["hidden_2"].var() == pytest.approx(2 / 300, rel=0.05)
    assert parts["output"].var() == pytest.approx(2 / 150, rel=0.05)


def test_numbers_that_can_be_checked_by_hand():
    X, theta = np.array([[1.0, 1.0], [3.0, 1.0]]), np.array([2.0, 1.0])  # predicts 3 and 7
    line, y = linear(1), np.array([1.0, 8.0])
    assert line.predict(theta, X).tolist() == [3, 7]
    assert line.losses(line.predict(theta, X), y).tolist() == [4, 1]
    assert line.gradient(theta, X, y).tolist() == [(2 * 1 - 1 * 3) / 2, (2 - 1) / 2]

    coin, y = logistic(1), np.array([1.0, 0.0])
    assert coin.predict(np.zeros(2), X).tolist() == [0.5, 0.5]
    assert coin.gradient(np.zeros(2), X, y).tolist() == [(-0.5 * 1 + 0.5 * 3) / 2, 0]
    np.testing.assert_allclose(coin.losses(np.array([0.25, 0.25]), y), [np.log(4), np.log(4 / 3)])

    four, y = multinomial(1, 4), np.array([0.0, 3.0])
    assert four.predict(np.zeros(8), X).tolist() == [[0.25] * 4] * 2
    assert four.gradient(np.zeros(8), X, y).tolist() == [0, 0.5, 0.5, -1, -0.25, 0.25, 0.25, -0.25]
    np.testing.assert_allclose(four.losses(np.full((2, 4), 0.25), y), np.log(4))

    # one unit max(0, 2x - 3), then 10u + 1: rows 1 and 3 give units 0 and 3, predictions 1 and 31
    net, weights = mlp(1, (1,), "regression"), np.array([2.0, -3.0, 10.0, 1.0])
    assert net.predict(weights, X).tolist() == [1, 31]
    assert net.gradient(weights, X, np.array([0.0, 29.0])).tolist() == [30, 10, 3, 1.5]


@pytest.mark.parametrize("name", [name for name, (_, kinds) in FAMILIES.items() if kinds])
@pytest.mark.parametrize("size", [1e3, 1e100])
def test_huge_scores_raise_no_warning_and_give_finite_losses(name, size):
    family, theta, X, y = rows(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sign in (size, -size):
            prediction = family.predict(sign * theta, X)
            losses = family.losses(prediction, y)
            assert np.isfinite(family.gradient(sign * theta, X, y)).all()
    assert np.isfinite(prediction).all()
    assert losses.max() == pytest.approx(-np.log(1e-12), rel=1e-4)
    assert losses.min() >= 0


def test_log_losses_of_certainty_are_clipped_on_both_sides():
    certain = np.array([1.0, 0.0, 1.0, 0.0])
    worst, best = -np.log(1e-12), -np.log(1 - 1e-12)
    binary = logistic(1).losses(certain, np.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(binary, [best, best, worst, worst], rtol=1e-12)
    both = multinomial(1, 2).losses(np.column_stack([1 - certain, certain]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert both.tolist() == binary.tolist()


def test_logistic_descends_to_the_optimum_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    family, _, X, _ = rows("logistic", 200)
    y = (np.random.default_rng(1).random(200) < family.predict(np.array([1.0, -2.0, 0.5, 0.0, 0.3]), X)).astype(float)
    theta = family.init(np.random.default_rng(0))
    for _ in range(3000):
        theta -= family.gradient(theta, X, y) + family.penalised * theta / len(y)
    theirs = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000).fit(X[:, :FEATURES], y)
    np.testing.assert_allclose(theta, [*theirs.coef_[0], *theirs.intercept_], rtol=0, atol=1e-6)


def test_multinomial_descends_to_the_optimum_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    family, truth, X, _ = rows("multinomial of 3", 200)
    spread = family.predict(2 * truth, X).cumsum(axis=1)
    y = (np.random.default_rng(1).random((200, 1)) > spread[:, :2]).sum(axis=1).astype(float)
    theta = family.init(np.random.default_rng(0))
    for _ in range(5000):
        theta -= family.gradient(theta, X, y) + family.penalised * theta / len(y)
    theirs = LogisticRegression(C=1.0, tol=1e-12, max_iter=5000).fit(X[:, :FEATURES], y)
    np.testing.assert_allclose(family.predict(theta, X), theirs.predict_proba(X[:, :FEATURES]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(theta[:12].reshape(4, 3).T, theirs.coef_, rtol=0, atol=1e-5)


def test_importing_the_families_loads_neither_scipy_nor_scikit_learn():
    program = (
        "import sys\n"
        "from fedrounds.core.models import linear, logistic, mlp, multinomial\n"
        "sys.exit(bool({'scipy', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
