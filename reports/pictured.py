"""Bars with what they are sure to, and small panels of curves: the pictures by which a model is explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrounds.reports import svg
from fedrounds.reports.charts import MOST_BARS, W
from fedrounds.reports.words import short

MOST_PANELS = 12
ACROSS, WIDE, TALL = 3, 240.0, 190.0


def bars(rows: Sequence[tuple[str, float, float]], axis: str) -> tuple[float, float, list[object]]:
    """Width, height and marks of horizontal bars from 0, hollow below it.

    Args:
        rows: name, value, and how far it reaches to either side; the first ones are drawn.
    """
    drawn_rows = rows[:MOST_BARS]
    labels = [short(name, 34) for name, *_ in drawn_rows]
    left, right, top, step = 20 + max(map(svg.wide, labels), default=0), W - 90, 14.0, 24
    bottom = top + step * len(labels)
    ends = [end for _, value, reach in drawn_rows for end in (value - reach, value + reach)]
    x = svg.around([0.0, *ends], left, right)
    marks: list[object] = [*svg.grid_x(x, top, bottom), svg.line(x(0), top, x(0), bottom, "axis")]
    for at, (label, (name, value, reach)) in enumerate(zip(labels, drawn_rows, strict=True)):
        y, said = top + step * at, f"{value:.3g}".replace("-", "−")
        look = "bar" if value >= 0 else "own"
        marks += [
            svg.words(left - 10, y + step / 2 + 4.5, label, at="end"),
            svg.box(min(x(0), x(value)), y + 5, abs(x(value) - x(0)), step - 10, look, f"{name}: {said}"),
            svg.words(right + 8, y + step / 2 + 4.5, said, look="soft"),
        ]
        if reach:
            marks.append(svg.line(x(value - reach), y + step / 2, x(value + reach), y + step / 2, "pool"))
    marks.append(svg.words((left + right) / 2, bottom + 40, axis, at="middle"))
    return W, bottom + 52, marks


def panels(found: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> tuple[float, float, list[object]]:
    """Width, height and marks of a panel a feature, all on one vertical scale: a curve of a number, a dot a level of a category."""
    y_of = [mean for panel in found for means in panel["means"] for mean in means]
    marks: list[object] = []
    for at, panel in enumerate(found):
        left, top = WIDE * (at % ACROSS) + 52, TALL * (at // ACROSS) + 26
        right, bottom = left + WIDE - 66, top + TALL - 72
        y = svg.around(y_of, bottom, top)
        marks += [svg.words(left, top - 9, short(_name(panel), 24)), *svg.grid_y(y, left, right, 4)]
        numbers = not isinstance(panel["points"][0], str)
        if numbers:
            x = svg.around(panel["points"], left, right)
            marks += svg.grid_x(x, top, bottom, svg.ticks(x.low, x.high, 4))
            places = [x(value) for value in panel["points"]]
        else:
            step = (right - left) / len(panel["points"])
            places = [left + step * (i + 0.5) for i in range(len(panel["points"]))]
            most = max(1, int(step / svg.LETTER))
            for i, (place, level) in enumerate(zip(places, panel["points"], strict=True)):
                drop = 18 + (15 if i % 2 and most < 8 else 0)
                marks.append(svg.words(place, bottom + drop, short(level, max(3, 2 * most)), at="middle", look="soft"))
        for output, means in enumerate(panel["means"]):
            look = _look(output, outputs)
            if numbers:
                marks.append(svg.path([(place, y(mean)) for place, mean in zip(places, means, strict=True)], look))
            else:
                marks += [svg.circle(place, y(mean), 4.5, look) for place, mean in zip(places, means, strict=True)]
    height, x = TALL * -(-len(found) // ACROSS), 52.0
    for output, name in enumerate(outputs if len(outputs) > 1 else ()):
        label = short(name, 18)
        if x + 40 + svg.wide(label) > W:
            x, height = 52.0, height + 20
        marks += [
            svg.path([(x, height), (x + 26, height)], _look(output, outputs)),
            svg.words(x + 32, height + 4.5, label),
        ]
        x += 52 + svg.wide(label)
    return W, height + (14 if len(outputs) > 1 else 0), marks


def _look(output: int, outputs: Sequence[str]) -> str:
    """A line's class: every second one is dashed, so that colour is not all that tells them apart."""
    return "all" if len(outputs) == 1 else f"s{output % 5}{' dashed' if output % 2 else ''}"


def _name(panel: Mapping[str, Any]) -> str:
    return f"{panel['feature']} ({panel['unit']})" if panel["unit"] else panel["feature"]
