"""Survival in the report: how patients who were set aside fared, by predicted risk, and whether effects stay the same over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedrounds.core.params import Array
from fedrounds.core.study import Survival
from fedrounds.core.survival import at_risk, kaplan_meier, log_rank, log_rank_sums
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import figure
from fedrounds.reports.words import SMALLEST, shown


def survived(of: Evidence) -> Markup | None:
    """Kaplan-Meier by predicted risk with a log-rank test, and the test of proportional hazards; None of other studies."""
    target = of.study.target
    if not isinstance(target, Survival):
        return None
    return tag(
        "div", list(filter(None, (_by_risk(of, target), _proportional(of)))) or tag("p", "Nothing was fitted yet.")
    )


def thirds(histogram: Array) -> Array:
    """Counts (3, 2, K) of patients of low, middle and high score, each about a third; a histogram (K, 2, bins) has them by bin."""
    by_bin = histogram.sum((0, 1))
    before = np.cumsum(by_bin) - by_bin / 2
    group = np.minimum((3 * before / max(by_bin.sum(), 1.0)).astype(int), 2)
    return np.stack([histogram[:, :, group == g].sum(2).T for g in range(3)])


def _by_risk(of: Evidence, target: Survival) -> Markup | None:
    histogram = np.array(of.record.get("histogram") or [])
    if histogram.ndim != 3 or not histogram.sum():
        return tag(
            "p", "Hospitals kept the counts behind survival curves: small cells would have shown single patients."
        )
    groups = thirds(histogram)
    sizes, events = groups.sum((1, 2)), groups[:, 1].sum(1)
    few = ((sizes - events < SMALLEST) & (sizes > events)) | (events < SMALLEST)
    if few.any():
        return tag(
            "p",
            f"Fewer than {SMALLEST} patients set aside had, or had not, the event in a third by risk: too few to show.",
        )
    ends = [len(target.ends) * part // 4 - 1 for part in (1, 2, 3, 4) if len(target.ends) * part // 4]
    ends = list(dict.fromkeys(ends))
    body: list[Sequence[object]] = []
    for name, counts in zip(("low", "middle", "high"), groups, strict=True):
        curve, left = kaplan_meier(counts), at_risk(counts.sum(0))
        told = [figure(float(curve.survival[k])) if left[k] >= SMALLEST else "–" for k in ends]
        body.append((name, shown(float(counts.sum())), shown(float(counts[1].sum())), *told))
    head = ("Predicted risk", "Patients", "Events", *(f"after {target.ends[k]:g} {target.unit}" for k in ends))
    test = log_rank(*log_rank_sums(groups))
    said = (
        ""
        if test is None
        else f" Log-rank: χ² {figure(test.statistic, 2)} with {test.freedom} degrees of freedom, p {_p(test.p)}."
    )
    note = (
        "Kaplan-Meier's share of patients without the event, of those set aside at all hospitals together, in thirds by bins of the score;"
        f" a dash where fewer than {SMALLEST} were left.{said}"
    )
    return tag(
        "div", table(head, body, "How patients fared whom the model did not learn from"), tag("p", note, class_="soft")
    )


def _proportional(of: Evidence) -> Markup | None:
    found = of.regression
    if found is None or not found.proportional:
        return None
    body = [(name, figure(statistic, 2), str(freedom), _p(p)) for name, statistic, freedom, p in found.proportional]
    note = "A small p says that an effect changes with time (score test of a slope over the grid's intervals); a hazard ratio is then an average."
    head = ("Term", "χ²", "Degrees of freedom", "p")
    return tag(
        "div",
        table(head, body, "Whether hazards are proportional, of the training patients"),
        tag("p", note, class_="soft"),
    )


def _p(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
