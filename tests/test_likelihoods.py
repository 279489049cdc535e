"""The log-likelihoods of ordinal and negative binomial regression: by the book, their slopes by differences, their optimum by statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from by_sums import SPLITS, fit_by_sums
from scipy.special import expit
from scipy.stats import nbinom, poisson

from fedrounds.core.errors import NoFit
from fedrounds.core.models.negative_binomial import (
    NegativeBinomial,
    count_likelihood,
    negative_binomial,
    overdispersed_counts,
)
from fedrounds.core.models.ordinal import ordinal, ordinal_likelihood, proportional_odds
from fedrounds.core.strategy import Exact
from fedrounds.tasks.lean import skops_io

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
    fitted = skops_io().loads(skops_io().dumps(family.estimator(THRESHOLDS)), trusted=["numpy.dtype"])
    np.testing.assert_allclose(fitted.predict_proba(X[:, :P]), family.predict(THRESHOLDS, X), atol=1e-15)
    np.testing.assert_array_equal(fitted.predict(X[:, :P]), family.predict(THRESHOLDS, X).argmax(1))


# --- negative binomial ------------------------------------------------------------------------------------------------


def counted(theta):
    return count_likelihood(theta, *counts())


@pytest.mark.parametrize("alpha", [1e-6, 0.003, 0.6, 7.0])
def test_the_count_likelihood_is_that_of_the_negative_binomial(alpha):
    X, y = counts()
    theta = np.array([0.5, -0.1, 0.2, 0.8, alpha])
    mean = np.exp(X @ theta[:-1])
    expected = nbinom.logpmf(y, 1 / alpha, 1 / (1 + alpha * mean)).sum()  # loses digits where alpha is small
    assert counted(theta)[0] == pytest.approx(expected, rel=1e-7 if alpha < 1e-5 else 1e-11)
    if alpha > 1e-5:
        check_slopes(counted, theta)


def test_the_count_likelihood_at_alpha_zero_is_the_poissons():
    X, y = counts()
    theta = np.array([0.5, -0.1, 0.2, 0.8, 0.0])
    mean = np.exp(X @ theta[:-1])
    value, gradient, _ = counted(theta)
    assert value == pytest.approx(poisson.logpmf(y, mean).sum(), rel=1e-12)
    assert gradient[-1] == pytest.approx((((y - mean) ** 2 - y) / 2).sum(), rel=1e-12)  # Cameron and Trivedi, eq. 3.39


def test_the_count_likelihood_is_smooth_where_its_series_takes_over():
    X, y = counts()
    below, above = (
        count_likelihood(np.array([0.0, 0.0, 0.0, 0.0, alpha]), X, y) for alpha in (0.02 - 1e-12, 0.02 + 1e-12)
    )
    for a, b in zip(below, above, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_a_negative_binomial_model_predicts_as_scikit_learn_does():
    X, _ = counts()
    family = negative_binomial(P)
    theta = np.array([0.5, -0.1, 0.2, 0.8, 0.6])
    fitted = skops_io().loads(skops_io().dumps(family.estimator(theta)), trusted=["numpy.dtype"])
    np.testing.assert_allclose(fitted.predict(X[:, :P]), family.predict(theta, X), rtol=1e-14)


@pytest.mark.parametrize("wrong", [-1.0, 0.5, 2e7, np.inf])
def test_what_is_no_count_is_impossible(wrong):
    model = NegativeBinomial(kind="negative_binomial")
    assert model.impossible(np.array([0.0, 3.0, np.nan])) == ""
    assert model.impossible(np.array([0.0, wrong])) == "whole numbers from 0 to 10,000,000"


# --- fits -------------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
SETTINGS = Exact(preset="exact")
over_sites = pytest.mark.parametrize("split", SPLITS)


def fit_grades(X, y, split, l2=0.0, names=NAMES, classes=K):
    family = ordinal(len(names), classes)
    rule = proportional_odds(names, classes, SETTINGS, l2)
    return fit_by_sums(rule, X, y, SPLITS[split](len(y)), family.init(np.random.default_rng(0)))


def fit_counts(X, y, split, l2=0.0, names=NAMES):
    rule = overdispersed_counts(names, SETTINGS, l2)
    return fit_by_sums(rule, X, y, SPLITS[split](len(y)), np.zeros(len(names) + 2))


@over_sites
def test_the_ordinal_fit_is_the_pooled_optimum(split):
    X, y = grades()
    solved, exchanges = fit_grades(X, y, split)
    oracle = np.concatenate([np.zeros(P), [-1.0, 0.0, 1.0]])
    for _ in range(30):  # the book's formula for the score: dP/P, by differences of σ
        at, score = np.append(np.insert(oracle[P:], 0, -np.inf), np.inf), X[:, :P] @ oracle[:P]
        b, a = expit(at[y.astype(int) + 1] - score), expit(at[y.astype(int)] - score)
        db, da, p = b * (1 - b), a * (1 - a), b - a
        J = np.zeros((N, P + K - 1))  # of log p
        J[:, :P] = -((db - da) / p)[:, None] * X[:, :P]
        for j in range(K - 1):
            J[:, P + j] = (np.where(y == j, db, 0) - np.where(y == j + 1, da, 0)) / p
        gradient = J.sum(0)
        if np.abs(gradient).max() < 1e-9:
            break
        oracle = oracle + np.linalg.solve(J.T @ J, gradient)  # Berndt, Hall, Hall and Hausman
    assert np.abs(gradient).max() < 1e-9
    np.testing.assert_allclose(solved.theta, oracle, rtol=0, atol=1e-8)
    assert exchanges < 12


def test_the_ordinal_fit_is_that_of_statsmodels():
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    X, y = grades()
    solved, _ = fit_grades(X, y, "four uneven sites")
    model = OrderedModel(y.astype(int), X[:, :P], distr="logit")
    theirs = model.fit(method="bfgs", disp=0, gtol=1e-9, maxiter=1000)
    np.testing.assert_allclose(solved.theta[:P], theirs.params[:P], atol=1e-6)
    np.testing.assert_allclose(solved.theta[P:], model.transform_threshold_params(theirs.params)[1:-1], atol=1e-6)
    assert solved.facts["log_likelihood"][0] == pytest.approx(theirs.llf, abs=1e-9)
    errors = np.sqrt(np.diag(np.linalg.inv(solved.facts["information"])))
    np.testing.assert_allclose(errors[:P], theirs.bse[:P], rtol=1e-5)  # theirs are by numerical differences
    assert solved.facts["rows"][0] == N


@over_sites
@pytest.mark.parametrize(("alpha", "mean"), [(0.7, 3.0), (0.05, 200.0), (8.0, 0.3), (0.001, 20_000.0)])
def test_the_count_fit_is_the_pooled_optimum_and_that_of_statsmodels(split, alpha, mean):
    from statsmodels.discrete.discrete_model import NegativeBinomial as Pooled

    X, y = counts(alpha, mean)
    solved, exchanges = fit_counts(X, y, split)
    model, oracle = Pooled(y, X), solved.theta * (1 + 1e-3)
    model._transparams = False  # by alpha, not its logarithm
    for _ in range(20):
        oracle = oracle - np.linalg.solve(model.hessian(oracle), model.score(oracle))
    assert np.abs(model.score(oracle)).max() < 1e-7 * max(1.0, y.mean())
    np.testing.assert_allclose(solved.theta, oracle, rtol=1e-6, atol=1e-6)
    assert solved.facts["log_likelihood"][0] == pytest.approx(model.loglike(oracle), abs=1e-6)
    np.testing.assert_allclose(solved.facts["information"], -model.hessian(oracle), rtol=1e-4, atol=1e-3)
    assert exchanges < 20


def test_the_penalty_leaves_intercepts_thresholds_and_alpha_free():
    X, y = grades()
    solved, _ = fit_grades(X, y, "two sites", l2=0.3)
    _, gradient, _ = ordinal_likelihood(solved.theta, X, y, P, K)
    np.testing.assert_allclose(gradient / N, [*(0.3 * solved.theta[:P]), 0, 0, 0], atol=1e-10)
    X, y = counts()
    solved, _ = fit_counts(X, y, "two sites", l2=0.3)
    np.testing.assert_allclose(
        count_likelihood(solved.theta, X, y)[1] / N, [*(0.3 * solved.theta[:P]), 0, 0], atol=1e-9
    )


def test_a_row_that_counts_twice_is_two_rows():
    weight = np.where(np.arange(N) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(N), weight.astype(int))
    for likelihood, (X, y), theta in (
        (lambda *of: ordinal_likelihood(*of[:3], P, K, *of[3:]), grades(), THRESHOLDS),
        (count_likelihood, counts(), np.array([0.5, -0.1, 0.2, 0.8, 0.6])),
    ):
        for a, b in zip(likelihood(theta, X, y, weight), likelihood(theta, X[twice], y[twice]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_an_ordinal_class_that_nobody_has_is_named():
    X, y = grades()
    with pytest.raises(NoFit, match=r"expected training patients of every class .* found none of class 5 of 5"):
        fit_grades(X, y, "two sites", classes=5)


def test_columns_bound_together_are_named():
    X, y = grades()
    with pytest.raises(NoFit, match="bound together"):
        fit_grades(np.column_stack([X[:, :P], X[:, 0] - X[:, 1], X[:, P]]), y, "two sites", names=(*NAMES, "d"))
    X, y = counts()
    with pytest.raises(NoFit, match="bound together"):
        fit_counts(np.column_stack([X[:, :P], X[:, 0] - X[:, 1], X[:, P]]), y, "two sites", names=(*NAMES, "d"))
    with pytest.raises(NoFit, match="'b' the same for all"):
        fit_counts(X * [1, 0, 1, 1], y, "two sites")


@pytest.mark.parametrize("split", ["one site", "four uneven sites"])
def test_an_outcome_that_a_column_decides_is_refused_by_its_name(split):
    X, y = grades()
    y = np.digitize(X[:, 1], [-0.5, 0.4, 1.0]).astype(float)
    with pytest.raises(NoFit, match=r"found that .*b"):
        fit_grades(X, y, split)


def test_counts_that_vary_no_more_than_a_poissons_are_refused():
    X, _ = counts()
    y = np.round(np.exp(0.5 * X[:, :P] @ SLOPE + 1.0))
    with pytest.raises(NoFit, match="take the poisson model"):
        fit_counts(X, y, "two sites")
    with pytest.raises(NoFit, match="every one 0"):
        fit_counts(X, np.zeros(N), "two sites")
