"""Small counts stay at the site: the one place where a reply's sums are thinned before they leave."""

from __future__ import annotations

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.params import Array


def withhold(sums: Sums, minimum: int) -> Sums:
    """The sums without what is about fewer than `minimum` patients.

    Guarantees:
        * a feature that fewer than `minimum` patients have a value of leaves as if none had (its sum would be theirs);
        * a level that fewer than `minimum` patients have leaves as 0;
        * scores of fewer than `minimum` validation rows, and their histogram, leave as of no rows;
        * differences to the champion of fewer than `minimum` validation rows leave as of no rows.

    Updates and their training loss are not thinned: a site below its minimum cohort sends none at all.
    """
    thinned: dict[str, Array] = dict(sums)
    if "observed" in sums:
        few = sums["observed"] < minimum
        thinned["observed"], thinned["sum"] = np.where(few, 0.0, sums["observed"]), np.where(few, 0.0, sums["sum"])
        thinned["levels"] = np.where(sums["levels"] < minimum, 0.0, sums["levels"])
    for about, names in (("scores", ("scores", "histogram")), ("paired", ("paired",))):
        if about in sums and sums[about][0] < minimum:
            thinned |= {name: np.zeros_like(sums[name]) for name in names}
    return thinned
