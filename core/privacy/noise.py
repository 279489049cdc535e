"""Noise for privacy: whole numbers from a discrete Gaussian, drawn from the operating system's entropy and never from a study's seed.

    P(k) = exp(-k² / 2σ²) / Σ_j exp(-j² / 2σ²)        (Canonne, Kamath and Steinke 2020, definition 1)

What is released is a whole number of grid steps, so that no low digit of a float tells what the noise was added to (Mironov 2012).

Not claimed: constant time. How long a draw takes hangs on the noise alone, not on what it hides; it awaits outside review.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isfinite, log, sqrt

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.params import Array, Vector

Whole = NDArray[np.int64]
DEEP = 191  # bits of a table's entry: 63 decide at once, 128 more where those are equal
GUIDED = 16  # bits that find most draws at once
EXACT = 320  # bits with which the table is computed
FINEST, COARSEST = 1.0, 65536.0  # σ in steps
SLACK = 1e-9  # relative: what floating-point sums of clipped vectors may be off by, many times over


class Bits:
    """A stream of random bits: AES-256 in counter mode, keyed by the operating system. Made for a release and then forgotten.

    Args:
        key: 32 bytes, where the stream must be had again (`excess.py`): they come of the operating system too, by a site's secret.

    Guarantees:
        * two streams that were given none never share a key, not even in a process that was forked: each draws its own;
        * nothing that a study says changes it.
    """

    def __init__(self, key: bytes | None = None) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES(key or secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """(count,) uniform 64-bit words."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), "<u8")

    def chosen(self, rate: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Of this shape: True with probability `rate` each, rounded down to a multiple of 2^-64: Poisson sampling.

        Guarantees:
            * each is drawn by itself; the rate is never above the one that is accounted for.
        """
        words = self.words(int(np.prod(shape))).reshape(shape)
        return np.ones(shape, np.bool_) if rate >= 1 else words < np.uint64(int(rate * 2**64))


def discrete_gaussian(sigma: float, count: int, bits: Bits) -> Whole:
    """Independent draws, (count,).

    Args:
        sigma: in steps, 1 to 65 536. The variance of the draws is σ² to 1e-7 of it and less from σ = 1 on.
        count: how many.

    Guarantees:
        * whole numbers, distributed as above to 2^-190 in total variation;
        * 63 bits that equal those of a table's entry are decided by 128 more, so that no tie is rounded away;
        * every draw uses bits of its own.
    """
    high, guide, entries = _table(sigma)
    words = bits.words(count)
    drawn = words >> np.uint64(1)
    cell = (drawn >> np.uint64(63 - GUIDED)).astype(np.intp)
    magnitude = guide[cell]
    unsure = np.flatnonzero(guide[1:][cell] != magnitude)  # an entry lies in the cell: before or after it, or on it
    if unsure.size:
        found = np.searchsorted(high, drawn[unsure], side="left")
        magnitude[unsure] = found
        for i in unsure[high[found] == drawn[unsure]]:
            more = int.from_bytes(bits.words(2).tobytes(), "little")
            magnitude[i] = _decided(entries, int(drawn[i]) << 128 | more, int(magnitude[i]))
    signed = magnitude.astype(np.int64)
    sign = (words & np.uint64(1)).astype(np.int64)
    return (signed ^ -sign) + sign


def _decided(entries: tuple[int, ...], drawn: int, first: int) -> int:
    """How many entries are at most `drawn`, where those before `first` are known to be."""
    while entries[first] <= drawn:
        first += 1
    return first


@lru_cache(maxsize=32)  # a part of noise each: `excess.rungs` are 16 at most
def _table(sigma: float) -> tuple[NDArray[np.uint64], NDArray[np.intp], tuple[int, ...]]:
    """2^191 P(|X| <= k) for k = 0, 1, ...: the first 63 bits as an array, and all of them as whole numbers.

    Between them a guide: how many entries lie before each of 2^16 cells, by their first bits.
    """
    if not (isfinite(sigma) and FINEST <= sigma <= COARSEST):
        raise ValueError(f"expected noise of {FINEST:g} to {COARSEST:g} steps, found {sigma:g}")
    numerator, denominator = sigma.as_integer_ratio()
    one = 1 << EXACT
    half = one * denominator**2 // (2 * numerator**2)  # 1 / 2σ²
    root = _exp_minus(half)  # exp(-1/2σ²); exp(-k²/2σ²) is a product of its odd powers
    square = root * root >> EXACT
    mass, step, total = one, root, one
    cumulative = [total]
    for _ in range(ceil(sigma * sqrt(2 * log(2) * (DEEP + 9)))):
        mass = mass * step >> EXACT
        step = step * square >> EXACT
        total += 2 * mass
        cumulative.append(total)
    entries = tuple((value << DEEP) // total for value in cumulative)
    high = np.array([entry >> 128 for entry in entries], np.uint64)
    guide = np.searchsorted(high, np.arange(2**GUIDED + 1, dtype=np.uint64) << np.uint64(63 - GUIDED), side="left")
    return high, guide, entries


def _exp_minus(x: int) -> int:
    """exp(-x) in fixed point, x from 0 to 1/2, by its series."""
    result, term, n = 0, 1 << EXACT, 0
    while term:
        result += -term if n % 2 else term
        n += 1
        term = (term * x >> EXACT) // n
    return result


@dataclass(frozen=True)
class Gaussian:
    """One release of a vector: clipped outside to `sensitivity` a patient, put on a grid, noised in whole steps.

    Args:
        sensitivity: how far one patient, added or removed, moves the vector (Euclidean), before it is put on the grid.
        multiplier: z, the noise's standard deviation over the sensitivity on the grid. It is all that an accountant needs to know.
        size: numbers in the vector.

    Guarantees:
        * the noise is at least z times what a patient can move the vector *on the grid*: rounding each of d numbers moves two vectors apart
          by at most γ√d more, which is added to the sensitivity (worst case, not on average);
        * what is released is a whole number of steps.
    """

    sensitivity: float
    multiplier: float
    size: int

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise in steps: a power of two, so fine that rounding costs about a fiftieth."""
        wanted = 50 * self.multiplier * sqrt(self.size)
        return min(max(2.0 ** ceil(log(wanted, 2)), 1024.0), COARSEST / 4)

    @property
    def step(self) -> float:
        """γ, from σγ = z (Δ + γ√d). Raises ValueError where no grid is coarse enough for so long a vector."""
        left = self.sigma - self.multiplier * sqrt(self.size)
        if left <= self.sigma / 2:
            raise ValueError(
                f"expected at most {int((self.sigma / 2 / self.multiplier) ** 2):,} numbers under this noise, found {self.size:,}"
            )
        return self.multiplier * self.sensitivity * (1 + SLACK) / left

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in the vector's own units."""
        return self.sigma * self.step

    def release(self, vector: Vector, bits: Bits) -> Vector:
        """The vector (size,) on its grid, with noise."""
        return self.grid(vector, discrete_gaussian(self.sigma, self.size, bits))

    def noise(self, times: int, bits: Bits) -> Whole:
        """Noise for so many releases at once, (times, size) in steps."""
        return discrete_gaussian(self.sigma, times * self.size, bits).reshape(times, self.size)

    def grid(self, vector: Array, noise: Whole) -> Vector:
        """The vector (size,) rounded to whole steps, plus noise (size,) in steps, in its own units again."""
        return np.multiply(np.rint(vector / self.step) + noise, self.step, dtype=np.float64)
