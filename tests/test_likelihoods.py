"""The log-likelihoods of ordinal and negative binomial regression: by the book, their slopes by differences, their optimum by statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import skops.io
from scipy.stats import nbinom

from fedrounds.core.errors import DataContractError
from fedrounds.core.models.negative_binomial import count_likelihood, negative_binomial
from fedrounds.core.models.ordinal import ordinal, ordinal_likelihood

N, P, K = 240, 3, 4
SLOPE = np.array([1.0, -0.5, 0.3])


def grades(scale=1.0):
    """Rows with ones, and classes in order by proportional odds."""
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.normal(size=(N, P)), np.ones(N)])
    return X, np.digitize(scale * X[:, :P] @ SLOPE + rng.logistic(size=N), [-1.0, 0.0, 2.0]).astype(float)


def counts(alpha=0.7, mean=3.0):
    """Rows with ones, and counts that vary more than a Poisson's."""
    rng = np.random.default_rng(4)
    X = np.column_stack([rng.normal(size=(N, P)), np.ones(N)])
    expected = mean * np.exp(0.5 * X[:, :P] @ SLOPE)
    return X, rng.negative_binomial(1 / alpha, 1 / (1 + alpha * expected)).astype(float)


def slopes(value, at, step=1e-6):
    """Central differences of a function of a vector, the vector's places first."""
    return np.array([(value(at + step * e) - value(at - step * e)) / (2 * step) for e in np.eye(len(at))])


def check_slopes(likelihood, theta):
    _, gradient, information = likelihood(theta)
    scale = max(1.0, np.abs(information).max())
    np.testing.assert_allclose(gradient, slopes(lambda t: likelihood(t)[0], theta), atol=3e-9 * scale)
    np.testing.assert_allclose(information, -slopes(lambda t: likelihood(t)[1], theta), atol=3e-9 * scale)


# --- ordinal ----------------------------------------------------------------------------------------------------------

THRESHOLDS = np.array([0.5, -0.1, 0.2, -1.0, -0.2, 1.5])


def graded(theta, scale=1.0):
    X, y = grades(scale)
    return ordinal_likelihood(theta, X, y, P, K)


def test_the_ordinal_likelihood_is_that_of_its_probabilities():
    X, y = grades()
    probability = ordinal(P, K).predict(THRESHOLDS, X)
    np.testing.assert_allclose(probability.sum(1), 1.0, atol=1e-15)
    assert graded(THRESHOLDS)[0] == pytest.approx(np.log(probability[np.arange(N), y.astype(int)]).sum(), rel=1e-13)


@pytest.mark.parametrize("theta", [THRESHOLDS, ordinal(P, K).init(np.random.default_rng(0)), 4 * THRESHOLDS])
def test_slopes_of_the_ordinal_likelihood(theta):
    check_slopes(graded, theta)


def test_the_ordinal_likelihood_loses_no_digits_in_the_tails():
    X = np.array([[800.0, 1.0], [-800.0, 1.0], [800.0, 1.0]])
    value, gradient, _ = ordinal_likelihood(np.array([1.0, -1.0, 1.0]), X, np.array([0.0, 2.0, 1.0]), 1, 3)
    between = -(800.0 - 1.0) + np.log1p(-np.exp(-2.0))  # log(σ(1 - 800) - σ(-1 - 800))
    assert value == pytest.approx(-801.0 - 801.0 + between, rel=1e-14)
    assert np.isfinite(gradient).all()


def test_thresholds_that_do_not_increase_are_impossible():
    value, gradient, information = graded(np.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.0]))
    assert value == -np.inf
    assert not gradient.any()
    assert not information.any()


def test_an_ordinal_model_starts_with_even_probabilities():
    family = ordinal(P, K)
    np.testing.assert_allclose(family.predict(family.init(np.random.default_rng(0)), grades()[0]), 1 / K, atol=1e-15)


def test_an_ordinal_model_of_two_classes_is_a_logistic_one():
    X, y = grades()
    y = (y > 1).astype(float)
    value, _, _ = ordinal_likelihood(np.array([*SLOPE, 0.3]), X, y, P, 2)
    risk = 1 / (1 + np.exp(0.3 - X[:, :P] @ SLOPE))
    assert value == pytest.approx(np.log(np.where(y == 1, risk, 1 - risk)).sum(), rel=1e-13)


def test_an_ordinal_model_is_exactly_a_network_of_scikit_learn():
    X, _ = grades()
    family = ordinal(P, K)
    fitted = skops.io.loads(skops.io.dumps(family.estimator(THRESHOLDS)), trusted=["numpy.dtype"])
    np.testing.assert_allclose(fitted.predict_proba(X[:, :P]), family.predict(THRESHOLDS, X), atol=1e-15)
    np.testing.assert_array_equal(fitted.predict(X[:, :P]), family.predict(THRESHOLDS, X).argmax(1))


# --- negative binomial ------------------------------------------------------------------------------------------------


def counted(theta):
    return count_likelihood(theta, *counts())


@pytest.mark.parametrize("log_alpha", [-15.0, -6.0, -0.5, 2.0])
def test_the_count_likelihood_is_that_of_the_negative_binomial(log_alpha):
    X, y = counts()
    theta = np.array([0.5, -0.1, 0.2, 0.8, log_alpha])
    alpha, mean = np.exp(log_alpha), np.exp(X @ theta[:-1])
    expected = nbinom.logpmf(y, 1 / alpha, 1 / (1 + alpha * mean)).sum()  # loses digits where alpha is small
    assert counted(theta)[0] == pytest.approx(expected, rel=1e-6 if log_alpha < -10 else 1e-11)
    check_slopes(counted, theta)


def test_the_count_likelihood_goes_over_into_the_poisson():
    X, y = counts()
    from scipy.stats import poisson

    theta = np.array([0.5, -0.1, 0.2, 0.8, -30.0])
    assert counted(theta)[0] == pytest.approx(poisson.logpmf(y, np.exp(X @ theta[:-1])).sum(), rel=1e-11)


@pytest.mark.parametrize("wrong", [-1.0, 0.5, 2e7, np.inf])
def test_what_is_no_count_is_refused_without_its_value(wrong):
    X, y = counts()
    y[5] = wrong
    with pytest.raises(DataContractError, match="expected counts as the target") as refused:
        count_likelihood(np.zeros(P + 2), X, y)
    assert f"{wrong:g}" not in str(refused.value)


def test_a_negative_binomial_model_predicts_as_scikit_learn_does():
    X, _ = counts()
    family = negative_binomial(P)
    theta = np.array([0.5, -0.1, 0.2, 0.8, -0.5])
    np.testing.assert_allclose(family.estimator(theta).predict(X[:, :P]), family.predict(theta, X), rtol=1e-14)
