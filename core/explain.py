"""What a model goes by and for whom it works, by sums over the patients set aside: an ask like any other, answered once a site.

    shuffled       the losses when one feature's values are permuted among a site's patients (Breiman 2001; Fisher, Rudin and
                   Dominici 2019, JMLR 20:177): by how much they rise is what the model owes to the feature
    dependence     the predictions when one feature is set to each value of a public grid for everybody (Friedman 2001, section 8.2)
    attribution    Σφ and Σ|φ| of each feature's Shapley values (`core/attribution.py`), where the model is linear or a forest
    attributed     of how many patients these are. A category's Σφ may be a count of a level times a coefficient, so until it leaves this is
                   the smallest of its levels that anybody has: below the minimum its sums stay (`privacy.disclosure.withhold`)
    subgroup.I     the scores of each group of patients that the study names (`core/subgroups.py`), and their histograms

A permutation is drawn within a site from the study's own seed (study, round, site), so whoever has the rows can draw it again. All columns of
one category move together. Sums of all sites give what one pool of the rows would, permuted within sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.attribution import attributing, blocks, reference
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.evaluate import SUMS, Task, histogram_shape, score
from fedrounds.core.models.family import Family
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Cohort, Statistics, encode, spread, standardised
from fedrounds.core.state import RunState
from fedrounds.core.study import Category, Study
from fedrounds.core.subgroups import partings

POINTS = 9  # of a number's grid
REACH = 2.0  # standard deviations to either side of the mean, where its range allows


def explaining(
    study: Study, family: Family, classes: int, ones: bool, agreed: Mapping[str, tuple[int, ...]]
) -> Algorithm:
    """Ask every site for the sums; the state does not change.

    Args:
        agreed: shapes of the preprocessing statistics, which every request carries.
    """
    task, bins, repeats = study.target.kind, study.validation.bins, study.explain.repeats
    attribute, groups = attributing(study, family, classes), partings(study)
    names, points, outputs = range(len(study.features)), sum(counts_of(study)), outputs_of(task, classes)

    def judged(y: Array, prediction: Array) -> tuple[Array, Array]:
        return score(task, prediction, family.losses(prediction, y), y, bins)

    def ask(state: RunState) -> Payload:
        return {"theta": state.theta, **state.statistics}

    def answer(payload: Payload, memory: SiteState, data: Cohort, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        rows, theta = encode(data, study, payload, ones), payload["theta"]
        X, y = rows.X_valid, rows.y_valid
        if not len(y):
            return memory, {name: np.zeros(shape) for name, shape in shapes(0).items()}
        prediction, values = family.predict(theta, X), data.values[data.valid]
        sums: dict[str, Array] = {}
        sums["scores"], sums["histogram"] = judged(y, prediction)
        sums["shuffled"] = np.array(
            [
                [
                    float(family.losses(family.predict(theta, shuffled), y).sum())
                    for shuffled in _shuffled(X, part, repeats, rng)
                ]
                for part in blocks(study)
            ]
        )
        if points:
            sums["dependence"] = _dependence(study, family, theta, payload, X)
        if attribute:
            phi = attribute[0](theta, X, reference(study, payload))
            sums["attribution"] = np.stack([phi.sum(0), np.abs(phi).sum(0)], axis=2)
            sums["attributed"] = _rarest(study, values, payload["impute"])
        for number, group in enumerate(groups):
            cell = group.cell(values[:, group.at])
            found = [judged(y[cell == at], prediction[cell == at]) for at in range(len(group.labels))]
            sums[f"subgroup.{number}"] = np.stack([one for one, _ in found])
            sums[f"subgroup.{number}.histogram"] = np.stack([one for _, one in found])
        return memory, sums

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        return Folded(state, explained={site: _sound(site, sums) for site, sums in replies})

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        histogram = histogram_shape(task, classes, bins)
        found: dict[str, tuple[int, ...]] = {
            "scores": (SUMS,),
            "histogram": histogram,
            "shuffled": (len(names), repeats),
        }
        found |= {"dependence": (points, outputs)} if points else {}
        found |= {"attribution": (len(names), attribute[1], 2), "attributed": (len(names),)} if attribute else {}
        for number, group in enumerate(groups):
            found[f"subgroup.{number}"] = (len(group.labels), SUMS)
            found[f"subgroup.{number}.histogram"] = (len(group.labels), *histogram)
        return found

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"theta": (family.layout.size,), **agreed}

    return Algorithm(ask, answer, fold, shapes, takes)


def outputs_of(task: Task, classes: int) -> int:
    """How many numbers `told` says of a patient."""
    return classes if task == "multiclass" else 0 if task == "none" else 1


def told(task: Task, prediction: Array) -> Array:
    """(n, k) of predictions (n,) or (n, k): the mean, the probabilities, or of survival (n, 1 + K) the risk of an event by the end of the grid."""
    if task == "survival":
        return 1.0 - np.exp(-prediction[:, -1:])
    return prediction.reshape(len(prediction), -1)


def counts_of(study: Study) -> list[int]:
    """How many points each feature's grid has: a category's stated levels; none of a number whose spread is not public."""
    if study.target.kind == "none":
        return [0] * len(study.features)
    agreed, found = standardised(study), list[int]()
    for feature, part in zip(study.features, blocks(study), strict=True):
        if isinstance(feature, Category):
            found.append(len(feature.categories))
        else:
            found.append(POINTS if feature.range or agreed[part.start] else 0)
    return found


def grids(study: Study, statistics: Statistics) -> list[Vector]:
    """Each feature's grid (points,), in its own unit; of a category the places of its levels. Public: from the dictionary and round 0 alone."""
    agreed, found = standardised(study), list[Vector]()
    for feature, part, count in zip(study.features, blocks(study), counts_of(study), strict=True):
        if isinstance(feature, Category):
            found.append(np.arange(float(count)))
            continue
        low, high = feature.range or (-np.inf, np.inf)
        if agreed[part.start] and count:
            middle, reach = statistics["center"][part.start], REACH * statistics["scale"][part.start]
            low, high = max(low, middle - reach), min(high, middle + reach)
        found.append(np.linspace(low, high, count) if count else np.zeros(0))
    return found


