"""scikit-learn's data sets, dealt to simulated hospitals. The patients are real, the hospitals are not."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import StudyError
from fedrounds.core.table import Table
from fedrounds.sources.options import BundledSource

TARGETS = {
    "diabetes": "progression",
    "breast_cancer": "benign",
    "iris": "species",
    "wine": "cultivar",
    "digits": "digit",
}


def read(source: BundledSource, site: str) -> Table:
    """This hospital's rows in the data set's order: numbers in their own units, and a `patient_id` such as d0042."""
    from sklearn import datasets

    options = {"scaled": False} if source.name == "diabetes" else {}
    data = getattr(datasets, f"load_{source.name}")(**options)
    names = [re.sub(r"\W+", "_", name).strip("_") for name in data.feature_names]  # "mean radius" -> mean_radius
    columns = {name: np.array(values, np.float64) for name, values in zip(names, data.data.T, strict=True)}
    columns[TARGETS[source.name]] = np.array(data.target, np.float64)
    if source.tilt is not None and source.tilt not in columns:
        raise StudyError(f"site '{site}': expected `tilt` to be one of {', '.join(columns)}, found '{source.tilt}'")

    rows = len(data.target)
    tilt = None if source.tilt is None else columns[source.tilt]
    mine = np.flatnonzero(deal(rows, source.shares, tilt, source.seed) == source.hospital)
    if not len(mine):
        raise StudyError(f"site '{site}': expected a share of at least one of {rows} rows, found less: raise it")
    ids = np.array([f"{source.name[0]}{row:04d}" for row in range(rows)], dtype=object)
    return Table({"patient_id": ids, **columns}).take(mine)


def deal(rows: int, shares: tuple[float, ...], tilt: NDArray[np.float64] | None, seed: int) -> NDArray[np.intp]:
    """(rows,) the hospital of each row: every row goes to exactly one, in counts rounded by the largest remainder.

    Rows are lined up by noise plus, with a tilt, their rank in it; hospitals, shuffled, take consecutive stretches.

    >>> np.bincount(deal(442, (0.4, 0.3, 0.2, 0.1), None, seed=0)).tolist()
    [177, 133, 88, 44]
    """
    from scipy.stats import rankdata

    exact = rows * np.array(shares)
    counts = np.floor(exact + 1e-9).astype(np.intp)
    short = rows - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1

    random = np.random.default_rng(seed)
    turn = np.argsort(random.random(len(shares)))
    line = random.random(rows) + (0.0 if tilt is None else rankdata(tilt) / rows)
    hospital = np.empty(rows, np.intp)
    hospital[np.argsort(line, kind="stable")] = np.repeat(turn, counts[turn])
    return hospital
