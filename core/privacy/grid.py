"""Numbers as whole steps of a public grid, so that they can be masked, and their sum is exact.

A number x with |x| <= bound travels as round(x / step), from -levels to levels, in an unsigned word that wraps around. The levels are
chosen so that the sum of all sites fits the word whatever they send: n * levels <= 2^(bits - 1) - 1. So nothing can overflow; what is
beyond the bound is clipped and counted, or refused, as its grid says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array

Bits = Literal[16, 32, 64]
Unsigned = NDArray[np.unsignedinteger]

WORD: Mapping[Bits, type[np.unsignedinteger]] = {16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: Mapping[Bits, type[np.signedinteger]] = {16: np.int16, 32: np.int32, 64: np.int64}
CHUNK = 1 << 15  # numbers at a time: they stay in the processor's cache
EXACT = 2**53  # whole numbers up to here are the same in float64


@dataclass(frozen=True)
class Grid:
    """How one array travels.

    Args:
        bound: () the largest number, or one for each element of the array, of its shape; above 0. With words of 64 bits and a power
            of two, a step is a power of two as well: then counts, and whatever is a whole number of steps, arrive exactly.
        bits: of a word.
        clip: whether what is beyond the bound is clipped; if not, it is refused.
    """

    bound: Array
    bits: Bits = 64
    clip: bool = False

    def levels(self, sites: int) -> int:
        """The largest number of steps of one of so many sites.

        Guarantees:
            * the sum of `sites` numbers of so many steps fits a signed word, and float64 holds each one exactly.
        """
        most = (2 ** (self.bits - 1) - 1) // sites
        return most if self.bits < 64 else 1 << (min(most, EXACT).bit_length() - 1)

    def step(self, sites: int) -> Array:
        """The width of a step, of the bound's shape: a number moves by at most half of it."""
        return self.bound / self.levels(sites)

    def words(self, name: str, numbers: Array, sites: int, link: bytes = b"") -> tuple[Unsigned, int]:
        """The numbers as words, of the same shape, and how many were clipped.

        Args:
            link: of noise that may be taken away again, of which there is none here.

        Raises:
            UpdateRejected: a number is not finite, or beyond a bound that does not clip.
        """
        del link
        flat, step = numbers.reshape(-1), np.broadcast_to(self.step(sites), numbers.shape).reshape(-1)
        bound = np.broadcast_to(self.bound, numbers.shape).reshape(-1)
        found, clipped = np.empty(flat.size, SIGNED[self.bits]), 0
        for start in range(0, flat.size, CHUNK):
            chunk = slice(start, start + CHUNK)
            part, most = flat[chunk], bound[chunk]
            beyond = int(np.count_nonzero(np.abs(part) > most))
            if not np.isfinite(part).all():
                raise UpdateRejected(f"expected finite numbers in '{name}', found NaN or infinity: nothing was sent")
            if beyond and not self.clip:
                raise UpdateRejected(
                    f"expected sums of '{name}' within what masked sums can carry, found larger ones: give the features"
                    " ranges that hold, or scale the target"
                )
            steps = (np.clip(part, -most, most) if beyond else part) / step[chunk]
            found[chunk] = np.rint(steps, out=steps)
            clipped += beyond
        return found.view(WORD[self.bits]).reshape(numbers.shape), clipped

    def numbers(self, words: Unsigned, sites: int) -> Array:
        """The sum of so many sites' numbers, from the sum of their words, of the same shape.

        >>> grid = Grid(np.array(1.0), bits=16)
        >>> a, b = (grid.words("x", np.array([x]), 2)[0] for x in (0.25, -1.0))
        >>> grid.numbers(a + b, 2).round(4).tolist()
        [-0.75]
        """
        steps = words.view(SIGNED[self.bits]).astype(np.float64)
        return steps * self.step(sites)
