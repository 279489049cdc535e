"""Which grid each sum of a study travels by under masks, and what a site's update counts for: bounds from what is public alone.

    counts, losses, scores       within 2^30 a site (2^44 where the target is a number, or there is none: squares are added up)
    sums of a feature            within its range times 2^24 rows
    slopes, curvatures           within 2^30 a site
    an update times its share    within the study's clip; what is beyond is clipped and counted
    steps times its share        within 2^30 a site

The share is rows / rows of all in round 0 (weights = "patients"), 1 ("uniform"), or the stated weight over the largest. What the shares
add up to rides along, so that whoever was not heard does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.messages import Ask
from fedrounds.core.params import Array
from fedrounds.core.preprocess import columns_of
from fedrounds.core.privacy import joint
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.sheet import Sheet
from fedrounds.core.study import Number, Study
from fedrounds.core.worse import SIZE, answered

ROWS = 2.0**24  # of a site
SUMS = 2.0**30
SQUARES = 2.0**44
EXACT = ("gradient", "hessian", "information", "branches", "outcome")  # sums of an exact fit, of standardised columns
MOMENTS = ("sum", "square", "product")  # the same, in a training round
SHARED = ("delta", "steps")  # a site sends them times its share, and of all they are means by weight
UNKNOWN = 2.0**17  # rows by which updates are scaled where no round 0 has counted them


def sheet(study: Study, ask: Ask, exchange: int, shapes: Mapping[str, tuple[int, ...]], champion: bool) -> Sheet:
    """How the sums of an exchange become words.

    Args:
        shapes: of the sums that a reply holds.
        champion: whether differences to a champion are among them.
    """
    assert study.masked is not None
    wide = SQUARES if study.target.kind in ("regression", "none") else SUMS
    judged = "compared" if study.privacy.dp else "paired"
    sizes = {**shapes, **({judged: (3,)} if champion else {}), **({"weight": (1,)} if "delta" in shapes else {})}
    sizes |= {"worse": (SIZE,)} if champion and study.masked.margin is not None else {}
    if study.privacy.dp:
        return Sheet(joint.grids(study, ask, sizes), sizes)
    grids: dict[str, Grid] = {}
    for name, shape in sizes.items():
        if name == "delta":
            grids[name] = Grid(np.array(study.masked.clip), study.masked.bits, clip=True)
        elif name in EXACT or (
            ask == "train" and name in MOMENTS
        ):  # their steps are fine, so that a fit keeps its digits
            grids[name] = Grid(np.full(prod(shape), SUMS))
        elif ask == "statistics" and name in ("sum", "square"):
            grids[name] = Grid(_of_features(study) if exchange == 0 else _of_columns(study, name))
        else:
            grids[name] = Grid(np.full(prod(shape), wide))
    return Sheet(grids, sizes)


def weighed(study: Study, sums: Sums, site: str, scale: float) -> Sums:
    """A site's sums with its update times its share of the weight, and `weight` (1,), that share; and `worse` (2,), where that counts.

    What a local rule says beside an update (SHARED) is weighed as the update is.
    """
    margin = study.masked.margin if study.masked else None
    if "paired" in sums and margin is not None:
        sums = {**sums, "worse": answered(sums, margin)}
    if "delta" not in sums:
        return sums
    weight = share(study, site, float(sums["train"][0]) if "train" in sums else 1.0)
    shared = {name: sums[name] * (weight / scale) for name in SHARED if name in sums}
    return {**sums, **shared, "weight": np.array([weight])}


def together(sums: Sums, scale: float) -> Sums:
    """The sums of all, each of its shape, with the update as their mean by weight. Raises UpdateRejected where no update has any."""
    if "delta" not in sums:
        return sums
    weight = float(sums["weight"][0])
    if weight <= 0:
        raise UpdateRejected("expected updates of some weight, found none: no site had rows to train on")
    found = {name: array for name, array in sums.items() if name != "weight"}
    return {**found, **{name: sums[name] * (scale / weight) for name in SHARED if name in sums}}


def share(study: Study, site: str, rows: float) -> float:
    """What a site's update counts for. Raises StudyError where weights are stated and this site's is not."""
    match study.weights:
        case "patients":
            return rows
        case "uniform":
            return 1.0
        case stated if site in stated:
            return stated[site]
        case _:
            raise StudyError(
                f"expected a weight for every site under `weights`, found none for '{site}': add it to study.toml"
            )


def scale(study: Study, statistics: Mapping[str, Array]) -> float:
    """By what shares are divided before they leave, so that no clipped number holds more than one site's part: public.

    Args:
        statistics: of which `rows` (1,) is read, where patients count.
    """
    match study.weights:
        case "patients":
            return float(statistics["rows"][0]) if "rows" in statistics else UNKNOWN
        case "uniform":
            return 1.0
        case stated:
            return max(stated.values())


def _of_features(study: Study) -> Array:
    return np.array([_power(_largest(f)) * ROWS if isinstance(f, Number) else SUMS for f in study.features])


def _of_columns(study: Study, name: str) -> Array:
    """Bounds of a column's distance from a public point within its range, or of its square, times rows."""
    bounds: list[float] = []
    for feature in study.features:
        if isinstance(feature, Number):
            assert feature.range is not None
            width = _power(feature.range[1] - feature.range[0])
            bounds.append((width * width if name == "square" else width) * ROWS)
        else:
            bounds += [SUMS] * len(columns_of(feature))
    return np.array(bounds)


def _largest(feature: Number) -> float:
    assert feature.range is not None
    return max(map(abs, feature.range))


def _power(value: float) -> float:
    """The next power of two from `value` on: steps of a grid are powers of two, so whole numbers stay whole."""
    return float(2.0 ** np.ceil(np.log2(value)))
