"""Three pictures of a study, as PNG bytes: its rounds, its sites, its calibration.

A picture is a solid white card, so it reads the same in MLflow's light and dark themes. Colours are Okabe and Ito's
(2008), and shape or dash always says the same as the colour. matplotlib is imported when a picture is drawn and only
through its objects: no pyplot, no global state. The same numbers give the same bytes.

`None`, NaN and infinity all mean "not measured": no dot is drawn and no value is invented for it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110  # 8.6 in wide is 946 px: one column of MLflow's artifact view, without scaling
MOST_NAMED = 10  # site lines that carry a name; five colours times two dashes tell as many apart
MOST_ROWS = 50  # rows of `sites`

INK, SOFT, FAINT = "#1A1A1A", "#5A5A5A", "#DDDDDD"
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
LINES = [(c, d) for d in ("-", (0, (4, 1.5))) for c in (ORANGE, "#56B4E9", "#009E73", "#D55E00", "#CC79A7")]

Numbers = Sequence[float | None]


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

    Returns:
        The PNG.

    Raises:
        ValueError: A series has another length than `steps`.
    """
    each = site_losses or {}
    _check(len(steps), loss=loss, metric=metric, **{f"site_losses[{name!r}]": values for name, values in each.items()})
    named = [_short(name, 22) for name in each] if len(each) <= MOST_NAMED else []
    says = [f"thick: all sites, thin: {_count(len(each), 'site')}" if each else "all sites"]
    if champion is not None:
        says.append(f"dotted: champion, round {champion}")
    fig = _figure(8.6, 6.0, f"{_short(study, 40)}: loss and {_plain(metric_name)} by round", "  ·  ".join(says))
    right_in = 0.4 + _width_in(fig, [*named, "all 0.0000"], 8, bold=True)
    top = _panel(fig, 0.95, 2.6, 7.65 - right_in, 2.6)
    low = _panel(fig, 0.95, 0.6, 7.65 - right_in, 1.75)
    ends = []
    for i, values in enumerate(each.values()):
        colour, dash = LINES[i] if named else ("#9A9A9A", "-")
        end = _line(top, steps, values, color=colour, linestyle=dash, linewidth=1.1 if named else 0.6, zorder=2)
        if named and end:
            ends.append((*end, named[i], colour))
    for ax, values, label in ((top, loss, loss_name), (low, metric, metric_name)):
        end = _line(ax, steps, values, color=BLUE, linewidth=2.6, zorder=4)
        _scale(ax, label)
        _round_axis(ax, steps, champion)
        _name_ends(ax, [*(ends if ax is top else []), *([(*end, f"all {end[1]:.4g}", BLUE)] if end else [])])
    _star(low, steps, metric, champion)
    top.tick_params(labelbottom=False)
    low.set_xlabel("federated round (number)", fontsize=9, color=INK)
    return _png(fig)


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
    _check(len(names), local=local, federated=federated, pooled=pooled, patients=patients)
    shown = sorted(range(len(names)), key=lambda i: -(patients[i] or 0))[:MOST_ROWS]
    rows = [tuple(_number(series[i]) for series in (local, federated, pooled)) for i in shown]
    labels = [f"{_short(names[i], 28)} ({_n(patients[i])})" for i in shown]
    notes = [_missing(row) for row in rows]
    which = f"the {MOST_ROWS} largest of {len(names)} sites" if len(names) > MOST_ROWS else _count(len(names), "site")
    says = ["largest first"] * (len(rows) > 1) + ["n/a: not measurable, as when all outcomes are alike"] * any(notes)
    row_in = 0.3 if len(rows) <= 12 else 0.2
    tall_in = row_in * max(len(rows), 3)
    fig = _figure(8.6, tall_in + 1.65, f"{_short(study, 30)}: {_plain(metric_name)} at {which}", "  ·  ".join(says))
    left_in, right_in = 0.35 + _width_in(fig, labels, 8), 0.3 + _width_in(fig, notes, 7.5)
    ax = _panel(fig, left_in, 0.6, 8.6 - left_in - right_in, tall_in)
    _dots(ax, rows)
    few = max(3 - len(rows), 0) / 2
    ax.set_ylim(len(rows) - 0.5 + few, -0.5 - few)
    ax.set_xlabel(metric_name, fontsize=9, color=INK, parse_math=False)
    ax.set_yticks([])  # fifty texts draw faster than fifty ticks
    at = {"transform": ax.get_yaxis_transform(), "va": "center", "parse_math": False}
    for y, (label, note) in enumerate(zip(labels, notes, strict=True)):
        ax.text(-0.012, y, label, fontsize=8, color=INK, ha="right", **at)
        if note:
            ax.text(1.012, y, note, fontsize=7.5, color=SOFT, style="italic", **at)
    return _png(fig)


