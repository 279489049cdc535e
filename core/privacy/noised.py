"""Noise that many sites make together: each adds a share to its own whole numbers before they are masked, so the sum alone is private.

Of a roster of n, t = ⌊2n/3⌋ + 1 or more are in every sum that masks let through; c of them may tell the coordinator what they drew. A
share has variance σ² / (t - c), so what is left in any sum has σ² at least (Kairouz, Liu and Steinke 2021, "The distributed discrete
Gaussian mechanism"). Where m > t were heard that is more than it takes, and the sites tell the part of their shares that they added for
those who might have been lost (`excess.py`): what stays is σ² m / (m - c). One share alone is too little to hide behind: it never leaves
without masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import exp, pi, sqrt

import numpy as np

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array
from fedrounds.core.privacy.epoch import threshold
from fedrounds.core.privacy.excess import LINK, rung, rungs, seeds
from fedrounds.core.privacy.grid import SIGNED, WORD, Grid, Unsigned
from fedrounds.core.privacy.noise import Bits, Gaussian, Whole, discrete_gaussian

LEAST_SHARE = 4.0  # steps: from here on a sum of shares is as good as one discrete Gaussian
NEGLIGIBLE = 1e-30  # of privacy loss a release: far below what ε in double precision can tell
REACH = 17.0  # standard deviations that a draw never passes: the table of `noise.discrete_gaussian` ends before


def honest(sites: int, colluders: int | None) -> int:
    """How many of each sum's sites are counted on for noise: t - c.

    Args:
        sites: of the roster.
        colluders: c; by default as many as the masks withstand, n - t.

    Raises:
        UpdateRejected: nobody would be left.

    >>> [honest(n, None) for n in (3, 4, 5, 10, 50)], honest(4, 0)
    ([3, 2, 3, 4, 18], 3)
    """
    enough = threshold(sites)
    left = enough - (sites - enough if colluders is None else colluders)
    if left < 1:
        raise UpdateRejected(
            f"expected fewer sites that lie than the {enough} of {sites} that are in a sum, found privacy.dp.colluders = {colluders}"
        )
    return left


def made(heard: int, told: int, sites: int, colluders: int | None) -> float:
    """How many times σ² is in a sum of `heard` of so many sites, of whom `told` have told what it can do without.

    >>> made(4, 4, 4, None), made(4, 0, 4, None), made(3, 0, 4, None)
    (1.3333333333333333, 2.0, 1.5)
    """
    least = honest(sites, colluders)
    lightened = rungs(sites)[rung(heard, sites)] - threshold(sites) + least
    return told / lightened + (heard - told) / least


def gap(sigma: float, draws: int) -> float:
    """τ of Kairouz et al. 2021, proposition 14: how far a sum of so many draws is from one discrete Gaussian.

    A release of d numbers has a privacy loss of at most τd more than it is accounted for, with or without sampling: τ/2 bounds the
    logarithm of the ratio of either probability of each number. Theirs is for draws alike; the k-th term there hangs on a²b² / (a² + b²),
    a² being the variance of one more draw and b² that of those before, which is σ²/2 at least where no draw has less than σ².

    Args:
        sigma: of the smallest draw, in steps.

    >>> gap(4.0, 1000) < 1e-64, gap(0.5, 2) > 0.05
    (True, True)
    """
    return 10 * (draws - 1) * exp(-(pi**2) * sigma**2)


@dataclass(frozen=True, kw_only=True)
class Noised(Grid):
    """A grid on which numbers get this site's share of noise before they become words.

    Args:
        bound: beyond it a number is set to it, which moves two vectors no further apart; it is not counted, as a count would tell.
        mechanism: sensitivity, and the noise σ that every sum has at least: what is accounted for.
        colluders: c, None for as many as the masks withstand.

    Guarantees:
        * in every sum of t sites or more, c of them known, there is noise of σ or more, whoever was lost, whoever tells what it can do without;
        * what a patient moves is counted on the grid, rounding included (`noise.Gaussian`);
        * the sum fits its word, noise included: nothing overflows;
        * every call draws anew: two answers never share their noise.
    """

    mechanism: Gaussian
    colluders: int | None = None

    def parts(self, sites: int) -> tuple[float, ...]:
        """Standard deviation of each part of one site's noise, in steps: first what always stays, then what ever larger sums can do without.

        Raises UpdateRejected where one of them is too little.
        """
        liars = threshold(sites) - honest(sites, self.colluders)
        shares = [1 / (many - liars) for many in rungs(sites)]
        found = tuple(self.mechanism.sigma * sqrt(share - less) for less, share in pairwise([0.0, *shares]))
        if min(found) < LEAST_SHARE or gap(min(found), sites * len(found)) * self.mechanism.size > NEGLIGIBLE:
            raise UpdateRejected(
                f"expected a share of noise of {LEAST_SHARE:g} steps or more, found {min(found):.3g}: {sites} sites are too many"
            )
        return found

    def step(self, sites: int) -> Array:
        """The mechanism's, of shape (), however many sites there are."""
        del sites
        return np.array(self.mechanism.step)

    def deviation(self, heard: int, sites: int, told: int = 0) -> float:
        """Standard deviation of the noise in a sum of so many, in the vector's own units."""
        return self.mechanism.deviation * sqrt(made(heard, told, sites, self.colluders))

    def words(self, name: str, numbers: Array, sites: int, link: bytes = b"") -> tuple[Unsigned, int]:
        """The numbers with noise, as words of the same shape, and 0: what was clipped is not counted.

        Args:
            link: the first of the site's chain, by which all of its noise but the first part can be had again.

        Raises:
            UpdateRejected: a number is not finite, or the word is too narrow for what sites may add up to.
            ValueError: there is no such link: noise of none would be known to everybody.
        """
        if len(link) != LINK:
            raise ValueError(f"expected a link of {LINK} bytes for the noise of '{name}', found {len(link)}")
        if not np.isfinite(numbers).all():
            raise UpdateRejected(f"expected finite numbers in '{name}', found NaN or infinity: nothing was sent")
        parts, step, bound = self.parts(sites), self.mechanism.step, float(self.bound)
        if sites * (bound / step + 1 + REACH * sum(parts)) >= 2.0 ** (self.bits - 1):
            raise UpdateRejected(
                f"expected words wide enough for '{name}' of {sites} sites, found {self.bits} bits: set privacy.protect.bits to 64"
            )
        flat = np.clip(numbers.reshape(-1), -bound, bound)
        whole = np.rint(flat / step).astype(np.int64) + discrete_gaussian(parts[0], flat.size, Bits())
        whole += _told(parts[1:], link, name, flat.size)
        return whole.astype(SIGNED[self.bits]).view(WORD[self.bits]).reshape(numbers.shape), 0

    def excess(self, name: str, size: int, sites: int, heard: int, links: Iterable[bytes]) -> Unsigned:
        """The noise that a sum of `heard` can do without, as words (size,) to be taken out of it.

        Args:
            links: of each of those who told theirs (`excess.spare`).
        """
        whole, needless = np.zeros(size, np.int64), self.parts(sites)[rung(heard, sites) + 1 :]
        for link in links:
            whole += _told(needless, link, name, size)
        return whole.astype(SIGNED[self.bits]).view(WORD[self.bits])


def _told(parts: Iterable[float], link: bytes, name: str, size: int) -> Whole:
    """The noise (size,) in steps that a link tells: the sum of these parts, the first of which comes of the link itself."""
    whole = np.zeros(size, np.int64)
    for sigma, key in zip(parts, seeds(link, name), strict=False):
        whole += discrete_gaussian(sigma, size, Bits(key))
    return whole
