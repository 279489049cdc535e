"""Naive Bayes, k-means and principal components by sums over sites: scikit-learn's fit of all rows in one place."""

from __future__ import annotations

import numpy as np
import pytest
from by_sums import SPLITS, fit_by_sums
from pydantic import ValidationError
from sklearn.cluster import KMeans as PooledKMeans
from sklearn.decomposition import PCA
from sklearn.naive_bayes import GaussianNB

from fedrounds.core.errors import NoFit, StudyError
from fedrounds.core.models.kmeans import KMeans, distances, kmeans, lloyd
from fedrounds.core.models.naive_bayes import class_moments, naive_bayes
from fedrounds.core.models.pca import covariance, pca

N, P = 400, 5
over_sites = pytest.mark.parametrize("split", SPLITS)
far_from_zero = pytest.mark.parametrize("offset", [0.0, 1e6])
EXACT = {"rtol": 0, "atol": 1e-8}


def patients(offset=0.0, classes=2):
    """Rows of columns of many scales that differ by class, with ones; the first class's rows stand first."""
    rng = np.random.default_rng(11)
    y = np.sort(rng.integers(classes, size=N)).astype(float)
    X = rng.normal(size=(N, P)) * [1.0, 2.0, 3.0, 0.1, 1.0] + y[:, None] * [0.5, 3.0, -4.0, 0.0, 1.0] + offset
    return np.column_stack([X, np.ones(N)]), y


# --- naive Bayes ------------------------------------------------------------------------------------------------------


@over_sites
@far_from_zero
@pytest.mark.parametrize("classes", [2, 4])
def test_naive_bayes_of_sums_is_that_of_all_rows(split, offset, classes):
    X, y = patients(offset, classes)
    solved, exchanges = fit_by_sums(class_moments(P, classes), X, y, SPLITS[split](N))
    pooled = GaussianNB().fit(X[:, :P], y)
    family = naive_bayes(P, classes)
    parts = family.layout.split(solved.theta)
    assert exchanges == 2
    np.testing.assert_allclose(parts["mean"], pooled.theta_, **EXACT)
    np.testing.assert_allclose(parts["variance"], pooled.var_, **EXACT)
    np.testing.assert_allclose(parts["smoothing"], pooled.epsilon_, **EXACT)
    np.testing.assert_array_equal(parts["rows"], pooled.class_count_)
    probability = pooled.predict_proba(X[:, :P])
    expected = probability[:, 1] if classes == 2 else probability
    np.testing.assert_allclose(family.predict(solved.theta, X), expected, **EXACT)
    np.testing.assert_allclose(family.estimator(solved.theta).predict_proba(X[:, :P]), probability, **EXACT)


def test_naive_bayes_smooths_by_the_largest_variance_of_all_rows():
    X, y = patients(classes=3)
    X[:, 2] = y * 40.0  # varies between classes alone
    solved, _ = fit_by_sums(class_moments(P, 3, var_smoothing=0.01), X, y, SPLITS["four uneven sites"](N))
    pooled = GaussianNB(var_smoothing=0.01).fit(X[:, :P], y)
    parts = naive_bayes(P, 3).layout.split(solved.theta)
    np.testing.assert_allclose(parts["variance"], pooled.var_, rtol=1e-10)
    np.testing.assert_allclose(parts["smoothing"], pooled.epsilon_, rtol=1e-12)


def test_naive_bayes_takes_a_site_of_one_class():
    X, y = patients()
    sites = [np.flatnonzero(y == 0), np.flatnonzero(y == 1)]
    solved, _ = fit_by_sums(class_moments(P, 2), X, y, sites)
    np.testing.assert_allclose(
        naive_bayes(P, 2).layout.split(solved.theta)["mean"], GaussianNB().fit(X[:, :P], y).theta_, **EXACT
    )


def test_naive_bayes_names_a_class_that_nobody_has_or_too_few():
    X, y = patients()
    with pytest.raises(NoFit, match=r"found none of class 3 of 3"):
        fit_by_sums(class_moments(P, 3), X, y, SPLITS["two sites"](N))
    y[:9], y[9:] = 0.0, 1.0
    with pytest.raises(NoFit, match=r"expected 10 training patients of every class .* found fewer of class 1"):
        fit_by_sums(class_moments(P, 2, fewest=10), X, y, SPLITS["two sites"](N))


