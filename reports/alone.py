"""A page and a picture that stand alone, beside a version or a run: what the report shows of it as a section of its own."""

from __future__ import annotations

from fedrounds.reports import svg
from fedrounds.reports.markup import Markup, raw, tag
from fedrounds.reports.style import CSS, LIGHT


def page(title: str, section: Markup) -> str:
    """The section under its title, in the report's look."""
    head = tag("head", tag("meta", charset="utf-8"), tag("title", title), tag("style", raw(CSS)))
    body = tag("body", tag("header", tag("h1", title)), tag("main", section))
    return raw("<!doctype html>\n") + tag("html", head, body, lang="en") + "\n"


def picture(width: float, height: float, marks: object, strokes: str) -> str:
    """Marks on white paper as an SVG file, by the page's light colours and these classes."""
    style = tag("style", raw(f":root{{{LIGHT}}}{strokes}.paper{{fill:#fff}}"))
    size = {"viewBox": f"0 0 {svg.px(width)} {svg.px(height)}", "width": svg.px(width), "height": svg.px(height)}
    return tag("svg", style, svg.box(0, 0, width, height, "paper"), marks, xmlns="http://www.w3.org/2000/svg", **size)
