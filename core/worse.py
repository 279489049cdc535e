"""How many sites a version is worse for, where sums are masked: each says yes or no, and the sum of the answers is all that is known.

`[privacy] protect = {kind = "masked", margin = 0.05}` adds two masked coordinates wherever a champion is scored: whether the mean
difference d = loss(candidate) − loss(champion) of the site's own validation rows is above the margin, which is the test that the promotion
rule makes of a site whose numbers are known; and whether the site has compared at all. The margin is of the protocol, so a coordinator
cannot ask for other ones until the answers tell more.

Guarantees:
    * the coordinator learns how many sites say yes, of how many, and never which, unless all or none do: then it is known of each;
    * a site answers only where the roster that it goes by names FEWEST or more.

Not protected: whoever knows the answers of all sites but one knows that one's too; a site that lies may say yes, or more than yes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array

FEWEST = 5  # sites of the roster: among fewer, a count says too much of each
SIZE = 2  # of the array: worse, compared


class Worse(NamedTuple):
    """Of how many sites' `compared` a version's loss rose by more than `margin` above the champion's."""

    sites: int
    compared: int
    margin: float

    @property
    def said(self) -> str:
        """The count in words.

        >>> Worse(1, 5, 0.05).said
        'the loss rose by more than 0.05 at 1 of 5 sites'
        """
        return f"the loss rose by more than {self.margin:.4g} at {self.sites} of {self.compared} sites"


def answered(sums: Sums, margin: float) -> Array:
    """[1 if this site got worse, 1 if it compared], from its `[n, Σd, Σd²]` (3,) as they may leave: what is withheld counts for nothing.

    >>> answered({"paired": np.array([10.0, 0.6, 0.1])}, 0.05).tolist()
    [1.0, 1.0]
    """
    n, total, _ = (float(value) for value in sums["paired"])
    return np.array([float(n > 0 and total / n > margin), float(n > 0)])


def counted(sums: Array, margin: float, heard: int) -> Worse:
    """The count (2,) of all that were heard. Raises UpdateRejected where yeses and noes of so many sites cannot add up to it."""
    worse, compared = (float(value) for value in sums)
    if not (0 <= worse <= compared <= heard and worse.is_integer() and compared.is_integer()):
        raise UpdateRejected(
            f"expected how many of {heard} sites got worse, found no such count: a site sent what is neither yes nor no"
        )
    return Worse(int(worse), int(compared), margin)
