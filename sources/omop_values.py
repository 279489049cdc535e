"""What one row of an OMOP table says to a column: its value, and whether that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedrounds.sources.cdm import EQUALS
from fedrounds.sources.events import NO_DAY, Fit, day_of, worded
from fedrounds.sources.omop_options import EventColumn


def born(year: int, month: int, day: int) -> int:
    """The day, or the middle of what is known of it."""
    written = f"{year:04}" + (f"-{month:02}" + (f"-{day:02}" if day else "") if month else "")
    try:
        return day_of(written) if year else NO_DAY
    except ValueError:  # February 30
        return day_of(written[:4])


def taken(column: EventColumn) -> Callable[[dict[str, Any]], tuple[float | str | None, Fit]]:
    """How a column takes a row: what it says, None if nothing, and whether that fits."""
    factors = {**column.convert, column.unit_concept: 1.0}
    word = worded({**column.words, "0": ""}, column.other)

    def value(cells: dict[str, Any]) -> tuple[float | str | None, Fit]:
        if column.value is None:
            return 1.0, Fit.YES
        cell = cells[column.value]
        if cell is None or cell == "":
            return None, Fit.YES
        if column.value in ("value_as_concept_id", "value_as_string"):
            said = str(cell).strip()
            said = word([said]) if column.words else said
            return (None, Fit.YES) if said == "" else (said or "", Fit.CODE if said is None else Fit.YES)
        if isinstance(cell, str):
            return 0.0, Fit.KIND
        if cells.get("operator_concept_id") not in (None, 0, EQUALS):
            return 0.0, Fit.COMPARED
        unit = cells.get("unit_concept_id") or 0
        if column.unit_concept is not None and unit not in factors:
            return 0.0, Fit.UNIT
        number = float(cell) * (1.0 if column.unit_concept is None else factors[unit])
        return (number, Fit.YES) if np.isfinite(number) else (0.0, Fit.NUMBER)

    return value
