"""Round 0: the preprocessing statistics, agreed by sums over training rows in two exchanges.

Exchange 0 counts and sums each feature: what to impute. Exchange 1 sums the filled design matrix and its squares about a public point
(the mean just agreed; one half for a 0/1 column), so that no digits cancel: centre and sample standard deviation (n - 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums, summed
from fedrounds.core.errors import DataContractError
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Cohort, columns_of, spread, standardised
from fedrounds.core.state import RunState
from fedrounds.core.study import Category, Study


def statistics(study: Study) -> Algorithm:
    """The algorithm of round 0 for a study's dictionary."""
    features, width = len(study.features), sum(len(columns_of(f)) for f in study.features)
    levels = sum(len(f.categories) + 1 for f in study.features if isinstance(f, Category))

    def ask(state: RunState) -> Payload:
        return state.work

    def answer(payload: Payload, memory: SiteState, data: Cohort, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        training = data.values[~data.valid]
        return memory, _about(training, study, payload) if payload else _observed(training, study)

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total = summed(sums for _, sums in replies)
        if state.exchange == 0:
            return Folded(replace(state, exchange=1, work=_impute(total, study)))
        agreed = {"impute": state.work["impute"]} | _scale(total, study, state.work["about"])
        agreed |= {"rows": total["n"]} if study.masked else {}
        return Folded(replace(state, exchange=0, work={}, statistics=agreed))

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        first: dict[str, tuple[int, ...]] = {"observed": (features,), "sum": (features,), "levels": (levels,)}
        return first if exchange == 0 else {"n": (1,), "sum": (width,), "square": (width,)}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        return {} if exchange == 0 else {"impute": (features,), "about": (width,)}

    return Algorithm(ask, answer, fold, shapes, takes)


def _observed(values: Array, study: Study) -> Sums:
    """How many values each feature has, a number's sum, and rows per level (other values last).

    A category's sum is 0: that of its levels' indices, which nothing needs, would tell how many patients have a rare one.
    """
    numbers = np.array([not isinstance(feature, Category) for feature in study.features])
    known = ~np.isnan(values)
    counts = [
        np.bincount(values[known[:, j], j].astype(np.intp), minlength=len(feature.categories) + 1)
        for j, feature in enumerate(study.features)
        if isinstance(feature, Category)
    ]
    levels = np.concatenate(counts) if counts else np.zeros(0)
    return {
        "observed": known.sum(0).astype(np.float64),
        "sum": np.where(numbers, np.nansum(values, 0), 0.0),
        "levels": levels.astype(np.float64),
    }


def _impute(total: Sums, study: Study) -> dict[str, Vector]:
    """What exchange 1 needs to know, both public.

    Returns:
        impute: (features,) the mean of a number (or its stated constant), the most frequent level of a category.
        about: (width,) the point about which to sum: the mean of a number, one half for a 0/1 column.
    """
    impute, about = np.empty(len(study.features)), list[float]()
    start = 0
    for j, feature in enumerate(study.features):
        if total["observed"][j] == 0:
            raise DataContractError(
                f"expected values of feature '{feature.name}' at some site, found none in any training row: leave the feature out of study.toml"
            )
        if isinstance(feature, Category):
            stop = start + len(feature.categories) + 1
            impute[j] = np.argmax(total["levels"][start:stop])
            about += [0.5] * len(columns_of(feature))
            start = stop
        else:
            mean = total["sum"][j] / total["observed"][j]
            impute[j] = mean if feature.impute == "mean" else feature.impute
            about.append(mean)
    return {"impute": impute, "about": np.array(about)}


def _about(values: Array, study: Study, known: Payload) -> Sums:
    """Sums about a point of the columns that are standardised; of the others 0, since a 0/1 column's would tell how many have a rare level."""
    Z = np.where(standardised(study), spread(values, study, known["impute"]) - known["about"], 0.0)
    return {"n": np.array([float(len(Z))]), "sum": Z.sum(0), "square": (Z * Z).sum(0)}


def _scale(total: Sums, study: Study, about: Vector) -> dict[str, Array]:
    """Centre and scale of each column; a column that is constant over all sites (to its last digits) keeps scale 1."""
    n, mean = float(total["n"][0]), total["sum"] / total["n"]
    square = np.maximum(total["square"] - n * mean * mean, 0.0)
    sd = np.sqrt(square / max(n - 1, 1.0))
    chosen = standardised(study)
    center = about + mean
    constant = sd <= 1e-15 * np.abs(center)
    return {
        "center": np.where(chosen, center, 0.0),
        "scale": np.where(chosen & ~constant, sd, 1.0),
    }
