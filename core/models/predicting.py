"""A trained module as one that predicts from the design matrix: what a registered version holds.

`torch.export` makes a program of PyTorch's own operations of it, so whoever loads that needs neither the module's package nor Fedrounds.
"""

from __future__ import annotations

from typing import Any

from fedrounds.core.models.family import Task
from fedrounds.core.params import Vector


def predicting(torch: Any, scores: Any, shape: tuple[int, ...], task: Task, theta: Vector) -> Any:
    """A module (n, p) float64 -> the mean (n,), or the probability of every class (n, k); its one buffer `theta` holds the parameters.

    Args:
        scores: (theta, rows, training) -> (n, outputs), as `module.Made.scores`.
        shape: of a row as the trained module takes it.
    """

    class Predicting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("theta", torch.tensor(theta, dtype=torch.float64))

        def forward(self, X: Any) -> Any:
            found = scores(self.theta, X.reshape(-1, *shape), False)
            if task == "multiclass":
                return torch.softmax(found, 1)
            if task == "binary":
                return torch.sigmoid(torch.cat([-found, found], 1))
            return found[:, 0]

    return Predicting()
