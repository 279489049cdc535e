"""The calibration: of patients told a risk of 20 %, does it happen to 20 %?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from fedrounds.reports import card
from fedrounds.reports.groups import wilson
from fedrounds.reports.words import Numbers, check, number, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    check(len(bin_mean), bin_rate=bin_rate, bin_count=bin_count)
    bins = [(number(m), number(r), n) for m, r, n in zip(bin_mean, bin_rate, bin_count, strict=True) if n > 0]
    bins = sorted(b for b in bins if not math.isnan(b[0] + b[1]))
    end = next((e for e in (0.1, 0.2, 0.5) if all(max(m, r) <= 0.97 * e for m, r, _ in bins)), 1.0) if bins else 1.0
    says = f"n = {sum(n for *_, n in bins):,} patients  ·  vertical bars: 95 % intervals (Wilson)"
    fig = card.figure(5.9, 7.4, f"{short(study, 24)}: calibration, round {round}", says)
    top, low = card.panel(fig, 0.9, 2.05, 4.65, 4.65), card.panel(fig, 0.9, 0.6, 4.65, 1.25)
    top.plot([0, end], [0, end], color=card.SOFT, linestyle=(0, (4, 2)), linewidth=1.2, label="perfect calibration")
    means = [m for m, _, _ in bins]
    for m, r, n in bins:
        top.plot([m, m], wilson(r, n), color=card.BLUE, linewidth=1.2, alpha=0.55, solid_capstyle="butt")
    top.plot(means, [r for _, r, _ in bins], color=card.BLUE, linewidth=1.6, marker="o", markersize=6, label="observed")
    wide = min([0.07 * end, *(0.8 * (b - a) for a, b in pairwise(means))])
    low.bar(means, [n for *_, n in bins], width=max(wide, 0.008 * end), color=card.BLUE)
    for ax in (top, low):
        ax.set_xlim(-0.02 * end, 1.02 * end)
    top.set_ylim(-0.02 * end, 1.02 * end)
    top.tick_params(labelbottom=False)
    top.set_ylabel("observed rate (share of patients)", fontsize=9, color=card.INK)
    low.set_ylabel("patients (count)", fontsize=9, color=card.INK)
    low.set_xlabel("predicted risk (probability)", fontsize=9, color=card.INK)
    fig.align_ylabels([top, low])
    _few_counts(low)
    card.legend(top, loc="upper left", frameon=True)
    if not bins:
        card.not_measured(top)
    return card.png(fig)


def _few_counts(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    ax.grid(visible=False, axis="x")
