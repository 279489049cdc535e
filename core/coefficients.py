"""What a linear model says of each feature, in the feature's own unit: the standardisation is undone.

A model scores (z - center)/scale of the columns z that a row is spread over. The same score is `intercept + sum(z * value)` with
value = coef/scale and intercept = b - sum(coef * center/scale): so a value is per year, per mmHg, per being of a level.

Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, section 3.4.1 (inputs centred and scaled first).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedrounds.core.params import Array, Vector
from fedrounds.core.plan import Plan
from fedrounds.core.preprocess import Statistics, columns_of
from fedrounds.core.study import Category, canonical


@dataclass(frozen=True)
class Coefficient:
    """One column of the design matrix before it was standardised.

    Attributes:
        feature: Its name in the dictionary.
        unit: The dictionary's; prose for a category.
        level: The level that the column is 1 for; None for a number.
        values: (k,) change of the linear predictor per unit of the feature, or for being of the level; one a class of a multinomial
            model, else one.
        centred: (k,) of a one-hot level: `values` less their mean over the feature's stated levels. None elsewhere.
        scale: What one standardised unit is in the feature's own: its agreed standard deviation, 1 if it was not standardised.
    """

    feature: str
    unit: str
    level: str | None
    values: tuple[float, ...]
    centred: tuple[float, ...] | None
    scale: float


@dataclass(frozen=True)
class Coefficients:
    """A linear model on the original scale: score = intercept + sum over columns of value * column.

    Attributes:
        classes: Names of the k linear predictors; one empty name where there is one.
        intercept: (k,); zeros for a model without one, which then still has what centring left.
        columns: In the order of the design matrix.
        reference: Feature -> the level that a `drop_first` category is compared with.
    """

    classes: tuple[str, ...]
    intercept: tuple[float, ...]
    columns: tuple[Coefficient, ...]
    reference: dict[str, str]


def on_original_scale(plan: Plan, theta: Vector, statistics: Statistics) -> Coefficients | None:
    """The model's coefficients in the dictionary's units; None for a model that has none, such as a neural network.

    Args:
        theta: (size,) the model, as the plan's family lays it out.
        statistics: the frozen ones of round 0 that the model was trained on.
    """
    if "coef" not in plan.family.layout.shapes:
        return None
    parts, width = plan.family.layout.split(theta), len(plan.columns)
    coef: Array = parts["coef"].reshape(width, -1)  # (width, k)
    values: Array = coef / statistics["scale"][:, None]
    intercept = -(statistics["center"] @ values)
    if "intercept" in parts:
        intercept = intercept + parts["intercept"]
    labels = tuple(canonical(label) for label in getattr(plan.study.target, "classes", ()))
    classes = labels if values.shape[1] > 1 else ("",)
    return Coefficients(
        classes,
        _floats(intercept),
        tuple(_columns(plan, values, statistics["scale"])),
        {
            feature.name: canonical(feature.categories[0])
            for feature in plan.study.features
            if isinstance(feature, Category) and feature.encode == "drop_first"
        },
    )


def _columns(plan: Plan, values: Array, scale: Vector) -> list[Coefficient]:
    found: list[Coefficient] = []
    for feature in plan.study.features:
        start, names = len(found), columns_of(feature)
        levels = [name.removeprefix(f"{feature.name}=") for name in names] if isinstance(feature, Category) else [None]
        average: Array | None = None
        if isinstance(feature, Category) and feature.encode == "one_hot":
            average = values[start : start + len(feature.categories)].mean(0)  # `other` is no level that anybody stated
        for at, level in enumerate(levels, start):
            centred = None if average is None else _floats(values[at] - average)
            found.append(Coefficient(feature.name, feature.unit, level, _floats(values[at]), centred, float(scale[at])))
    return found


def _floats(row: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in row)
