"""HTML and SVG by functions: whatever is not markup already is text, and is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = ("meta", "br", "hr", "link")


class Markup(str):
    """Text that is HTML already. Only this module makes it."""

    __slots__ = ()


def tag(name: str, /, *inside: Any, **attributes: Any) -> Markup:
    """An element. `inside` is text, markup, numbers, or lists of them; None is left out, also among the attributes.

    A trailing underscore of an attribute's name is dropped, an inner one becomes a dash.

    >>> tag("p", "a < b", tag("b", 3), class_="x", hidden=None)
    '<p class="x">a &lt; b<b>3</b></p>'
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>" if name in VOID else f"<{name}{named}>{join(inside)}</{name}>")


def join(parts: Any) -> Markup:
    """One after the other, text escaped."""
    if parts is None:
        return Markup("")
    if isinstance(parts, Markup):
        return parts
    if isinstance(parts, str | int | float):
        return Markup(escape(_text(parts)))
    assert isinstance(parts, Iterable), parts
    return Markup("".join(map(join, parts)))


def raw(text: str) -> Markup:
    """Our own constants, as they are: a style sheet, a doctype."""
    return Markup(text)


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], caption: str, *, words: Iterable[int] = ()) -> Markup:
    """A table in a box that scrolls by itself; the first cell of a row is its heading.

    Args:
        words: the columns that hold text and are set flush left; the first one does anyhow.
    """
    left = {0, *words}

    def cell(kind: str, at: int, value: Any, scope: str | None = None) -> Markup:
        return tag(kind, value, scope=scope, class_=None if at in left else "n")

    body = [
        tag("tr", [cell("th", 0, first, "row"), *(cell("td", at, value) for at, value in enumerate(rest, 1))])
        for first, *rest in rows
    ]
    heads = tag("tr", [cell("th", at, value, "col") for at, value in enumerate(head)])
    drawn = tag("table", tag("caption", tag("span", caption)), tag("thead", heads), tag("tbody", body))
    return tag("div", drawn, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
