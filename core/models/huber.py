"""Linear regression that a few wild values do not carry away."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.frozen import NonNegative
from fedrounds.core.models.family import Family, Kind, Task
from fedrounds.core.models.linear import linear
from fedrounds.core.params import Array, Vector


class Huber(Kind):
    """Robust regression: a residual beyond `bend`, in the target's units, pulls no harder than one of `bend`."""

    targets: ClassVar[tuple[str, ...]] = ("regression",)
    paper: ClassVar[str] = "Huber 1964"
    kind: Literal["huber"]
    bend: float = Field(default=1.35, gt=0, allow_inf_nan=False)
    l2: NonNegative = 0.0

    def family(self, width: int, classes: int, task: Task) -> Family:
        """The functions of a model with so many columns, the ones left out."""
        del classes, task
        return huber(width, self.bend)


def huber(features: int, bend: float) -> Family:
    """Centre of y as Xθ.

    The loss that is descended is the mean of r²/2 where |r| ≤ bend and bend (|r| - bend/2) beyond, with r = Xθ - y; its gradient is
    Xᵀ clip(r, ±bend)/n. What is reported of a row is its squared error. 1.35 standard deviations of the noise lose 5 % of the efficiency
    where it is normal; the bend is not scaled by the data, whose spread nobody sees as a whole.
    Source: Huber (1964), Robust estimation of a location parameter, example iii.

    Args:
        features: Columns p of the encoded matrix, without the ones; X is (n, p + 1).

    Returns:
        A family with theta (p + 1,): coefficients, then the intercept.
    """

    def gradient(theta: Vector, X: Array, y: Array) -> Vector:
        return X.T.dot(np.clip(X.dot(theta) - y, -bend, bend)) / len(y)

    return linear(features)._replace(gradient=gradient)
