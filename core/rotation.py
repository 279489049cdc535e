"""An update in 8 bits a number: a seeded rotation makes its numbers alike, stochastic rounding keeps its mean.

Blocks of BLOCK numbers (and of powers of two below, for what is left over) are multiplied by random signs and a Hadamard matrix, which is
orthonormal: an outlier, which would set the width of everybody's step, is spread over its block (Suresh et al. 2017, section 4; Ailon and
Chazelle 2009). Each block's largest number then sets its step, `scale` = largest / 127 as a float32, and a number becomes one of the two
whole numbers of steps beside it, by chance, so that it is right in the mean (Alistarh et al. 2017).

    error of a block      below scale * sqrt(block) always: 0.09 of its norm at most; about 0.009 of it where its numbers are many
    errors of n sites     are independent: of their mean about 0.009 / sqrt(n)
    bytes                 size + 4 * scales(size): 1.03 a number, at most 1.5 from 32 numbers on

The signs come from the study and the round, so both ends know them; the draws of rounding from the site's own generator of that round: an answer
that is worked out again has the same bytes. Nothing here hides anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array, Vector

BLOCK = 128  # a power of two: larger ones have larger outliers left, smaller ones more scales
LEVELS = 127

Codes = NDArray[np.uint8]  # whole numbers from -127 to 127, as bytes of two's complement
Scales = NDArray[np.float32]  # of the blocks, in order


def blocks(size: int) -> list[tuple[int, int]]:
    """How many blocks of how many numbers a vector falls into.

    >>> blocks(300), blocks(11)
    ([(2, 128), (1, 32), (1, 8), (1, 4)], [(1, 8), (1, 2), (1, 1)])
    """
    whole, left = divmod(size, BLOCK)
    parts = [(1, 1 << bit) for bit in reversed(range(BLOCK.bit_length() - 1)) if left >> bit & 1]
    return ([(whole, BLOCK)] if whole else []) + parts


def scales(size: int) -> int:
    """How many blocks a vector falls into, each with a scale."""
    return sum(count for count, _ in blocks(size))


def rotate(numbers: Vector, signs: np.random.Generator) -> Vector:
    """Signs and Hadamard matrix, block by block: (d,) of numbers (d,), of the same norm."""
    found = numbers * _signs(len(numbers), signs)
    for part in _parts(found):
        part[:] = _hadamard(part)
    return found


def turn_back(numbers: Vector, signs: np.random.Generator) -> Vector:
    """(d,) what was rotated with the same signs."""
    found = numbers.copy()
    for part in _parts(found):
        part[:] = _hadamard(part)
    return found * _signs(len(numbers), signs)


def code(numbers: Vector, signs: np.random.Generator, chance: np.random.Generator) -> tuple[Codes, Scales]:
    """An update as bytes (d,) and the scales of its blocks (scales(d),).

    Raises UpdateRejected where a number is beyond what a float32 scale can hold.
    """
    rotated = rotate(numbers, signs)
    largest = np.concatenate([np.abs(part).max(1) for part in _parts(rotated)] or [np.zeros(0)]) / LEVELS
    with np.errstate(over="ignore"):  # what overflows is seen below
        scale = largest.astype(np.float32)
        scale = np.where(scale < largest, np.nextafter(scale, np.float32(np.inf)), scale)
    if not np.isfinite(scale).all():
        raise UpdateRejected(
            "expected an update within what the study's codec can hold, found a larger number: lower the learning rate, standardise the"
            " features, or set codec to float64"
        )
    step = _each(scale, len(numbers))
    steps = np.divide(rotated, step, out=np.zeros(len(numbers)), where=step > 0)
    whole = np.clip(np.floor(steps + chance.random(len(numbers))), -LEVELS, LEVELS)
    return whole.astype(np.int8).view(np.uint8), scale


def decode(codes: Codes, scale: Scales, signs: np.random.Generator) -> Vector:
    """The update (d,) that bytes (d,) and scales (scales(d),) stand for. Raises UpdateRejected where they are none."""
    whole = codes.view(np.int8)
    if (whole < -LEVELS).any() or (scale < 0).any():
        raise UpdateRejected("expected an update in steps of -127 to 127 with scales of 0 and more, found others")
    return turn_back(whole * _each(scale, len(codes)), signs)


def _signs(size: int, signs: np.random.Generator) -> Array:
    return np.where(signs.integers(0, 2, size) == 1, -1.0, 1.0)


def _parts(numbers: Vector) -> list[Array]:
    """Views of a vector, (blocks, numbers of a block) each."""
    found: list[Array] = []
    start = 0
    for count, width in blocks(len(numbers)):
        found.append(numbers[start : start + count * width].reshape(count, width))
        start += count * width
    return found


def _each(scale: Scales, size: int) -> Array:
    """The scale of every number."""
    widths = [width for count, width in blocks(size) for _ in range(count)]
    return np.repeat(scale.astype(np.float64), np.array(widths, np.intp))


def _hadamard(rows: Array) -> Array:
    """Each row times the orthonormal Hadamard matrix, which is its own inverse: adds and subtracts alone, in one order everywhere.

    >>> _hadamard(np.array([[3.0, 1.0, 0.0, 0.0]])).tolist()
    [[2.0, 1.0, 2.0, 1.0]]
    """
    count, width = rows.shape
    found, half = rows, 1
    while half < width:
        pairs = found.reshape(count, width // (2 * half), 2, half)
        found = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2).reshape(count, width)
        half *= 2
    return found / float(np.sqrt(width))