def calibration(
    bin_mean: Numbers,
    bin_rate: Numbers,
    bin_count: Sequence[int],
    *,
    study: str,
    round: int,
) -> bytes:
    """Draws a reliability diagram over a strip of counts.

    Each dot carries its 95 % Wilson interval, so that a bin of six patients does not look like one of six hundred. Both
    axes end at 0.1, 0.2, 0.5 or 1, whichever holds all dots: rare outcomes stay readable.

    Args:
        bin_mean: The mean predicted risk of each bin.
        bin_rate: The observed share of events in each bin.
        bin_count: The patients in each bin; bins without patients are left out.
        study: The study's name.
        round: The round whose model is shown.

    Returns:
        The PNG.

    Raises:
        ValueError: The series differ in length.
    """
    _check(len(bin_mean), bin_rate=bin_rate, bin_count=bin_count)
    bins = [(_number(m), _number(r), n) for m, r, n in zip(bin_mean, bin_rate, bin_count, strict=True) if n > 0]
    bins = sorted(b for b in bins if not math.isnan(b[0] + b[1]))
    end = next((e for e in (0.1, 0.2, 0.5) if all(max(m, r) <= 0.97 * e for m, r, _ in bins)), 1.0) if bins else 1.0
    says = f"n = {sum(n for *_, n in bins):,} patients  ·  vertical bars: 95 % intervals (Wilson)"
    fig = _figure(5.9, 7.4, f"{_short(study, 24)}: calibration, round {round}", says)
    top, low = _panel(fig, 0.9, 2.05, 4.65, 4.65), _panel(fig, 0.9, 0.6, 4.65, 1.25)
    top.plot([0, end], [0, end], color=SOFT, linestyle=(0, (4, 2)), linewidth=1.2, label="perfect calibration")
    means = [m for m, _, _ in bins]
    for m, r, n in bins:
        top.plot([m, m], _wilson(r, n), color=BLUE, linewidth=1.2, alpha=0.55, solid_capstyle="butt")
    top.plot(means, [r for _, r, _ in bins], color=BLUE, linewidth=1.6, marker="o", markersize=6, label="observed")
    wide = min([0.07 * end, *(0.8 * (b - a) for a, b in pairwise(means))])
    low.bar(means, [n for *_, n in bins], width=max(wide, 0.008 * end), color=BLUE)
    for ax in (top, low):
        ax.set_xlim(-0.02 * end, 1.02 * end)
    top.set_ylim(-0.02 * end, 1.02 * end)
    top.tick_params(labelbottom=False)
    top.set_ylabel("observed rate (share of patients)", fontsize=9, color=INK)
    low.set_ylabel("patients (count)", fontsize=9, color=INK)
    low.set_xlabel("predicted risk (probability)", fontsize=9, color=INK)
    fig.align_ylabels([top, low])
    _few_counts(low)
    _legend(top, loc="upper left", frameon=True)
    if not bins:
        _not_measured(top)
    return _png(fig)


# -- the card -----------------------------------------------------------------


def _figure(width_in: float, height_in: float, title: str, says: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    line = {"va": "top", "parse_math": False}  # a study called "a$b$c" is a name, not TeX
    fig.text(0.2 / width_in, 1 - 0.16 / height_in, title, fontsize=11, fontweight="bold", color=INK, **line)
    fig.text(0.2 / width_in, 1 - 0.42 / height_in, says, fontsize=8.5, color=SOFT, **line)
    return fig


def _panel(fig: Figure, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Axes:
    """Adds axes at a place in inches: fixed places cost nothing, a layout engine draws everything twice."""
    wide, tall = fig.get_size_inches()
    ax = fig.add_axes((left_in / wide, bottom_in / tall, width_in / wide, height_in / tall), facecolor="white")
    for side, spine in ax.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=SOFT, linewidth=0.8)
    ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=8, width=0.8)
    ax.grid(visible=True, color=FAINT, linewidth=0.6, linestyle="-")
    ax.set_axisbelow(True)
    return ax


def _png(fig: Figure) -> bytes:
    out = io.BytesIO()
    fig.canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return out.getvalue()


