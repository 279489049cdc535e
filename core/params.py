"""A model is one vector; a layout says which stretch of it is called what.

Everything that learns, combines, clips or masks works on the vector. Names and shapes appear where people look:
messages, the ledger, MLflow, the exported pipeline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]  # always one-dimensional; a model, its update and its gradient are (size,) of its `Layout`
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parts of a parameter vector, in order.

    >>> layout = Layout({"coef": (2,), "intercept": (1,)})
    >>> layout.size
    3
    >>> layout.split(np.array([1.0, 2.0, 3.0]))["intercept"]
    array([3.])
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for shape in self.shapes.values())

    def split(self, theta: Vector) -> dict[str, Array]:
        """Name the parts of `theta` (size,), each of its shape and a view, so writing to it writes to `theta`."""
        parts: dict[str, Array] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + prod(shape)
            parts[name] = theta[start:stop].reshape(shape)
            start = stop
        return parts

    def join(self, parts: Mapping[str, Array]) -> Vector:
        """The vector (size,) whose `split` is `parts`."""
        return np.concatenate([np.asarray(parts[name], np.float64).reshape(-1) for name in self.shapes])


def digest(arrays: Mapping[str, Array], *context: str) -> str:
    """SHA-256 (hex) of named arrays in name order: names, shapes and little-endian bytes, then the context's strings."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], dtype="<f8")
        sha.update(f"{name}{array.shape}".encode())
        sha.update(array.tobytes())
    for text in context:
        sha.update(b"\0" + text.encode())
    return sha.hexdigest()
