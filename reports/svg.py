"""Drawing on a page: scales, ticks, marks and words of an inline SVG. Colours are CSS classes, so a picture reads in light, dark and print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedrounds.reports.markup import Markup, tag

LETTER = 7.4  # px: the widest mean width of a letter of 13 px that the page's fonts have
SIZE = 13


class Scale(NamedTuple):
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def around(values: Iterable[float], start: float, end: float, *, share: float = 0.06, log: bool = False) -> Scale:
    """A scale that holds the values with a margin; a gap of 0.001 must not look like a gulf."""
    found = [value for value in values if math.isfinite(value)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if log:
        return Scale(low / 1.1, high * 1.1, start, end, True)
    pad = max(share * (high - low), 0.02 * max(abs(low), abs(high)), 1e-9)
    return Scale(low - pad, high + pad, start, end)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers inside [low, high], in steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.12, 0.93, 5), ticks(0, 7, 4)
    ([0.2, 0.4, 0.6, 0.8], [0.0, 2.0, 4.0, 6.0])
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10, 20, 50) if (high - low) / (s * power) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside [low, high] of a logarithmic axis."""
    near = [m * 10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    inside = [value for value in near if low <= value <= high]
    return inside[:: max(1, math.ceil(len(inside) / 7))] or [low, high]


def say(value: float) -> str:
    """A tick in few letters, with a real minus."""
    text = f"{value:,.6g}" if 1e-4 <= abs(value) < 1e7 or value == 0 else f"{value:.2g}"
    return text.replace("-", "−")


def wide(text: str) -> float:
    """How wide a text of 13 px can be, in pixels."""
    return LETTER * len(text)


def words(x: float, y: float, text: str, *, at: str = "start", look: str | None = None) -> Markup:
    """A text; `at` says which of its ends x is: start, middle or end."""
    return tag("text", text, x=px(x), y=px(y), text_anchor=None if at == "start" else at, class_=look)


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    """A straight line."""
    return tag("line", x1=px(x1), y1=px(y1), x2=px(x2), y2=px(y2), class_=look)


def path(points: Sequence[tuple[float, float]], look: str) -> Markup:
    """A line through points; a single one is a dot."""
    if len(points) == 1:
        return circle(*points[0], 3, f"{look} dot")
    return tag("polyline", points=" ".join(f"{px(x)},{px(y)}" for x, y in points), class_=look)


def circle(x: float, y: float, radius: float, look: str) -> Markup:
    """A disc or a ring, as the class says."""
    return tag("circle", cx=px(x), cy=px(y), r=px(radius), class_=look)


def box(x: float, y: float, width: float, height: float, look: str, says: str | None = None) -> Markup:
    """A rectangle, with words for a pointer that rests on it."""
    inside = None if says is None else tag("title", says)
    return tag("rect", inside, x=px(x), y=px(y), width=px(width), height=px(height), class_=look)


def star(x: float, y: float, radius: float, look: str) -> Markup:
    """Five points: the champion."""
    turns = [(radius if i % 2 == 0 else 0.42 * radius, math.pi * (i / 5 - 0.5)) for i in range(10)]
    points = " ".join(f"{px(x + r * math.cos(a))},{px(y + r * math.sin(a))}" for r, a in turns)
    return tag("polygon", points=points, class_=look)


def grid_y(scale: Scale, left: float, right: float, most: int = 5) -> list[Markup]:
    """Horizontal lines with numbers at the left."""
    drawn: list[Markup] = []
    for value in log_ticks(scale.low, scale.high) if scale.log else ticks(scale.low, scale.high, most):
        y = scale(value)
        drawn += [line(left, y, right, y, "grid"), words(left - 8, y + 4.5, say(value), at="end", look="soft")]
    return drawn


def grid_x(scale: Scale, top: float, bottom: float, values: Sequence[float] | None = None) -> list[Markup]:
    """Vertical lines with numbers below."""
    drawn: list[Markup] = []
    for value in ticks(scale.low, scale.high) if values is None else values:
        x = scale(value)
        drawn += [line(x, top, x, bottom, "grid"), words(x, bottom + 18, say(value), at="middle", look="soft")]
    return drawn


def picture(
    key: str, width: float, height: float, title: str, says: str, *inside: object, look: str = "wide"
) -> Markup:
    """A figure: the drawing with its title and description for those who hear the page, and the description below it for all."""
    names = f"{key}-title {key}-says"
    drawn = tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", says, id=f"{key}-says"),
        *inside,
        viewBox=f"0 0 {px(width)} {px(height)}",
        role="img",
        aria_labelledby=names,
    )
    shown = tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=title)
    return tag("figure", shown, tag("figcaption", says), class_=look)


def px(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
