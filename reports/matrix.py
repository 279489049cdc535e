"""Every model at every hospital, as the ledger notes it: for the report, and as a page, a picture and a file of numbers beside the lineage."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from fedrounds.reports import alone, svg
from fedrounds.reports.charts import W
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import NAMES, error, figure
from fedrounds.reports.words import count, short

Note = Mapping[str, Any]
ALL = "all"
STROKES = (
    "text{font:13px system-ui,sans-serif;fill:var(--ink)}.cell{fill:var(--h0)}.cell.none{fill:none;stroke:var(--faint)}"
    ".cell.h1{fill:var(--h1)}.cell.h2{fill:var(--h2)}.cell.h3{fill:var(--h3)}.home{fill:none;stroke:var(--ink);stroke-width:2}"
)
HOME = ("local", "without")  # models of which one hospital is marked
LEGIBLE = 42.0  # px: the least width of a cell that holds a number


def as_csv(note: Note) -> str:
    """The scores at full precision, a model at a site a line; what was not measured is empty."""
    written = io.StringIO()
    sheet = csv.writer(written, lineterminator="\n")
    sheet.writerow(("model", "of", "scored_at", note["metric"], f"{note['metric']}_error", note["loss"]))
    for line in note["lines"]:
        for site in (*note["sites"], ""):  # the last of all sites together
            cell = (line["cells"].get(site) if site else line["everywhere"]) or {}
            values = (cell.get(key) for key in ("metric", "error", "loss"))
            sheet.writerow(
                (line["kind"], line["site"], site, *("" if value is None else repr(value) for value in values))
            )
    return written.getvalue()


def page(note: Note, title: str) -> str:
    """One page that stands alone: picture, tables, and what the numbers are."""
    return alone.page(title, section(note))


def picture(note: Note) -> str:
    """The heatmap as an SVG file."""
    width, height, inside = _drawn(note)
    return alone.picture(width, height, inside, STROKES)


def compared(of: Evidence) -> Markup | None:
    """The report's section, where somebody asked for the comparison."""
    return section(of.matrix) if of.matrix else None


def section(note: Note) -> Markup:
    """Picture, tables of metric and loss, and what they do not tell."""
    metric, loss = NAMES[note["metric"]], NAMES[note["loss"]]
    width, height, inside = _drawn(note)
    title = f"{metric} of every model at every hospital"
    says = f"{metric} of each model (row) on the patients set aside at each hospital (column): darker is better. {_marks(note)}"
    drawn = svg.picture("matrix", width, height, title, says, inside)
    tables = [_table(note, "metric", title), _table(note, "loss", f"{loss} of every model at every hospital")]
    return tag("div", drawn, tables, [tag("p", said, class_="soft") for said in _notes(note)])


def _marks(note: Note) -> str:
    marked = (
        "Framed: a hospital's own model at home, and the hospital that a model has never seen." if note["sites"] else ""
    )
    return f"{marked} A dash: not measured, or not allowed by the hospital."


def _table(note: Note, key: str, caption: str) -> Markup:
    body = [
        (line["name"], *(figure(value) for value in values))
        for line, values in zip(note["lines"], _values(note, key), strict=True)
    ]
    return table(("Model", *note["sites"], "all hospitals"), body, f"{caption}, after {count(note['round'], 'round')}")


def _values(note: Note, key: str) -> list[list[float | None]]:
    """A row a model, a column a site, and a last one for all sites together."""
    rows = [[*(line["cells"].get(site) for site in note["sites"]), line["everywhere"]] for line in note["lines"]]
    return [[None if cell is None else cell[key] for cell in row] for row in rows]


def _notes(note: Note) -> list[str]:
    many = count(note["round"], "round")
    whole = (
        f"Every model took over the study's agreed statistics and was trained for {many} by its own rule: comparisons, not the best that could be"
        " done, and known to a simulation alone. A model without a hospital was trained by the study as it is, of the others; that hospital's"
        " patients had a part in the statistics only. The mean of predictions is of the hospitals' own models."
    )
    notes = [whole]
    errors = [value for row in _values(note, "error") for value in row if value]
    if errors:
        notes.append(
            f"{NAMES[note['metric']]} comes from histograms: exact to {error(max(errors))} where it is least so."
        )
    notes += [
        f"No such model, {line['name']}: {line['remark']}."
        for line in note["lines"]
        if line["remark"] and not line["everywhere"]
    ]
    notes += [
        f"{line['name'].capitalize()}: {line['remark']}."
        for line in note["lines"]
        if line["remark"] and line["everywhere"]
    ]
    return notes + [f"{site} takes part in no comparison: {reason}." for site, reason in note["refused"].items()]


def _drawn(note: Note) -> tuple[float, float, list[object]]:
    """Width, height, and the marks of the heatmap; a hospital's many models stand apart from the few of all."""
    values = _values(note, "metric")
    labels = [short(line["name"], 40) for line in note["lines"]]
    heads = [short(site, 18) for site in (*note["sites"], ALL)]
    left, top = 14 + max(map(svg.wide, labels)), 16 + 0.72 * max(map(svg.wide, heads))
    wide, tall = min(72.0, max(18.0, (W - left - 60) / len(heads))), 26.0
    found = [value for row in values for value in row if value is not None]
    low, high = (min(found), max(found)) if found else (0.0, 0.0)
    marks: list[object] = []
    xs = [left + wide * at + (8 if at == len(heads) - 1 else 0) for at in range(len(heads))]
    for x, head in zip(xs, heads, strict=True):
        at = f"translate({svg.px(x + wide / 2)} {svg.px(top - 6)}) rotate(-45)"
        marks.append(tag("text", head, transform=at))
    y = top
    for number, (line, label, row) in enumerate(zip(note["lines"], labels, values, strict=True)):
        y += 8 if number and line["kind"] in HOME and line["kind"] != note["lines"][number - 1]["kind"] else 0
        marks.append(svg.words(left - 10, y + tall / 2 + 4.5, label, at="end"))
        for x, site, value in zip(xs, (*note["sites"], ALL), row, strict=True):
            said = f"{line['name']} at {site}: {figure(value)}"
            marks.append(svg.box(x + 1, y + 1, wide - 2, tall - 2, f"cell {_shade(value, low, high)}", said))
            if wide >= LEGIBLE or value is None:
                marks.append(svg.words(x + wide / 2, y + tall / 2 + 4.5, figure(value), at="middle"))
            if line["kind"] in HOME and site == line["site"]:
                marks.append(svg.box(x + 2, y + 2, wide - 4, tall - 4, "home"))
        y += tall
    return max(W, xs[-1] + wide + 60), y + 12, marks


def _shade(value: float | None, low: float, high: float) -> str:
    """One of four, from the worst to the best that is drawn.

    >>> _shade(0.5, 0.5, 0.9), _shade(0.9, 0.5, 0.9), _shade(None, 0.5, 0.9), _shade(0.7, 0.7, 0.7)
    ('h0', 'h3', 'none', 'h0')
    """
    if value is None:
        return "none"
    return f"h{min(3, int(4 * (value - low) / (high - low)))}" if high > low else "h0"


def told(note: Note) -> Sequence[tuple[str, ...]]:
    """The metric for a terminal: a heading, then a line a model."""
    body = [(line["name"], *map(figure, row)) for line, row in zip(note["lines"], _values(note, "metric"), strict=True)]
    return [(NAMES[note["metric"]], *note["sites"], ALL), *body]
