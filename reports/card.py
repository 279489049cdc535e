"""The card that every picture is drawn on: white, in inches, without a layout engine."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

DPI = 110  # 8.6 in wide is 946 px: one column of MLflow's artifact view, without scaling

INK, SOFT, FAINT = "#1A1A1A", "#5A5A5A", "#DDDDDD"
BLUE, BLACK = "#0072B2", "#000000"


def figure(width_in: float, height_in: float, title: str, says: str) -> Figure:
    """An empty card: a title, and a line on how to read the picture."""
    FigureCanvasAgg, Figure = _matplotlib()
    fig = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    line = {"va": "top", "parse_math": False}  # a study called "a$b$c" is a name, not TeX
    fig.text(0.2 / width_in, 1 - 0.16 / height_in, title, fontsize=11, fontweight="bold", color=INK, **line)
    fig.text(0.2 / width_in, 1 - 0.42 / height_in, says, fontsize=8.5, color=SOFT, **line)
    return fig


@functools.cache
def _matplotlib() -> tuple[type[FigureCanvasAgg], type[Figure]]:
    """Its canvas and its figure, imported without the manuals that it writes into its own docstrings: a quarter of its import."""
    import matplotlib.artist as artist

    kwdoc, artist.kwdoc = artist.kwdoc, lambda _: ""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        artist.kwdoc = kwdoc
    return FigureCanvasAgg, Figure


def panel(fig: Figure, left_in: float, bottom_in: float, width_in: float, height_in: float) -> Axes:
    """Adds axes at a place in inches: fixed places cost nothing, a layout engine draws everything twice."""
    wide, tall = fig.get_size_inches()
    ax = fig.add_axes((left_in / wide, bottom_in / tall, width_in / wide, height_in / tall), facecolor="white")
    for side, spine in ax.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=SOFT, linewidth=0.8)
    ax.tick_params(colors=SOFT, labelcolor=INK, labelsize=8, width=0.8)
    ax.grid(visible=True, color=FAINT, linewidth=0.6, linestyle="-")
    ax.set_axisbelow(True)
    return ax


def png(fig: Figure) -> bytes:
    """The bytes, without a date or a version: the same card gives the same bytes."""
    out = io.BytesIO()
    fig.canvas.print_png(out, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return out.getvalue()


def width_in(fig: Figure, texts: Sequence[str], size_pt: float, *, bold: bool = False) -> float:
    """Measures the widest text; the four longest stand for all, as measuring costs what drawing does."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=size_pt, weight="bold" if bold else "normal")
    measure = fig.canvas.get_renderer().get_text_width_height_descent
    longest = sorted(filter(None, texts), key=len)[-4:]
    return max((measure(text, font, ismath=False)[0] for text in longest), default=0.0) / DPI


def legend(ax: Axes, **place: Any) -> None:
    """Names the shapes; `place` goes to matplotlib."""
    ax.legend(fontsize=8, labelcolor=INK, facecolor="white", edgecolor=FAINT, framealpha=0.9, **place)


def not_measured(ax: Axes) -> None:
    """Says so where a picture would be empty."""
    ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", fontsize=10, color=SOFT)