def test_naive_bayes_refuses_columns_that_are_all_constant_to_their_last_digits():
    X, y = np.full((N, P + 1), 0.1), patients()[1]
    with pytest.raises(NoFit, match="every one constant"):
        fit_by_sums(class_moments(P, 2), X, y, SPLITS["four uneven sites"](N))


# --- k-means ----------------------------------------------------------------------------------------------------------


@over_sites
@far_from_zero
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-10])
def test_k_means_of_sums_is_that_of_all_rows(split, offset, tolerance):
    X, y = patients(offset, 4)
    starts = X[[3, 150, 250, 399], :P]
    solved, _ = fit_by_sums(lloyd(starts, tolerance), X, y, SPLITS[split](N))
    pooled = PooledKMeans(4, init=starts, n_init=1, algorithm="lloyd", tol=tolerance, max_iter=300).fit(X[:, :P])
    family = kmeans(starts)
    parts = family.layout.split(solved.theta)
    np.testing.assert_allclose(parts["center"], pooled.cluster_centers_, **EXACT)
    np.testing.assert_array_equal(distances(X, parts["center"]).argmin(1), pooled.labels_)
    np.testing.assert_array_equal(family.estimator(solved.theta).predict(X[:, :P]), pooled.labels_)
    np.testing.assert_allclose(solved.facts["inertia"], pooled.inertia_, rtol=1e-12)
    np.testing.assert_array_equal(solved.facts["groups"], np.bincount(pooled.labels_))
    np.testing.assert_allclose(parts["mean"], X[:, :P].mean(0), rtol=1e-14, atol=1e-9)


def test_k_means_stops_where_scikit_learn_would_after_few_steps():
    X, y = patients(classes=4)
    starts = X[[3, 150, 250, 399], :P]
    steps = [
        fit_by_sums(lloyd(starts, tolerance), X, y, SPLITS["two sites"](N))[1] for tolerance in (1e-1, 1e-2, 1e-10)
    ]
    taken = [
        PooledKMeans(4, init=starts, n_init=1, tol=tolerance).fit(X[:, :P]).n_iter_ for tolerance in (1e-1, 1e-2, 1e-10)
    ]
    assert steps == [n + 1 for n in taken]  # one more exchange counts who is where
    assert len(set(steps)) > 1


def test_k_means_says_when_its_steps_are_used_up():
    X, y = patients(classes=4)
    with pytest.raises(NoFit, match="move no more after 3 exchanges"):
        fit_by_sums(lloyd(X[[3, 150, 250, 399], :P], 1e-10, exchanges=3), X, y, SPLITS["two sites"](N))


def test_k_means_refuses_an_emptied_cluster_unless_it_may_stay():
    X, y = patients()
    starts = np.vstack([X[[3, 399], :P], np.full(P, 1e4)])
    with pytest.raises(NoFit, match="found none in cluster 3 of 3"):
        fit_by_sums(lloyd(starts), X, y, SPLITS["two sites"](N))
    solved, _ = fit_by_sums(lloyd(starts, 1e-10, emptied="stay"), X, y, SPLITS["two sites"](N))
    centers = kmeans(starts).layout.split(solved.theta)["center"]
    pooled = PooledKMeans(2, init=starts[:2], n_init=1, algorithm="lloyd", tol=1e-10).fit(X[:, :P])
    np.testing.assert_array_equal(centers[2], starts[2])
    np.testing.assert_allclose(centers[:2], pooled.cluster_centers_, **EXACT)
    assert solved.facts["groups"][2] == 0


def test_k_means_ends_with_no_cluster_of_too_few():
    X, y = patients()
    X[0, :P] = 1e3
    starts = X[[0, 10, 399], :P]
    solved, _ = fit_by_sums(lloyd(starts), X, y, SPLITS["two sites"](N))
    assert solved.facts["groups"][0] == 1
    with pytest.raises(NoFit, match=r"expected 10 training patients of every cluster .* found fewer of cluster 1"):
        fit_by_sums(lloyd(starts, fewest=10), X, y, SPLITS["two sites"](N))


