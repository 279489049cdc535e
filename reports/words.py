"""Numbers, names and counts, as a picture takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Numbers = Sequence[float | None]


def check(length: int, **series: Sequence[Any]) -> None:
    """Raises ValueError, with its name, for a series of another length."""
    for name, values in series.items():
        if len(values) != length:
            raise ValueError(f"expected {length} values in {name}, got {len(values)}: the series are parallel")


def number(value: float | None) -> float:
    """NaN for whatever was not measured: None, NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else math.nan


def short(name: str, most: int) -> str:
    """Keeps both ends of a long name: hospitals of one group differ at the end."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[len(name) - most // 2 :]}"


def plain(label: str) -> str:
    """An axis label without its unit."""
    return short(label.split(" (")[0], 24)


def count(n: int, thing: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