def _shuffled(X: Array, part: slice, repeats: int, rng: np.random.Generator) -> Iterable[Array]:
    """The rows with one feature's columns permuted among them, anew each time."""
    for _ in range(repeats):
        mixed = X.copy()
        mixed[:, part] = X[rng.permutation(len(X)), part]
        yield mixed


def _dependence(study: Study, family: Family, theta: Vector, statistics: Statistics, X: Array) -> Array:
    """(points, k) sums over rows, feature after feature."""
    found: list[Array] = []
    for j, (part, grid) in enumerate(zip(blocks(study), grids(study, statistics), strict=True)):
        if not len(grid):
            continue
        values = np.tile(statistics["impute"], (len(grid), 1))
        values[:, j] = grid
        Z = (spread(values, study, statistics["impute"]) - statistics["center"]) / statistics["scale"]
        for columns in Z[:, part]:
            at = X.copy()
            at[:, part] = columns
            found.append(told(study.target.kind, family.predict(theta, at)).sum(0))
    return np.stack(found)


def _rarest(study: Study, values: Array, impute: Vector) -> Vector:
    """(features,) rows of the rarest level that a category has here, missing ones filled; of a number all rows."""
    found = np.full(len(study.features), float(len(values)))
    for j, feature in enumerate(study.features):
        if isinstance(feature, Category):
            filled = np.where(np.isnan(values[:, j]), impute[j], values[:, j])
            found[j] = np.unique(filled, return_counts=True)[1].min()
    return found


def _sound(site: str, sums: Sums) -> Sums:
    """The sums as they came. Raises UpdateRejected where sums are of more patients than there are, or of less than none."""
    n = float(sums["scores"][0])
    told = sums.get("attributed", np.zeros(1))
    if told.min() < 0 or told.max() > n:
        raise UpdateRejected(
            f"expected Shapley values of the patients set aside at site '{site}', found them of more than there are: it was refused"
        )
    cells = [array for name, array in sums.items() if name.startswith("subgroup.") and not name.endswith(".histogram")]
    if any((array[:, 0] < 0).any() or float(array[:, 0].sum()) > n for array in cells):
        raise UpdateRejected(
            f"expected groups of the patients set aside at site '{site}', found more in them than there are: it was refused"
        )
    return sums
