"""Metrics that add up over sites: each site sends sums and histograms, the pooled value is computed from their totals.

A site's scores are one vector, `[n, loss, second, third]` (sums over its validation rows), and for classes a histogram of predicted
probabilities per outcome. The area under the ROC curve of binned scores counts every pair that falls in one bin as a half, so the true
area lies within `auc_error` = sum_b pos_b neg_b / (2 P N) of it: the bound is reported beside the value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.models.family import Task
from fedrounds.core.params import Array
from fedrounds.core.survival import concordance, counted, pairs_in_order, score_bins

SUMS = 4  # length of the vector of sums
PAIRED = 3  # and of that of two models compared
LOSS = {
    "regression": "mse",
    "binary": "log_loss",
    "multiclass": "log_loss",
    "survival": "log_loss",
    "none": "distance",
}
HEADLINE = {
    "regression": "r2",
    "binary": "auc",
    "multiclass": "auc",
    "survival": "concordance",
    "none": "explained",
}


def histogram_shape(task: Task, classes: int, bins: int) -> tuple[int, ...]:
    """(one-against-rest problems, outcome 0 or 1, bins); of survival a problem is an interval of the grid.

    There is no problem at all for regression, or where there is nothing to predict.
    """
    return ({"binary": 1, "multiclass": classes, "survival": classes}.get(task, 0), 2, bins)


def score(task: Task, prediction: Array, losses: Array, y: Array, bins: int) -> tuple[Array, Array]:
    """Sums (4,) and histogram of one site's validation rows.

    Args:
        prediction: (n,) means or probabilities of the positive class, (n, classes) probabilities, or of survival (n, 1 + intervals): the
            linear predictor, then cumulative hazards; where there is nothing to predict (n, 2): the squared distance to what the model
            says of a row, and to the mean.
        losses: (n,) squared errors, log-losses or squared distances.
        y: (n,) values, 0/1, class indices, or ± intervals.
        bins: equal bins over [0, 1].
    """
    n = float(len(y))
    if task == "regression":
        return np.array([n, losses.sum(), y.sum(), y @ y]), np.zeros(histogram_shape(task, 0, bins))
    if task == "none":
        return np.array([n, losses.sum(), prediction[:, 1].sum(), 0.0]), np.zeros(histogram_shape(task, 0, bins))
    if task == "binary":
        miss = prediction - y
        correct = np.count_nonzero((prediction > 0.5) == (y > 0.5))
        return np.array([n, losses.sum(), miss @ miss, correct]), _histogram(prediction, y, bins)[None]
    if task == "survival":
        cell = score_bins(prediction[:, 0], bins)
        by_bin = counted(y, prediction.shape[1] - 1, cell, bins)
        return np.array([n, losses.sum(), *pairs_in_order(prediction[:, 0], y)]), by_bin.transpose(2, 1, 0).copy()
    outcome = y.astype(np.intp)
    one_hot = np.eye(prediction.shape[1])[outcome]
    brier = float(((prediction - one_hot) ** 2).sum())
    correct = np.count_nonzero(prediction.argmax(1) == outcome)
    histograms = [_histogram(prediction[:, k], one_hot[:, k], bins) for k in range(prediction.shape[1])]
    return np.array([n, losses.sum(), brier, correct]), np.stack(histograms)


def paired(losses: Array, others: Array) -> Array:
    """`[n, Σd, Σd²]` (3,) of the differences d of two models' losses (n,) on the same rows.

    >>> paired(np.array([1.0, 3.0]), np.array([2.0, 0.0])).tolist()
    [2.0, 2.0, 10.0]
    """
    difference = losses - others
    return np.array([float(len(difference)), difference.sum(), difference @ difference])


def _histogram(probability: Array, y: Array, bins: int) -> Array:
    """(2, bins): how many rows of outcome 0 and of outcome 1 fall into each bin."""
    cell = np.fmax(probability * bins, 0.0).astype(np.intp)  # what is not a number must not crash: its loss tells
    np.minimum(cell, bins - 1, out=cell)
    cell[y > 0.5] += bins
    return np.bincount(cell, minlength=2 * bins).reshape(2, bins).astype(np.float64)


def metrics(task: Task, sums: Array, histogram: Array) -> dict[str, float]:
    """The metrics that these sums carry; one that they cannot carry (no rows, one class only) is absent.

    Args:
        sums, histogram: (4,) and (problems, 2, bins), as `score` gives them.

    Returns:
        regression: mse, rmse, r2. Survival: log_loss, concordance with concordance_error (where every row is in the histogram), and
        concordance_within (of pairs at one site). Classes: log_loss, brier, accuracy, and auc with auc_error (mean over classes, one
        against rest). Nothing to predict: distance (mean squared), explained (1 - its share of that to the mean).
    """
    n, loss, second, third = (float(value) for value in sums)
    if n == 0:
        return {"n": 0.0}
    if task == "regression":
        spread = third - second * second / n
        fit = {"n": n, "mse": loss / n, "rmse": float(np.sqrt(loss / n))}
        return fit | ({"r2": 1 - loss / spread} if spread > 0 else {})
    if task == "none":
        return {"n": n, "distance": loss / n} | ({"explained": 1 - loss / second} if second > 0 else {})
    if task == "survival":
        found = {"n": n, "log_loss": loss / n} | ({"concordance_within": second / third} if third > 0 else {})
        # cells that were held back or merged would move it beyond its bound
        whole = concordance(histogram) if histogram.sum() == n else None
        return found | ({"concordance": whole[0], "concordance_error": whole[1]} if whole else {})
    found = {"n": n, "log_loss": loss / n, "brier": second / n, "accuracy": third / n}
    areas = [area for area in map(auc, histogram) if area is not None]
    if len(areas) == len(histogram):
        found["auc"] = float(np.mean([area for area, _ in areas]))
        found["auc_error"] = float(np.mean([error for _, error in areas]))
    return found


def auc(histogram: Array) -> tuple[float, float] | None:
    """Area under the ROC curve of a (2, bins) histogram, and the most by which binning can have moved it; None if a class is absent.

    >>> auc(np.array([[1.0, 1.0], [0.0, 2.0]]))
    (0.75, 0.25)
    """
    negative, positive = histogram
    pairs = float(negative.sum() * positive.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    ties = float(positive @ negative) / 2
    return (float(positive @ below) + ties) / pairs, ties / pairs


def calibration(histogram: Array, groups: int = 10) -> tuple[Array, Array, NDArray[np.intp]]:
    """Mean predicted probability (to half a bin), observed rate and rows, of up to `groups` equal groups of bins that hold rows.

    Args:
        histogram: (2, bins) of one binary problem.
    """
    bins = histogram.shape[1]
    bin_: NDArray[np.intp] = np.arange(bins, dtype=np.intp)
    group = bin_ * groups // bins
    centre = (bin_ + 0.5) / bins
    rows = np.bincount(group, histogram.sum(0), groups)
    kept = rows > 0
    predicted = np.bincount(group, histogram.sum(0) * centre, groups)[kept] / rows[kept]
    observed = np.bincount(group, histogram[1], groups)[kept] / rows[kept]
    return predicted, observed, rows[kept].astype(np.intp)


def total(parts: Mapping[str, tuple[Array, Array]]) -> tuple[Array, Array]:
    """Sums (4,) and histogram (problems, 2, bins) of all sites together, added in site order; (0, 2, 1) of none."""
    names = sorted(parts)
    sums = np.zeros(SUMS)
    histogram = np.zeros_like(parts[names[0]][1]) if names else np.zeros((0, 2, 1))
    for name in names:
        sums = sums + parts[name][0]
        histogram = histogram + parts[name][1]
    return sums, histogram


def training_loss(training: Mapping[str, tuple[float, float, float]]) -> tuple[float, float]:
    """The global loss of a round (DESIGN 1): the plain mean of the sites' mean losses, and their mean weighted by lambda.

    Args:
        training: site -> (rows, sum of their losses, lambda), as a closed round has it.

    >>> plain, weighted = training_loss({"a": (10, 1.0, 0.6), "b": (10, 2.0, 0.4)})
    >>> round(plain, 12), round(weighted, 12)
    (0.15, 0.14)
    """
    means = np.array([loss / rows for rows, loss, _ in training.values()])
    weights = np.array([weight for _, _, weight in training.values()])
    return float(means.mean()), float(weights @ means / weights.sum())
