"""What fits by sums have in common: how often a patient counts, groups that are too small, and what a likelihood leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import NoFit
from fedrounds.core.exact import Solved
from fedrounds.core.params import Array, Vector

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows


def weights_of(rows: Rows) -> Array:
    """How often each training row counts (n,): as the study says, or once."""
    return np.ones(len(rows.y)) if rows.weight is None else rows.weight


def require_groups(counts: Vector, fewest: int, what: str) -> None:
    """Raise NoFit unless every group has `fewest` patients over all sites, at least one.

    Args:
        counts: (groups,) patients of each.
        what: what a group is called, in the message.
    """
    few = np.flatnonzero(counts < max(fewest, 1))
    if few.size:
        found, wanted = "none" if counts[few[0]] == 0 else "fewer", f"{fewest} " if fewest > 1 else ""
        raise NoFit(
            f"expected {wanted}training patients of every {what} at the sites that took part, found {found} of {what} {few[0] + 1} of"
            f" {len(counts)}, as study.toml has them in order: merge or leave out the {what}{', or change `fewest`' if fewest > 1 else ''}"
        )


def likely(solved: Solved, totals: Sums) -> Solved:
    """A solution with what its likelihood says: `information` (q, q) observed of all parameters, `log_likelihood` (1,) without penalty."""
    facts = {"information": totals["hessian"], "log_likelihood": -totals["loss"]}
    return solved._replace(facts={**solved.facts, **facts})
