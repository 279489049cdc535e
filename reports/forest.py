"""The regression table of an exact fit: for the report, and as a page, a picture and a file of numbers beside a registered version."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from fedrounds.core.regression import CONFIDENCE, Regression, Row
from fedrounds.reports import alone, svg
from fedrounds.reports.charts import W, short
from fedrounds.reports.markup import Markup, table, tag

COLUMNS = ("term", "estimate", "standard_error", "z", "p", "low", "high")
STROKES = (
    "text{font:13px system-ui,sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}.grid{stroke:var(--faint)}"
    ".axis{stroke:var(--ink)}.reach{stroke:var(--accent);stroke-width:2}.point{fill:var(--accent)}"
)


def as_csv(found: Regression) -> str:
    """The table at full precision, a term a line; with ratios where they mean something."""
    written = io.StringIO()
    sheet = csv.writer(written, lineterminator="\n")
    ratios = ("ratio", "ratio_low", "ratio_high") if found.ratio else ()
    sheet.writerow((*COLUMNS, *ratios))
    for row in found.rows:
        values = (row.value, row.error, row.z, row.p, row.low, row.high, *(row.ratio if found.ratio else ()))
        sheet.writerow((row.name, *(repr(value) for value in values)))
    return written.getvalue()


def page(found: Regression, title: str) -> str:
    """One page that stands alone: picture, table, and what the numbers are."""
    return alone.page(title, section(found))


def picture(found: Regression) -> str:
    """The forest plot as an SVG file."""
    width, height, inside = _drawn(found)
    return alone.picture(width, height, inside, STROKES)


def section(found: Regression) -> Markup:
    """Picture and table."""
    width, height, inside = _drawn(found)
    says = f"Estimates with {100 * CONFIDENCE:.0f} % confidence intervals: a number's per standard deviation, a level's against its reference."
    body = [_line(row, bool(found.ratio)) for row in found.rows]
    name = found.ratio.capitalize()
    head = ("Term", "Estimate", "Standard error", "z", "p", *((name, "95 % interval") if name else ("95 % interval",)))
    caption = "Per unit of each feature: what was centred and scaled is undone"
    drawn = svg.picture("forest", width, height, _axis(found), says, inside)
    notes = [tag("p", note, class_="soft") for note in _notes(found)]
    return tag("div", drawn, table(head, body, caption), notes)


def _line(row: Row, ratio: bool) -> Sequence[object]:
    middle, low, high = row.ratio if ratio else (row.value, row.low, row.high)
    said = f"{_say(low)} to {_say(high)}"
    start = (row.name, _say(row.value), _say(row.error), f"{row.z:.2f}".replace("-", "−"), _p(row.p))
    return (*start, _say(middle), said) if ratio else (*start, said)


def _notes(found: Regression) -> list[str]:
    whole = (
        f"Fitted to {found.patients} training patients by sums over all of them: the same as one fit in one place."
        " Intervals and p-values are Wald's, by the normal law; patients are taken as independent, also within a hospital."
    )
    notes = [whole]
    if found.aic is not None and found.deviance is not None and found.log_likelihood is not None:
        notes.append(
            f"Deviance {_say(found.deviance)}, log-likelihood {_say(found.log_likelihood)}, AIC {_say(found.aic)},"
            f" dispersion {_say(found.dispersion or 1.0)}."
        )
    elif found.aic is not None and found.log_likelihood is not None:
        notes.append(f"Log-likelihood {_say(found.log_likelihood)}, AIC {_say(found.aic)}.")
    if found.penalised:
        notes.append(
            "A ridge penalty has shrunk the estimates: intervals are about the shrunk values, whose bias they do not tell."
        )
    return notes


def _drawn(found: Regression) -> tuple[float, float, list[object]]:
    """Width, height, and the marks of a forest plot; intercept and thresholds are in the table alone."""
    rows = [row for row in found.rows if row.name != "intercept" and row.scale]
    labels = [short(_per(row), 36) for row in rows]
    left, right, top, step = 12 + max(map(svg.wide, labels), default=0), W - 120.0, 14.0, 26
    bottom = top + step * len(rows)
    ends = [[row.scale * value for value in (row.value, row.low, row.high)] for row in rows]
    x = svg.around([0.0, *(value for three in ends for value in three if abs(value) < 20)], left, right)
    marks: list[object] = []
    if found.ratio:
        near = (
            svg.log_ticks(math.exp(x.low), math.exp(x.high))
            if x.high - x.low > 0.7
            else svg.ticks(math.exp(x.low), math.exp(x.high))
        )
        for value in near:
            at = x(math.log(value))
            marks += [
                svg.line(at, top, at, bottom, "grid"),
                svg.words(at, bottom + 18, svg.say(value), at="middle", look="soft"),
            ]
    else:
        marks += svg.grid_x(x, top, bottom)
    marks.append(svg.line(x(0), top, x(0), bottom, "axis"))
    for label, row, three, y in zip(
        labels, rows, ends, (top + step * (i + 0.5) for i in range(len(rows))), strict=True
    ):
        middle, low, high = (min(max(x(value), left), right) for value in three)
        said = row if not found.ratio else None
        shown = _say(three[0]) if said else f"{_say(math.exp(min(three[0], 700)))}"
        marks += [
            svg.words(left - 10, y + 4.5, label, at="end"),
            svg.line(low, y, high, y, "reach"),
            svg.circle(middle, y, 4, "point"),
            svg.words(right + 8, y + 4.5, shown, look="soft"),
        ]
    marks.append(svg.words((left + right) / 2, bottom + 40, _axis(found), at="middle"))
    return W, bottom + 52, marks


def _axis(found: Regression) -> str:
    return f"{found.ratio} (1: no effect)" if found.ratio else "change of the mean"


def _per(row: Row) -> str:
    return row.name if row.scale == 1.0 else f"{row.name} (per {row.scale:.2g})"


def _say(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
