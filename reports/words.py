"""Numbers, names and counts, as a picture takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedrounds.core.study import Study

Numbers = Sequence[float | None]
SMALLEST = 10  # counts of patients below it, other than 0, are not shown


def trained_on(record: Mapping[str, Any]) -> float | None:
    """The training patients of a visit, of all sites together; None if it trained nobody, or nobody is told."""
    known = record["training"].get("patients")  # records of 0.1 had it by site alone
    return known or sum(site["training"]["patients"] for site in record["sites"].values() if "training" in site) or None


def how_to_load(study: Study) -> tuple[str, str]:
    """The line that loads a study's champion from MLflow, and what it gives."""
    flavour = study.model.flavour
    gives = (
        "a scikit-learn pipeline"
        if flavour == "sklearn"
        else "a PyTorch program with a scikit-learn pipeline before it"
    )
    return f"mlflow.{flavour}.load_model('models:/{study.name}@champion')", f"{gives}, preprocessing included"


def kind_of(study: Study) -> str:
    """What a study's model is called, with the installed code that it is."""
    return " ".join((study.model.kind, *study.model.runs))


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


def spread(wanted: Sequence[float], gap: float, most: float = 1.0) -> list[float]:
    """Moves heights in [0, most] apart by at least `gap`, keeping their order."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    least, highest = 0.0, most
    for i in order:
        placed[i] = max(wanted[i], least)
        least = placed[i] + gap
    for i in reversed(order):
        placed[i] = min(placed[i], highest)
        highest = placed[i] - gap
    return placed


def shown(n: float | None) -> str:
    """A count of patients as it may be shown (`counted` of the gate's verdicts does the same for rows).

    >>> [shown(n) for n in (None, 0, 9, 1234.0)]
    ['–', '0', 'fewer than 10', '1,234']
    """
    if n is None:
        return "–"
    return f"fewer than {SMALLEST}" if 0 < n < SMALLEST else f"{n:,.0f}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c"], 2)
    ('a', 'a, b and c', 'a, b and 1 more')
    """
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