def test_starts_are_of_one_length_and_differ():
    with pytest.raises(ValidationError, match="several lengths"):
        KMeans.model_validate({"kind": "kmeans", "starts": [[0, 0], [1]]})
    with pytest.raises(ValidationError, match="one twice"):
        KMeans.model_validate({"kind": "kmeans", "starts": [[0, 1], [0, 1]]})


def test_a_k_means_prediction_is_how_far_its_row_is_from_the_nearest_centre_and_from_the_mean():
    family = kmeans(np.array([[0.0, 0.0], [3.0, 4.0]]))
    theta = family.layout.join({"center": np.array([[0.0, 0.0], [3.0, 4.0]]), "mean": np.array([1.0, 1.0])})
    found = family.predict(theta, np.array([[3.0, 3.0, 1.0], [0.0, 2.0, 1.0]]))
    np.testing.assert_array_equal(found, [[1.0, 8.0], [4.0, 2.0]])
    np.testing.assert_array_equal(family.losses(found, np.zeros(2)), [1.0, 4.0])


# --- principal components ---------------------------------------------------------------------------------------------


@over_sites
@far_from_zero
@pytest.mark.parametrize("components", [1, 3, P])
def test_principal_components_of_sums_are_those_of_all_rows(split, offset, components):
    X, y = patients(offset)
    solved, exchanges = fit_by_sums(covariance(P, components), X, y, SPLITS[split](N))
    pooled = PCA(components, svd_solver="full").fit(X[:, :P])
    family = pca(P, components)
    served = family.estimator(solved.theta)
    fitted = served["components"]
    assert exchanges == 2
    for name in ("components_", "mean_", "explained_variance_", "explained_variance_ratio_", "noise_variance_"):
        np.testing.assert_allclose(getattr(fitted, name), getattr(pooled, name), err_msg=name, **EXACT)
    np.testing.assert_allclose(fitted.singular_values_, pooled.singular_values_, rtol=1e-10)
    np.testing.assert_allclose(fitted.transform(X[:, :P]), pooled.transform(X[:, :P]), **EXACT)
    np.testing.assert_allclose(served.predict(X[:, :P]), pooled.transform(X[:, :P]), **EXACT)
    left = ((X[:, :P] - pooled.inverse_transform(pooled.transform(X[:, :P]))) ** 2).sum(1)
    prediction = family.predict(solved.theta, X)
    np.testing.assert_allclose(family.losses(prediction, y), left, **EXACT)
    mean = (
        X[:, :P].astype(np.longdouble).mean(0).astype(float)
    )  # of more digits: NumPy's own mean loses some far from zero
    np.testing.assert_allclose(prediction[:, 1], ((X[:, :P] - mean) ** 2).sum(1), **EXACT)


def test_the_largest_loading_of_a_component_is_positive():
    X, y = patients()
    solved, _ = fit_by_sums(covariance(P, P), X, y, SPLITS["two sites"](N))
    found = pca(P, P).layout.split(solved.theta)["component"]
    assert (found[np.arange(P), np.abs(found).argmax(1)] > 0).all()


def test_components_that_the_rows_do_not_span_are_refused():
    X, y = patients(1e6)
    X[:, 1] = 2.0 * X[:, 0]
    with pytest.raises(NoFit, match="vary along 5 components, found that they do along 4"):
        fit_by_sums(covariance(P, P), X, y, SPLITS["two sites"](N))
    with pytest.raises(NoFit, match="along 4 components, found that they do along 2"):
        fit_by_sums(covariance(P, 4), X[:3], y[:3], [slice(0, 1), slice(1, 3)])
    with pytest.raises(NoFit, match="two training patients or more"):
        fit_by_sums(covariance(P, 1), X[:1], y[:1], [slice(0, 1)])


def test_components_that_explain_the_same_are_refused():
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    with pytest.raises(NoFit, match="found 1 and 2 alike"):
        fit_by_sums(covariance(2, 1), corners, np.zeros(4), [slice(0, 2), slice(2, 4)])


def test_more_components_than_columns_are_refused():
    with pytest.raises(StudyError, match="expected 2 components at most"):
        pca(2, 3)
