"""A skops file of a model whose parameters can be poured in anew, without skops and scikit-learn.

A file is cast with parameters that occur nowhere else; where they are found in it, others can stand. Importing skops and dumping a model
a round would be a fifth of a short run's work beside a running server.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.params import Vector
from fedrounds.core.state import RunState

SCHEMA = "schema.json"
_NAMES = re.compile(rb'"__id__": \d+|"file": "\d+\.npy"')  # addresses, other ones in every file


@dataclass(frozen=True)
class Mould:
    """`files` of a skops archive; `places` says which parameters an array holds, `words` how the schema writes one that is in no array."""

    files: Mapping[str, bytes]
    places: Mapping[str, NDArray[np.int64]]
    words: Mapping[int, bytes]

    @classmethod
    def of(cls, model: bytes, size: int) -> Mould | None:
        """Find the places of a model that was cast with `parameters(size)`; None unless each parameter has exactly one."""
        files, cast = _read(model), parameters(size)
        order = np.argsort(cast)
        places: dict[str, NDArray[np.int64]] = {}
        for name, content in files.items():
            array = np.load(io.BytesIO(content), allow_pickle=False) if name.endswith(".npy") else np.empty(0)
            if array.dtype != np.float64 or not array.size:
                continue
            nearest = order[np.searchsorted(cast, array, sorter=order).clip(max=size - 1)]
            found = cast[nearest] == array
            if found.all():
                places[name] = nearest
            elif found.any():
                return None  # some of its numbers are parameters, others are made from them
        count = np.zeros(size, np.int64)
        for indices in places.values():
            np.add.at(count, indices.reshape(-1), 1)
        words = {int(i): _word(cast[i]) for i in np.flatnonzero(count == 0)}
        for i, word in words.items():
            count[i] = files[SCHEMA].count(word)
        return cls(files, places, words) if (count == 1).all() else None

    def filled(self, theta: Vector) -> bytes:
        """The skops file of the model with these parameters."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in self.files.items():
                if name in self.places:
                    content = _array(theta[self.places[name]])
                elif name == SCHEMA:
                    for i, word in self.words.items():
                        content = content.replace(word, _word(theta[i]))
                archive.writestr(name, content)
        return out.getvalue()


def cast(state: RunState, pipeline: Callable[[RunState], Any], real: bytes) -> tuple[bytes, Mould] | None:
    """The model's file that was cast, and its mould; None if what it gives for the state is not `real`, the file that skops wrote of it."""
    from fedrounds.tasks.lean import skops_io

    size = len(state.theta)
    model = skops_io().dumps(pipeline(replace(state, theta=parameters(size))))
    mould = Mould.of(model, size)
    same = mould is not None and _told(mould.filled(state.theta)) == _told(real)
    return (model, mould) if mould is not None and same else None


def parameters(size: int) -> Vector:
    """Numbers that a model has nowhere else."""
    return np.random.default_rng(0).standard_normal(size)


def _read(model: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _told(model: bytes) -> list[bytes]:
    """What a file says, in its order, whatever the addresses that its arrays are named after."""
    return [_NAMES.sub(b"", content) for content in _read(model).values()]


def _array(values: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)
    return out.getvalue()


def _word(value: float) -> bytes:
    return f'"content": "{json.dumps(float(value))}"'.encode()
