"""How wide a number travels. Under `codec = "float32"` the arrays of training are float32 on the wire and half as long; nothing else is.
Under `codec = "rotated8"` parameters travel so too, and updates as bytes and a scale for each block of them (`core/rotation.py`).

Narrowed are parameters and updates (NARROWED). They are rounded to the nearest float32 once, where the message is made, so a number moves
by at most 2^-24 of itself an exchange (2^-150 below 2^-126), and both ends see the same float32 whether or not bytes were made of it: a
plain loop, an embedded run and a federated one are the same bit for bit. Computing is float64 everywhere: `handle` and `close_exchange`
widen what comes in. The coordinator keeps its own parameters in float64, so rounding does not add up in them.

Not narrowed: statistics of round 0, counts, scores, histograms, profiles. A float32 is exact to 2^24 alone, so a count of 16,777,217
patients would arrive as 16,777,216, and a sum of squares would lose the digits that the deviation is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from fedrounds.core import rotation
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import Request
from fedrounds.core.params import Array
from fedrounds.core.plan import seed
from fedrounds.core.wire import Codec

NARROWED = frozenset({"theta", "champion", "delta"})
CODED = "delta"  # what travels as bytes under rotated8
SCALE = "delta.scale"  # and what of it beside them


def width(name: str, codec: Codec) -> type[np.number]:
    """The type in which the array of that name travels."""
    if codec == "rotated8" and name in (CODED, SCALE):
        return np.uint8 if name == CODED else np.float32
    return np.float32 if codec != "float64" and name in NARROWED else np.float64


def narrow(arrays: Mapping[str, Array], codec: Codec) -> Mapping[str, Array]:
    """The arrays of a message as they travel, each of its shape.

    Raises:
        UpdateRejected: a number is beyond the range of float32 and would travel as infinity.
    """
    if codec == "float64":
        return arrays
    with np.errstate(over="ignore"):  # what overflows is seen below
        sent = {name: array.astype(width(name, codec)) for name, array in arrays.items()}
    for name, array in sent.items():
        if not np.isfinite(array).all():
            raise UpdateRejected(
                f"expected numbers of '{name}' within ±{np.finfo(np.float32).max:.2g}, found one that {codec}, the study's codec,"
                f" cannot hold: lower the learning rate, standardise the features, or set codec to float64"
            )
    return cast(Mapping[str, Array], sent)


def written(
    arrays: Mapping[str, Array], codec: Codec, request: Request, chance: np.random.Generator
) -> Mapping[str, Array]:
    """The arrays of an answer as they travel, of the shapes that `beside` gives.

    Args:
        chance: the site's own, from which stochastic rounding draws.

    Raises UpdateRejected: as `narrow` does.
    """
    if codec != "rotated8" or CODED not in arrays:
        return narrow(arrays, codec)
    codes, scale = rotation.code(arrays[CODED], _signs(request), chance)
    coded: dict[str, Any] = {CODED: codes, SCALE: scale}
    return narrow({**arrays, **coded}, codec)


def read(arrays: Mapping[str, Array], codec: Codec, request: Request) -> dict[str, Array]:
    """The arrays of an answer to this request as float64, of the shapes that its algorithm gives. Raises UpdateRejected where an update is none."""
    if codec != "rotated8" or CODED not in arrays:
        return widen(arrays)
    codes, scale = cast(rotation.Codes, arrays[CODED]), cast(rotation.Scales, arrays[SCALE])
    rest = {name: array for name, array in arrays.items() if name not in (CODED, SCALE)}
    return {CODED: rotation.decode(codes, scale, _signs(request)), **widen(rest)}


def beside(shapes: Mapping[str, tuple[int, ...]], codec: Codec) -> Mapping[str, tuple[int, ...]]:
    """The shapes of an answer's arrays as they travel, from those that the algorithm gives."""
    if codec != "rotated8" or CODED not in shapes:
        return shapes
    return {**shapes, SCALE: (rotation.scales(shapes[CODED][0]),)}


def _signs(request: Request) -> np.random.Generator:
    """What a round's rotation draws from: the same at every site."""
    return np.random.default_rng(seed(request.study, "rotation", str(request.round), str(request.exchange)))


def widen(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The same numbers as float64, exactly, each array of its shape."""
    return {name: np.asarray(array, np.float64) for name, array in arrays.items()}


def foreign(arrays: Mapping[str, Array], codec: Codec) -> str:
    """How the first array of another width than the study's codec says was expected and found; empty if there is none. Of any shape."""
    for name, array in arrays.items():
        if array.dtype != width(name, codec):
            return f"expected {name} as {np.dtype(width(name, codec))}, found {array.dtype}"
    return ""
