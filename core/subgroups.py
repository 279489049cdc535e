"""Who is told apart where a model is judged group by group: `[explain]` of study.toml, and which patient is in which group.

Groups are of the protocol, so a hospital approves them: whoever could move a cut point from question to question could read one patient
out of the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedrounds.core.frozen import Finite, Frozen
from fedrounds.core.params import Vector

if TYPE_CHECKING:
    from fedrounds.core.study import Study

MISSING = "missing"


class Subgroup(Frozen):
    """Patients told apart by one feature: the levels of a category, or a number's ranges, each from a cut (inclusive) to the next."""

    feature: str = Field(min_length=1)
    cuts: tuple[Finite, ...] = Field(default=(), max_length=20)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(low >= high for low, high in pairwise(self.cuts)):
            raise ValueError(f"cuts of subgroup '{self.feature}' must rise, found {list(self.cuts)}")
        return self


class Explain(Frozen):
    """How a model is explained. `subgroups`: by default every category's levels; `repeats`: how often a feature is permuted."""

    repeats: int = Field(default=5, ge=1, le=50)
    subgroups: tuple[Subgroup, ...] | None = Field(default=None, max_length=20)


@dataclass(frozen=True)
class Parting:
    """One way to tell patients apart, the missing last.

    Attributes:
        feature: its name; `at` is its place among the study's features.
        labels: of the groups, in order.
        edges: where each group but the first begins.
    """

    feature: str
    at: int
    labels: tuple[str, ...]
    edges: tuple[float, ...]

    def cell(self, values: Vector) -> NDArray[np.intp]:
        """(n,) the group of each value of the feature, as a cohort holds it."""
        found = np.searchsorted(np.array(self.edges), values, side="right")
        return np.where(np.isnan(values), len(self.labels) - 1, found)


def partings(study: Study) -> list[Parting]:
    """Every way in which the study tells patients apart."""
    from fedrounds.core.study import Number

    wanted = study.explain.subgroups
    if wanted is None:
        wanted = tuple(Subgroup(feature=f.name) for f in study.features if not isinstance(f, Number))
    names = [feature.name for feature in study.features]
    return [_parting(study, names.index(group.feature), group.cuts) for group in wanted]


def require(explain: Explain, numbers: Mapping[str, bool]) -> None:
    """Raise ValueError where a subgroup is of no feature of the study, or cut as its kind cannot be.

    Args:
        numbers: feature -> whether it is a number.
    """
    names = [group.feature for group in explain.subgroups or ()]
    if unknown := sorted(set(names) - numbers.keys()):
        raise ValueError(f"expected subgroups of the study's features, found '{unknown[0]}': name one of them")
    for group in explain.subgroups or ():
        if numbers[group.feature] != bool(group.cuts):
            wanted = "a category has its levels, and no `cuts`" if group.cuts else "a number needs `cuts`"
            raise ValueError(f"expected subgroup '{group.feature}' to fit its feature: {wanted}")
    if len(set(names)) < len(names):
        raise ValueError("expected each feature once among the subgroups: two partings of one, subtracted, tell of few")


def _parting(study: Study, at: int, cuts: Sequence[float]) -> Parting:
    from fedrounds.core.study import Category, canonical

    feature = study.features[at]
    if isinstance(feature, Category):
        levels = tuple(canonical(level) for level in feature.categories)
        return Parting(feature.name, at, (*levels, "other", MISSING), tuple(float(i + 1) for i in range(len(levels))))
    unit = f" {feature.unit}" if feature.unit else ""
    first, last = f"below {cuts[0]:g}{unit}", f"{cuts[-1]:g}{unit} and above"
    between = (f"{low:g} to below {high:g}{unit}" for low, high in pairwise(cuts))
    return Parting(feature.name, at, (first, *between, last, MISSING), tuple(cuts))
