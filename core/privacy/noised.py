"""Noise that many sites make together: each adds a share to its own whole numbers before they are masked, so the sum alone is private.

Of a roster of n, t = ⌊2n/3⌋ + 1 or more are in every sum that masks let through; c of them may tell the coordinator what they drew. A
share has variance σ² / (t - c), so what is left in any sum has σ² at least (Kairouz, Liu and Steinke 2021, "The distributed discrete
Gaussian mechanism"), and (n of them) / (t - c) times σ² if all are there. One share alone is too little to hide behind: it never leaves
without masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, pi, sqrt

import numpy as np

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array
from fedrounds.core.privacy.epoch import threshold
from fedrounds.core.privacy.grid import SIGNED, WORD, Grid, Unsigned
from fedrounds.core.privacy.noise import Bits, Gaussian, discrete_gaussian

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


def gap(sigma: float, shares: int) -> float:
    """τ of Kairouz et al. 2021, proposition 14: how far a sum of so many shares is from one discrete Gaussian.

    A release of d numbers has a privacy loss of at most τd more than it is accounted for, with or without sampling: τ/2 bounds the
    logarithm of the ratio of either probability of each number.

    Args:
        sigma: of a share, in steps.

    >>> gap(4.0, 1000) < 1e-65, gap(0.5, 2) > 0.05
    (True, True)
    """
    return 10 * sum(exp(-2 * pi**2 * sigma**2 * k / (k + 1)) for k in range(1, shares))


@dataclass(frozen=True, kw_only=True)
class Noised(Grid):
    """A grid on which numbers get this site's share of noise before they become words.

    Args:
        bound: beyond it a number is set to it, which moves two vectors no further apart; it is not counted, as a count would tell.
        mechanism: sensitivity, and the noise σ that every sum has at least: what is accounted for.
        colluders: c, None for as many as the masks withstand.

    Guarantees:
        * in every sum of t sites or more, c of them known, there is noise of σ or more, whoever was lost;
        * what a patient moves is counted on the grid, rounding included (`noise.Gaussian`);
        * the sum fits its word, noise included: nothing overflows;
        * every call draws anew: two answers never share their noise.
    """

    mechanism: Gaussian
    colluders: int | None = None

    def share(self, sites: int) -> float:
        """Standard deviation of one site's noise, in steps. Raises UpdateRejected where it is too little."""
        honestly = honest(sites, self.colluders)
        sigma = self.mechanism.sigma / sqrt(honestly)
        if sigma < LEAST_SHARE or gap(sigma, sites) * self.mechanism.size > NEGLIGIBLE:
            raise UpdateRejected(
                f"expected a share of noise of {LEAST_SHARE:g} steps or more, found {sigma:.3g}: {sites} sites are too many"
            )
        return sigma

    def step(self, sites: int) -> Array:
        """The mechanism's, of shape (), however many sites there are."""
        del sites
        return np.array(self.mechanism.step)

    def deviation(self, heard: int, sites: int) -> float:
        """Standard deviation of the noise in a sum of so many, in the vector's own units."""
        return self.mechanism.deviation * sqrt(heard / honest(sites, self.colluders))

    def words(self, name: str, numbers: Array, sites: int) -> tuple[Unsigned, int]:
        """The numbers with noise, as words of the same shape, and 0: what was clipped is not counted.

        Raises:
            UpdateRejected: a number is not finite, or the word is too narrow for what sites may add up to.
        """
        if not np.isfinite(numbers).all():
            raise UpdateRejected(f"expected finite numbers in '{name}', found NaN or infinity: nothing was sent")
        sigma, step, bound = self.share(sites), self.mechanism.step, float(self.bound)
        if sites * (bound / step + 1 + REACH * sigma) >= 2.0 ** (self.bits - 1):
            raise UpdateRejected(
                f"expected words wide enough for '{name}' of {sites} sites, found {self.bits} bits: set privacy.protect.bits to 64"
            )
        flat = np.clip(numbers.reshape(-1), -bound, bound)
        whole = np.rint(flat / step).astype(np.int64) + discrete_gaussian(sigma, flat.size, Bits())
        return whole.astype(SIGNED[self.bits]).view(WORD[self.bits]).reshape(numbers.shape), 0
