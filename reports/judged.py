"""How good the model is for whom, and what it says: fairness, calibration, coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedrounds.core.coefficients import Coefficient
from fedrounds.reports import charts, forest
from fedrounds.reports.evidence import Evidence
from fedrounds.reports.groups import groups
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.portrait import groups_of
from fedrounds.reports.result import NAMES, figure, plain
from fedrounds.reports.words import SMALLEST, count, listed, shown


def hidden(way: str, record: Mapping[str, Any]) -> str:
    """Why there is no table of hospitals, and of how many the sums are."""
    asked = len({*record["sites"], *record.get("refused", {}), *record.get("excluded", {})})
    return (
        f"This study {way} its sums: how the model does at one hospital is known to that hospital alone, so there is no table of"
        " hospitals here. What is shown elsewhere is about all patients together,"
        f" at {record['masked']['heard']} of {count(asked, 'hospital')}."
    )


def words_of_count(worse: Mapping[str, Any] | None) -> str:
    """At how many hospitals the model did worse than the champion before it, empty where nobody counted."""
    if not worse:
        return ""
    return (
        f"Compared with the champion before it, the loss rose by more than {plain(float(worse['margin']))} at {worse['sites']} of"
        f" {count(worse['compared'], 'hospital')} that compared the two. Each said yes or no under the masks: which ones it was is not known."
    )


def fairness(of: Evidence) -> Markup | None:
    """The spread of the metric and of calibration over the hospitals, the worst one, and those that nobody can judge."""
    scores = of.record["sites"]
    counted = words_of_count((of.record.get("decision") or {}).get("worse"))
    if of.record.get("masked"):
        way = "encrypts" if of.study.masked and of.study.masked.kind == "ckks" else "masks"
        return tag("div", tag("p", hidden(way, of.record)), tag("p", counted) if counted else None)
    if len(scores) < 2:
        return None
    measured = {site: v for site in scores if (v := of.of(site, of.metric)) is not None}
    unjudged = sorted(site for site in of.sites if site not in measured)
    together, parts = of.record["metrics"].get(of.metric), []
    name = NAMES[of.metric]
    if measured and together is not None:
        worst, best = min(measured, key=lambda s: measured[s]), max(measured, key=lambda s: measured[s])
        gap = together - measured[worst]  # a pool also ranks across hospitals: all may do better within
        parts.append(
            f"{name} goes from {figure(measured[worst])} at {worst} to {figure(measured[best])} at {best}: a spread of"
            f" {figure(measured[best] - measured[worst])}. The worst hospital lies {figure(abs(gap))}"
            f" {'below' if gap > 0 else 'above'} all hospitals together ({figure(together)}); small hospitals differ by chance alone."
        )
    if unjudged and of.study.privacy.dp:
        return tag(
            "p",
            "Under differential privacy no score leaves a hospital: how the model does at one is known to that hospital alone.",
        )
    if unjudged:
        parts.append(
            f"Not judged, for want of patients set aside, of both outcomes, or of taking part: {listed(unjudged, 12)}."
        )
    drifted = of.record.get("calibration_drift") or {}
    ratios = drifted.get("sites") or {}
    classes = of.study.target.kind in ("binary", "multiclass")
    head = ["Hospital", "Patients judging", name, "Gap to all", NAMES[of.loss], *(["Brier score"] if classes else [])]
    head += ["Observed / expected"] if ratios else []
    body: list[list[object]] = []
    for site in sorted(scores, key=lambda s: measured.get(s, math.inf)):
        value = of.of(site, of.metric)
        row: list[object] = [site, shown(of.of(site, "n")), figure(value)]
        row.append(figure(value - together if value is not None and together is not None else None, signed=True))
        row += [figure(of.of(site, of.loss)), *([figure(of.of(site, "brier"))] if classes else [])]
        row += [figure((ratios.get(site) or {}).get("ratio"), 2)] if ratios else []
        body.append(row)
    caption = f"How the model of round {of.shown} does at each hospital, the worst first"
    return tag("div", [tag("p", part) for part in parts], table(head, body, caption))


def calibration(of: Evidence) -> Markup | None:
    """Whether of patients told a risk of 20 % it happens to 20 %."""
    histogram = np.array(of.record.get("histogram") or [])
    if of.study.target.kind != "binary" or not histogram.size or not histogram[0].sum():
        return None
    found = groups(histogram[0])
    if not found:
        return tag("p", f"Fewer than {SMALLEST} patients with or without the outcome were set aside: too few to show.")
    body = [
        (figure(g.predicted), figure(g.observed), "{:.3f} to {:.3f}".format(*g.interval), shown(g.rows)) for g in found
    ]
    expected, seen = sum(g.predicted * g.rows for g in found), sum(g.observed * g.rows for g in found)
    ratio = f" Over all, the outcome happened {seen / expected:.2f} times as often as predicted." if expected else ""
    drift = of.record.get("calibration_drift") or {}
    if drift.get("intercept") is not None:
        ratio += f" Calibration intercept: {figure(drift['intercept'], signed=True)} (0 is perfect)."
    head = ("Mean predicted risk", "Observed share", "95 % interval", "Patients")
    caption = f"Calibration of the model of round {of.shown}, all hospitals together"
    note = f"Groups are joined until none has 1 to {SMALLEST - 1} patients with, or without, the outcome.{ratio}"
    return tag(
        "div",
        tag("div", charts.calibration(found), table(head, body, caption), class_="pair"),
        tag("p", note, class_="soft"),
    )


def coefficients(of: Evidence) -> Markup | None:
    """The model in the features' own units, or why there is no such thing."""
    if of.shown is None:
        return None
    if of.regression is not None:
        return forest.section(of.regression)
    if of.portrait is not None:
        return groups_of(of.portrait, of.shown)
    if of.coefficients is None:
        return tag("p", _none(of))
    found, kind = of.coefficients, of.study.model.kind
    if kind == "multinomial":
        return _by_class(of)
    odds, called = kind in ("logistic", "cox"), "odds" if kind == "logistic" else "hazard"
    unit = getattr(of.study.target, "unit", "") or f"'{of.study.target.column}'"
    bars = [(charts.named(column), _standing(column)) for column in found.columns if not _unmet(column)]
    axis = (
        f"{called} ratio (1: no effect), per standard deviation or level"
        if odds
        else f"change of {unit}, per standard deviation or level"
    )
    body: list[Sequence[object]] = [
        ("Intercept", "all features 0", plain(found.intercept[0]), *(["–", "–", "–"] if odds else ["–", "–"]))
    ]
    body = [] if kind == "cox" else body  # its hazard over time takes an intercept's place
    for column in found.columns:
        value, alone = column.values[0], column.level is None
        per = "–" if not alone or column.scale == 1 else f"{column.scale:.4g}"
        row: list[object] = [_label(column), _per(of, column), plain(value)]
        if odds:
            row += [
                "–" if _unmet(column) else ratio(value if column.centred is None else column.centred[0]),
                per,
                ratio(_standing(column)) if per != "–" else "–",
            ]
        else:
            row += [per, plain(_standing(column)) if per != "–" else "–"]
        body.append(row)
    change = f"Change of the log-{called}" if odds else f"Change of {unit}"
    head = [
        "Feature",
        "Per unit, or level",
        change,
        *([f"{called.capitalize()} ratio"] if odds else []),
        "Standard deviation",
        f"{called.capitalize()} ratio per SD" if odds else "Change per SD",
    ]
    caption = f"The model of round {of.shown} on the original scale: what was centred and scaled is undone"
    drawn = charts.coefficients(bars, odds=odds, axis=axis)
    return tag(
        "div", drawn, table(head, body, caption, words=(1,)), [tag("p", note, class_="soft") for note in _notes(of)]
    )


