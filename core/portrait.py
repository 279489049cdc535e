"""What a model without coefficients says of each feature: a number a column and group, in the feature's own unit where it has one.

Centres of clusters and means of classes are points among the patients, so centring and scaling are undone: mean = center + scale * value.
Loadings of components are of the standardised columns, as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrounds.core.params import Array, Vector
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Statistics, columns_of
from fedrounds.core.study import Category, canonical


@dataclass(frozen=True, eq=False)
class Portrait:
    """Groups (clusters, classes, components) side by side.

    Attributes:
        what: What the groups are.
        groups: Their names.
        shares: (groups,) of the total variance; None but for components.
        columns: (feature, unit, level or None) of each column of the design matrix, in its order.
        values: (columns, groups) means in the feature's unit (the share of patients, for a level), or loadings.
        spreads: (columns, groups) standard deviations beside them; None where the model has none.
    """

    what: Literal["cluster", "class", "component"]
    groups: tuple[str, ...]
    shares: Vector | None
    columns: tuple[tuple[str, str, str | None], ...]
    values: Array
    spreads: Array | None


def portrait(plan: Plan, theta: Vector, statistics: Statistics) -> Portrait | None:
    """The portrait of a k-means, naive Bayes or principal components model; None for any other.

    Args:
        theta: (size,) the model, as the plan's family lays it out.
        statistics: the frozen ones of round 0 that the model was trained on.
    """
    parts = plan.family.layout.split(theta)
    center, scale = statistics["center"], statistics["scale"]
    match plan.study.model.kind:
        case "kmeans":
            values = (center + scale * parts["center"]).T
            return Portrait("cluster", _numbered(values), None, _columns(plan), values, None)
        case "naive_bayes":
            values, spreads = (center + scale * parts["mean"]).T, (scale * parts["variance"] ** 0.5).T
            return Portrait("class", _classes(plan), None, _columns(plan), values, spreads)
        case "pca":
            values, total = parts["component"].T, float(parts["total"][0])
            shares = parts["variance"] / total if total else parts["variance"]
            return Portrait("component", _numbered(values), shares, _columns(plan), values, None)
        case _:
            return None


def _numbered(values: Array) -> tuple[str, ...]:
    return tuple(str(k + 1) for k in range(values.shape[1]))


def _classes(plan: Plan) -> tuple[str, ...]:
    return tuple(canonical(label) for label in getattr(plan.study.target, "classes", ("no", "yes")))


def _columns(plan: Plan) -> tuple[tuple[str, str, str | None], ...]:
    found: list[tuple[str, str, str | None]] = []
    for feature in plan.study.features:
        for name in columns_of(feature):
            level = name.removeprefix(f"{feature.name}=") if isinstance(feature, Category) else None
            found.append((feature.name, feature.unit, level if level is None else canonical(level)))
    return tuple(found)
