"""The rounds: does the loss fall, does the metric rise, which site is left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from fedrounds.reports import card
from fedrounds.reports.words import Numbers, check, count, number, plain, short, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 10  # site lines that carry a name; five colours times two dashes tell as many apart
LINES = [(c, d) for d in ("-", (0, (4, 1.5))) for c in ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")]


def rounds(
    steps: Sequence[int],
    loss: Numbers,
    metric: Numbers,
    *,
    study: str,
    loss_name: str,
    metric_name: str,
    site_losses: Mapping[str, Numbers] | None = None,
    champion: int | None = None,
    whole: str = "all sites",
) -> bytes:
    """Draws loss and metric over the rounds; pooled thick, every site thin.

    Up to ten sites are named at the end of their lines; more are a grey bundle. A line joins the measured rounds.

    Args:
        steps: The round numbers; every series has one value a round.
        loss: The loss over all sites.
        metric: The metric over all sites.
        study: The study's name.
        loss_name: Axis label, with its unit: `"log loss (nats per patient)"`.
        metric_name: Axis label, with its unit or scale: `"AUC (0 to 1)"`.
        site_losses: The loss of each site.
        champion: The round whose model is the champion.
        whole: Whose the loss and the metric are.

    Returns:
        The PNG.

    Raises:
        ValueError: A series has another length than `steps`.
    """
    each = site_losses or {}
    check(len(steps), loss=loss, metric=metric, **{f"site_losses[{name!r}]": values for name, values in each.items()})
    named = [short(name, 22) for name in each] if len(each) <= MOST_NAMED else []
    says = [f"thick: {whole}, thin: {count(len(each), 'site')}" if each else whole]
    if champion is not None:
        says.append(f"dotted: champion, round {champion}")
    fig = card.figure(8.6, 6.0, f"{short(study, 40)}: loss and {plain(metric_name)} by round", "  ·  ".join(says))
    right_in = 0.4 + card.width_in(fig, [*named, "all 0.0000"], 8, bold=True)
    top = card.panel(fig, 0.95, 2.6, 7.65 - right_in, 2.6)
    low = card.panel(fig, 0.95, 0.6, 7.65 - right_in, 1.75)
    ends = []
    for i, values in enumerate(each.values()):
        colour, dash = LINES[i] if named else ("#9A9A9A", "-")
        end = line(top, steps, values, color=colour, linestyle=dash, linewidth=1.1 if named else 0.6, zorder=2)
        if named and end:
            ends.append((*end, named[i], colour))
    for ax, values, label in ((top, loss, loss_name), (low, metric, metric_name)):
        end = line(ax, steps, values, color=card.BLUE, linewidth=2.6, zorder=4)
        _scale(ax, label)
        _round_axis(ax, steps, champion)
        name_ends(ax, [*(ends if ax is top else []), *([(*end, f"all {end[1]:.4g}", card.BLUE)] if end else [])])
    _star(low, steps, metric, champion)
    top.tick_params(labelbottom=False)
    low.set_xlabel("federated round (number)", fontsize=9, color=card.INK)
    return card.png(fig)


def line(ax: Axes, steps: Sequence[int], values: Numbers, **style: Any) -> tuple[float, float] | None:
    """Draws the measured points, joined, and returns the last one."""
    points = [(s, y) for s, y in zip(steps, map(number, values), strict=True) if not math.isnan(y)]
    if not points:
        return None
    marked = {"marker": "o", "markersize": 1.5 + 1.5 * style["linewidth"]} if len(points) == 1 else {}
    ax.plot(*zip(*points, strict=True), solid_capstyle="round", **marked, **style)
    return points[-1]


def _scale(ax: Axes, label: str) -> None:
    """Labels the y axis; it is logarithmic where one diverging site would flatten all the others."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ys = [y for line in ax.lines for y in line.get_ydata()]
    if ys and min(ys) > 0 and max(ys) > 50 * min(ys):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        label = f"{label}, log scale"
    if not ys:
        ax.set_yticks([])
        card.not_measured(ax)
    line = int(14 * ax.get_window_extent().height / card.DPI)  # letters of 9 pt along the axis
    ax.set_ylabel(fill(short(label, 2 * line - 14), line), fontsize=9, color=card.INK, parse_math=False)


def _round_axis(ax: Axes, steps: Sequence[int], champion: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    seen = [*steps, *([champion] if champion is not None else [])]
    low, high = (min(seen), max(seen)) if seen else (0, 1)
    pad = max(0.015 * (high - low), 0.0 if high > low else 0.5)
    ax.set_xlim(low - pad, high + pad)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    if champion is not None:
        ax.axvline(champion, color=card.BLACK, linestyle=(0, (1, 1.5)), linewidth=1.3, zorder=3)


def _star(ax: Axes, steps: Sequence[int], metric: Numbers, champion: int | None) -> None:
    value = number(dict(zip(steps, metric, strict=True)).get(champion)) if champion is not None else math.nan
    if not math.isnan(value):
        ax.plot([champion], [value], marker="*", markersize=13, color=card.BLACK, markeredgecolor="white", zorder=5)


def name_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each line's name right of the axes, led there from the line's last point (x, y, name, colour)."""
    ax.get_ylim()  # settles the limits, which the transform below needs
    last = [ax.transAxes.inverted().transform(ax.transData.transform(end[:2])) for end in ends]
    wide_in, tall_in = (size / card.DPI for size in ax.get_window_extent().size)
    for (_, _, name, colour), (x, y), at in zip(ends, last, spread([y for _, y in last], 0.16 / tall_in), strict=True):
        lead = {"transform": ax.transAxes, "clip_on": False, "color": colour, "linewidth": 0.8, "zorder": 1.5}
        ax.plot([1.0, 1 + 0.16 / wide_in], [y, at], **lead)
        # A site may have left: from its last point, a dotted line leads to the edge.
        ax.plot([x, 1.0], [y, y], linestyle=":", marker="o", markersize=3, markevery=[0], **lead)
        bold = "bold" if colour == card.BLUE else "normal"
        text = {"transform": ax.transAxes, "va": "center", "fontsize": 8, "fontweight": bold, "parse_math": False}
        ax.text(1 + 0.2 / wide_in, at, name, color=card.BLUE if colour == card.BLUE else card.INK, **text)