def _width_in(fig: Figure, texts: Sequence[str], size_pt: float, *, bold: bool = False) -> float:
    """Measures the widest text; the four longest stand for all, as measuring costs what drawing does."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=size_pt, weight="bold" if bold else "normal")
    measure = fig.canvas.get_renderer().get_text_width_height_descent
    longest = sorted(filter(None, texts), key=len)[-4:]
    return max((measure(text, font, ismath=False)[0] for text in longest), default=0.0) / DPI


def _legend(ax: Axes, **place: Any) -> None:
    ax.legend(fontsize=8, labelcolor=INK, facecolor="white", edgecolor=FAINT, framealpha=0.9, **place)


def _not_measured(ax: Axes) -> None:
    ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", fontsize=10, color=SOFT)


# -- rounds -------------------------------------------------------------------


def _line(ax: Axes, steps: Sequence[int], values: Numbers, **style: Any) -> tuple[float, float] | None:
    """Draws the measured points, joined, and returns the last one."""
    points = [(s, y) for s, y in zip(steps, map(_number, values), strict=True) if not math.isnan(y)]
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
        _not_measured(ax)
    line = int(14 * ax.get_window_extent().height / DPI)  # letters of 9 pt along the axis
    ax.set_ylabel(fill(_short(label, 2 * line - 14), line), fontsize=9, color=INK, parse_math=False)


def _round_axis(ax: Axes, steps: Sequence[int], champion: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    seen = [*steps, *([champion] if champion is not None else [])]
    low, high = (min(seen), max(seen)) if seen else (0, 1)
    pad = max(0.015 * (high - low), 0.0 if high > low else 0.5)
    ax.set_xlim(low - pad, high + pad)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    if champion is not None:
        ax.axvline(champion, color=BLACK, linestyle=(0, (1, 1.5)), linewidth=1.3, zorder=3)


def _star(ax: Axes, steps: Sequence[int], metric: Numbers, champion: int | None) -> None:
    value = _number(dict(zip(steps, metric, strict=True)).get(champion)) if champion is not None else math.nan
    if not math.isnan(value):
        ax.plot([champion], [value], marker="*", markersize=13, color=BLACK, markeredgecolor="white", zorder=5)


def _name_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes each line's name right of the axes, led there from the line's last point (x, y, name, colour)."""
    ax.get_ylim()  # settles the limits, which the transform below needs
    last = [ax.transAxes.inverted().transform(ax.transData.transform(end[:2])) for end in ends]
    wide_in, tall_in = (size / DPI for size in ax.get_window_extent().size)
    for (_, _, name, colour), (x, y), at in zip(ends, last, _spread([y for _, y in last], 0.16 / tall_in), strict=True):
        lead = {"transform": ax.transAxes, "clip_on": False, "color": colour, "linewidth": 0.8, "zorder": 1.5}
        ax.plot([1.0, 1 + 0.16 / wide_in], [y, at], **lead)
        ax.plot(
            [x, 1.0], [y, y], linestyle=":", marker="o", markersize=3, markevery=[0], **lead
        )  # a site may have left
        bold = "bold" if colour == BLUE else "normal"
        text = {"transform": ax.transAxes, "va": "center", "fontsize": 8, "fontweight": bold, "parse_math": False}
        ax.text(1 + 0.2 / wide_in, at, name, color=BLUE if colour == BLUE else INK, **text)


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Moves heights in [0, 1] apart by at least `gap`, keeping their order."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    least, most = 0.0, 1.0
    for i in order:
        placed[i] = max(wanted[i], least)
        least = placed[i] + gap
    for i in reversed(order):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed


# -- sites and calibration ----------------------------------------------------


def _dots(ax: Axes, rows: Sequence[tuple[float, ...]]) -> None:
    """Draws the rows; the three shapes stay visible when their values coincide."""
    seen = [(y, [v for v in row if not math.isnan(v)]) for y, row in enumerate(rows)]
    spans = [(y, min(values), max(values)) for y, values in seen if values]
    ax.hlines(range(len(rows)), 0, 1, transform=ax.get_yaxis_transform(), color=FAINT, linewidth=0.5, zorder=1)
    ax.hlines([y for y, *_ in spans], [a for _, a, _ in spans], [b for *_, b in spans], color="#B0B0B0", zorder=2)
    kinds = (  # name, marker, size, fill, edge
        ("local only", "o", 7, "white", "#D55E00"),
        ("federated", "o", 4.5, BLUE, BLUE),
        ("pooled ceiling", "|", 11, BLACK, BLACK),
    )
    for k, (name, marker, size, inside, edge) in enumerate(kinds):
        look = {"marker": marker, "markersize": size, "markerfacecolor": inside, "markeredgecolor": edge}
        values = [row[k] for row in rows]
        ax.plot(values, range(len(rows)), ls="none", mew=1.6, label=name, zorder=3 + k, **look)
    if spans:
        low, high = min(a for _, a, _ in spans), max(b for *_, b in spans)
        pad = max(
            0.05 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-9
        )  # a gap of 0.001 must not look like a gulf
        ax.set_xlim(low - pad, high + pad)
    else:
        ax.set_xticks([])
        _not_measured(ax)
    tall_in = ax.get_window_extent().size[1] / DPI
    _legend(ax, loc="lower left", bbox_to_anchor=(0, 1 + 0.03 / tall_in), ncols=3, frameon=False, borderaxespad=0)


def _missing(row: Sequence[float]) -> str:
    lost = [name for name, value in zip(("local", "federated", "pooled"), row, strict=True) if math.isnan(value)]
    return "n/a" if len(lost) == 3 else f"{', '.join(lost)} n/a" if lost else ""


def _few_counts(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    ax.grid(visible=False, axis="x")


def _wilson(rate: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z2, p = 1.959964**2, min(max(rate, 0.0), 1.0)
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - half, middle + half


# -- words and numbers --------------------------------------------------------


def _check(length: int, **series: Sequence[Any]) -> None:
    for name, values in series.items():
        if len(values) != length:
            raise ValueError(f"expected {length} values in {name}, got {len(values)}: the series are parallel")


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan


def _short(name: str, most: int) -> str:
    """Keeps both ends of a long name: hospitals of one group differ at the end."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[len(name) - most // 2 :]}"


def _plain(label: str) -> str:
    return _short(label.split(" (")[0], 24)


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _n(patients: int | None) -> str:
    return "n withheld" if patients is None else f"n = {patients:,}"
