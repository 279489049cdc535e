"""The drift: which feature of which site has moved, and how a site moved from profile to profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedrounds.reports import card
from fedrounds.reports.rounds import LINES, MOST_NAMED, line, name_ends
from fedrounds.reports.words import Numbers, check, count, number, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS, MOST_COLUMNS = 50, 30
SHADES = (
    "#FFFFFF",
    "#D6E6F2",
    "#9CC5E0",
    "#4F9BCB",
    "#0072B2",
    "#00416B",
)  # of one hue, light to dark: order without colour vision
FRAMES = (
    {"edgecolors": "#E69F00", "linewidths": 1.2},
    {"edgecolors": "#D55E00", "linewidths": 2.6},
)  # beyond warn, beyond hold


def heatmap(
    sites: Sequence[str],
    features: Sequence[str],
    psi: Mapping[str, Numbers],
    *,
    study: str,
    against: str,
    warn: float | None = None,
    hold: float | None = None,
) -> bytes:
    """Draws a cell for each site and feature, darker the further it lies apart; the furthest site on top.

    A cell beyond a limit is framed, thickly and with a bold number beyond the one that holds: it needs no colour to be seen. A dot says
    that there is nothing beyond chance, a dash that nothing was compared. Beyond fifty sites or thirty features the furthest are drawn,
    and the title says so.

    Args:
        sites: The sites.
        features: The columns, as the dictionary has them; the target last.
        psi: Site -> its population stability index of each column, beyond chance.
        study: The study's name.
        against: What each site is compared with: `"its reference profile"`.
        warn, hold: The limits; without them nothing is framed.

    Returns:
        The PNG.

    Raises:
        ValueError: A site has another number of values than there are features.
    """
    check(len(features), **{f"psi[{site!r}]": psi[site] for site in sites})
    table = {site: [number(value) for value in psi[site]] for site in sites}
    far = [
        max((row[j] for row in table.values() if not math.isnan(row[j])), default=-1.0) for j in range(len(features))
    ]
    rows = sorted(sites, key=lambda site: (-max((v for v in table[site] if not math.isnan(v)), default=-1.0), site))
    columns = sorted(sorted(range(len(features)), key=lambda j: (-far[j], j))[:MOST_COLUMNS])
    rows = rows[:MOST_ROWS]
    labels = [short(site, 28) for site in rows]
    heads = [short(features[j], 24) for j in columns]
    which = f"the {MOST_ROWS} furthest of {len(sites)} sites" if len(sites) > MOST_ROWS else count(len(sites), "site")
    also = f", the {MOST_COLUMNS} furthest of {len(features)} features" if len(features) > MOST_COLUMNS else ""
    row_in = 0.3 if len(rows) <= 12 else 0.2
    cell_in = min(max(5.6 / max(len(columns), 1), 0.42), 0.8)
    wide_in, tall_in = cell_in * max(len(columns), 3), row_in * max(len(rows), 1)
    probe = card.figure(1, 1, "", "")  # the size of the card depends on the widest words
    left_in, head_in = 0.35 + card.width_in(probe, labels, 8), 0.2 + card.width_in(probe, heads, 8)
    fig = card.figure(
        max(8.6, left_in + wide_in + 0.3),
        tall_in + head_in + 1.55,
        f"{short(study, 30)}: how far {which} lie from {against}{also}",
        "PSI (population stability index) beyond chance  ·  dot: no more than chance, dash: not compared",
    )
    ax = card.panel(fig, left_in, 0.75, wide_in, tall_in)
    _cells(ax, [[table[site][j] for j in columns] for site in rows], warn, hold)
    at = {"fontsize": 8, "color": card.INK, "parse_math": False}
    for y, label in enumerate(labels):
        ax.text(-0.08 / cell_in, y + 0.5, label, ha="right", va="center", **at)
    for x, head in enumerate(heads):
        ax.text(x + 0.5, -0.08 / row_in, head, ha="center", va="bottom", rotation=90, **at)
    if not rows or not columns:
        card.not_measured(ax)
    _key(card.panel(fig, left_in, 0.42, 2.4, 0.14), warn, hold)
    return card.png(fig)


def history(
    visits: Sequence[int],
    psi: Mapping[str, Numbers],
    *,
    study: str,
    warn: float,
    hold: float,
    accepted: Sequence[int] = (),
) -> bytes:
    """Draws each site's furthest feature from profile to profile, with the limits. Up to ten sites are named.

    Args:
        visits: The visits that asked for profiles; every series has one value a visit.
        psi: Site -> the largest index beyond chance of any of its columns.
        study: The study's name.
        warn, hold: The limits.
        accepted: Visits whose profile somebody made the reference.

    Returns:
        The PNG.

    Raises:
        ValueError: A series has another length than `visits`.
    """
    from matplotlib.ticker import MaxNLocator

    check(len(visits), **{f"psi[{site!r}]": values for site, values in psi.items()})
    named = [short(site, 22) for site in psi] if len(psi) <= MOST_NAMED else []
    says = ["each site's furthest column", f"dashed: limits, warn {warn:g} and hold {hold:g}"]
    says += ["dotted: accepted as the reference"] * bool(accepted)
    fig = card.figure(8.6, 4.2, f"{short(study, 40)}: drift by profile", "  ·  ".join(says))
    right_in = 0.5 + card.width_in(fig, [*named, "hold"], 8, bold=True)
    ax = card.panel(fig, 0.95, 0.6, 7.65 - right_in, 2.85)
    ends = []
    for i, values in enumerate(psi.values()):
        colour, dash = LINES[i] if named else ("#9A9A9A", "-")
        end = line(ax, visits, values, color=colour, linestyle=dash, linewidth=1.3 if named else 0.6, zorder=2)
        if named and end:
            ends.append((*end, named[i], colour))
    top = max([1.25 * hold, *(1.08 * end for each in psi.values() for end in map(number, each) if not math.isnan(end))])
    ax.set_ylim(-0.03 * top, top)
    low, high = (min(visits), max(visits)) if visits else (0, 1)
    pad = 0.015 * (high - low) if high > low else 0.5
    ax.set_xlim(low - pad, high + pad)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    for limit, name in ((warn, "warn"), (hold, "hold")):
        ax.axhline(limit, color=card.SOFT, linestyle=(0, (5, 2)), linewidth=1.2, zorder=1)
        ends.append((high + pad, limit, name, card.SOFT))
    for visit in accepted:
        ax.axvline(visit, color=card.BLACK, linestyle=(0, (1, 1.5)), linewidth=1.2, zorder=1)
    name_ends(ax, ends)
    ax.set_ylabel("PSI beyond chance (0: none)", fontsize=9, color=card.INK)
    ax.set_xlabel("visit that asked for profiles (number)", fontsize=9, color=card.INK)
    return card.png(fig)


def _cells(ax: Axes, table: Sequence[Sequence[float]], warn: float | None, hold: float | None) -> None:
    """Draws the table; what many cells share is one artist, as fifty sites by thirty features are many."""
    from matplotlib.collections import PolyCollection

    wide, tall = max(len(table[0]) if table else 0, 3), max(len(table), 1)
    ax.set_xlim(0, wide)
    ax.set_ylim(tall, 0)
    _bare(ax)
    cells = [(x, y, value) for y, row in enumerate(table) for x, value in enumerate(row)]
    shades = [SHADES[_shade(value, hold)] for *_, value in cells]
    ax.add_collection(
        PolyCollection([_box(x, y) for x, y, _ in cells], facecolors=shades, edgecolors=card.FAINT, linewidths=0.5)
    )
    for (low, high), frame in zip(((warn, hold), (hold, None)), FRAMES, strict=True):
        framed = [_box(x, y, 0.06) for x, y, value in cells if low is not None and low < value <= (high or math.inf)]
        ax.add_collection(PolyCollection(framed, facecolors="none", zorder=3, **frame))
    for marker, wanted in ((".", lambda value: value == 0), ("_", math.isnan)):
        at = [(x + 0.5, y + 0.5) for x, y, value in cells if wanted(value)]
        ax.plot([x for x, _ in at], [y for _, y in at], ls="none", marker=marker, markersize=3, color=card.SOFT)
    for x, y, value in cells:
        if value > 0:
            text = "<.01" if value < 0.005 else f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
            ink = "white" if _shade(value, hold) >= 4 else card.INK
            bold = "bold" if hold is not None and value > hold else "normal"
            ax.text(x + 0.5, y + 0.5, text, fontsize=7, color=ink, fontweight=bold, ha="center", va="center", zorder=4)


def _box(x: float, y: float, inside: float = 0.0) -> list[tuple[float, float]]:
    """The corners of a cell."""
    low, high = inside, 1 - inside
    return [(x + low, y + low), (x + high, y + low), (x + high, y + high), (x + low, y + high)]


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _shade(value: float, hold: float | None) -> int:
    """Which of the shades: a step each half limit."""
    return 0 if math.isnan(value) or value <= 0 else min(1 + int(value / (0.5 * (hold or 0.25))), len(SHADES) - 1)


def _key(ax: Axes, warn: float | None, hold: float | None) -> None:
    """The shades and what the frames mean, under the table."""
    from matplotlib.patches import Rectangle

    step = 0.5 * (hold or 0.25)
    ax.set_xlim(0, len(SHADES) - 1)
    ax.set_ylim(0, 1)
    _bare(ax)
    for k, shade in enumerate(SHADES[1:]):
        ax.add_patch(Rectangle((k, 0), 1, 1, facecolor=shade, edgecolor=card.FAINT, linewidth=0.5))
    ax.set_xticks(range(len(SHADES) - 1), [f"{k * step:.3g}" for k in range(len(SHADES) - 1)])
    ax.tick_params(length=2, labelsize=7.5)
    x = len(SHADES) - 0.7
    for limit, frame, word in ((warn, FRAMES[0], "warn"), (hold, FRAMES[1], "hold")):
        if limit is not None:
            style = {
                "edgecolor": frame["edgecolors"],
                "linewidth": frame["linewidths"],
                "fill": False,
                "clip_on": False,
            }
            ax.add_patch(Rectangle((x, 0), 0.6, 1, **style))
            ax.text(x + 0.75, 0.5, f"beyond {word}, {limit:g}", fontsize=8, color=card.INK, va="center", ha="left")
            x += 3.3
