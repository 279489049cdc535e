"""The sites: what each gains from the federation, and how far it stays below pooled data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedrounds.reports import card
from fedrounds.reports.words import SMALLEST, Numbers, check, count, number, plain, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 50


def sites(
    names: Sequence[str],
    local: Numbers,
    federated: Numbers,
    pooled: Numbers,
    *,
    metric_name: str,
    study: str,
    patients: Sequence[int | None],
) -> bytes:
    """Draws the sites side by side, one row each: the local-only model, the federated one and the pooled ceiling.

    The largest site is on top. Beyond fifty sites only the fifty largest are drawn, and the title says so. A model that
    could not be measured at a site has no dot but a note at the end of the row.

    Args:
        names: The sites.
        local: The metric of each site's own model, on that site's patients.
        federated: The metric of the federated model there.
        pooled: The metric there of a model fitted to all rows in one place.
        metric_name: Axis label, with its unit or scale: `"AUC (0 to 1)"`.
        study: The study's name.
        patients: The number of patients of each site; `None` where the count is withheld.

    Returns:
        The PNG.

    Raises:
        ValueError: A series has another length than `names`.
    """
    check(len(names), local=local, federated=federated, pooled=pooled, patients=patients)
    shown = sorted(range(len(names)), key=lambda i: -(patients[i] or 0))[:MOST_ROWS]
    rows = [tuple(number(series[i]) for series in (local, federated, pooled)) for i in shown]
    labels = [f"{short(names[i], 28)} ({_n(patients[i])})" for i in shown]
    notes = [_missing(row) for row in rows]
    which = f"the {MOST_ROWS} largest of {len(names)} sites" if len(names) > MOST_ROWS else count(len(names), "site")
    says = ["largest first"] * (len(rows) > 1) + ["n/a: not measurable, as when all outcomes are alike"] * any(notes)
    row_in = 0.3 if len(rows) <= 12 else 0.2
    tall_in = row_in * max(len(rows), 3)
    fig = card.figure(8.6, tall_in + 1.65, f"{short(study, 30)}: {plain(metric_name)} at {which}", "  ·  ".join(says))
    left_in, right_in = 0.35 + card.width_in(fig, labels, 8), 0.3 + card.width_in(fig, notes, 7.5)
    ax = card.panel(fig, left_in, 0.6, 8.6 - left_in - right_in, tall_in)
    _dots(ax, rows)
    few = max(3 - len(rows), 0) / 2
    ax.set_ylim(len(rows) - 0.5 + few, -0.5 - few)
    ax.set_xlabel(metric_name, fontsize=9, color=card.INK, parse_math=False)
    ax.set_yticks([])  # fifty texts draw faster than fifty ticks
    at = {"transform": ax.get_yaxis_transform(), "va": "center", "parse_math": False}
    for y, (label, note) in enumerate(zip(labels, notes, strict=True)):
        ax.text(-0.012, y, label, fontsize=8, color=card.INK, ha="right", **at)
        if note:
            ax.text(1.012, y, note, fontsize=7.5, color=card.SOFT, style="italic", **at)
    return card.png(fig)


def _dots(ax: Axes, rows: Sequence[tuple[float, ...]]) -> None:
    """Draws the rows; the three shapes stay visible when their values coincide."""
    seen = [(y, [v for v in row if not math.isnan(v)]) for y, row in enumerate(rows)]
    spans = [(y, min(values), max(values)) for y, values in seen if values]
    ax.hlines(range(len(rows)), 0, 1, transform=ax.get_yaxis_transform(), color=card.FAINT, linewidth=0.5, zorder=1)
    ax.hlines([y for y, *_ in spans], [a for _, a, _ in spans], [b for *_, b in spans], color="#B0B0B0", zorder=2)
    kinds = (  # name, marker, size, fill, edge
        ("local only", "o", 7, "white", "#D55E00"),
        ("federated", "o", 4.5, card.BLUE, card.BLUE),
        ("pooled ceiling", "|", 11, card.BLACK, card.BLACK),
    )
    for k, (name, marker, size, inside, edge) in enumerate(kinds):
        look = {"marker": marker, "markersize": size, "markerfacecolor": inside, "markeredgecolor": edge}
        values = [row[k] for row in rows]
        ax.plot(values, range(len(rows)), ls="none", mew=1.6, label=name, zorder=3 + k, **look)
    if spans:
        low, high = min(a for _, a, _ in spans), max(b for *_, b in spans)
        # A gap of 0.001 must not look like a gulf.
        pad = max(0.05 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-9)
        ax.set_xlim(low - pad, high + pad)
    else:
        ax.set_xticks([])
        card.not_measured(ax)
    tall_in = ax.get_window_extent().size[1] / card.DPI
    card.legend(ax, loc="lower left", bbox_to_anchor=(0, 1 + 0.03 / tall_in), ncols=3, frameon=False, borderaxespad=0)


def _missing(row: Sequence[float]) -> str:
    lost = [name for name, value in zip(("local", "federated", "pooled"), row, strict=True) if math.isnan(value)]
    return "n/a" if len(lost) == 3 else f"{', '.join(lost)} n/a" if lost else ""


def _n(patients: int | None) -> str:
    return "n withheld" if patients is None or 0 < patients < SMALLEST else f"n = {patients:,}"