def _none(of: Evidence) -> str:
    """Why a model has no coefficients."""
    model = of.study.model
    match model.kind:
        case "mlp":
            hidden = listed([str(units) for units in model.hidden])
            return f"A neural network (hidden layers of {hidden} units) has no coefficients: no number of it belongs to one feature alone."
        case _:
            return f"A model of kind {model.kind} has no coefficients."


def _by_class(of: Evidence) -> Markup:
    assert of.coefficients is not None
    found = of.coefficients
    body = [("Intercept", "all features 0", *map(plain, found.intercept))]
    body += [(_label(column), _per(of, column), *map(plain, column.values)) for column in found.columns]
    caption = f"The model of round {of.shown} on the original scale, a column a class: only differences between classes mean something"
    notes = [tag("p", note, class_="soft") for note in _notes(of)]
    return tag("div", table(("Feature", "Per unit, or level", *found.classes), body, caption, words=(1,)), notes)


def _standing(column: Coefficient) -> float:
    """What the bar of a column shows: per standard deviation of a number, against the average or the reference of a level."""
    if column.level is None:
        return column.values[0] * column.scale
    return column.values[0] if column.centred is None else column.centred[0]


def _unmet(column: Coefficient) -> bool:
    """Whether it is a column for unstated levels that no patient of the training had: it never moved from 0."""
    return column.level == "other" and not any(column.values)


def _label(column: Coefficient) -> str:
    return column.feature if column.level is None else f"{column.feature} = {column.level}"


def _per(of: Evidence, column: Coefficient) -> str:
    if column.level is None:
        return column.unit or "1"
    assert of.coefficients is not None
    reference = of.coefficients.reference.get(column.feature)
    against = "the average level" if reference is None else reference
    first = next(
        it for it in of.coefficients.columns if it.feature == column.feature
    )  # says the unit for all its levels
    return f"against {against}{f' ({column.unit})' if column.unit and column is first else ''}"


def _notes(of: Evidence) -> list[str]:
    assert of.coefficients is not None
    found = [
        "No intervals are given: the model is penalised or stopped early, and hospitals differ. Read the signs and sizes, not the last digits."
    ]
    if any(column.centred for column in of.coefficients.columns):
        found.append(
            "A feature with a column for every level has no reference: any constant could move between its levels and the intercept. Its change is"
            " the model's own, its odds ratio and its bar are against the average of its stated levels."
            " 'other' is whatever was not stated; it is 0 if no patient had it."
        )
    if any(column.level is None and column.scale == 1 for column in of.coefficients.columns):
        found.append("Numbers without a standard deviation were not standardised.")
    return found


def ratio(value: float) -> str:
    """An odds ratio; far ones are no number that anybody should read."""
    return f"{math.exp(value):.4g}" if abs(value) < 20 else "beyond 10⁸" if value > 0 else "below 10⁻⁸"
