"""Drift where people look: lines for the terminal, a table for Prefect, numbers and pictures for MLflow; all from the ledger's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from fedrounds.core.drift import values
from fedrounds.core.study import Study
from fedrounds.reports import plots as draw

READING = (
    "PSI is the population stability index of a site's training rows against its reference profile, less what chance gives (0: no more than "
    "chance). KS is the largest distance of the distribution functions, at least. Small cells are counted together with their neighbours."
)


def last_drift(visits: Sequence[Any]) -> Any | None:
    """The latest visit that asked for profiles."""
    return next((visit for visit in reversed(visits) if "drift" in visit.record), None)


def drift_lines(visits: Sequence[Any], accepted: Sequence[Sequence[float]]) -> list[str]:
    """What a person should know of drift: the worst beyond a limit, unless it was accepted.

    Args:
        accepted: the ledger's note on it: [visit, when], in order.
    """
    last = last_drift(visits)
    if last is None or last.record["drift"]["worst"] is None:
        return []
    found, worst, limit = last.record["drift"], last.record["drift"]["worst"], last.record["drift"]["limit"]
    said = f"{worst['what']} at '{worst['site']}' has PSI {worst['psi']:.2f} against visit {found['reference']}"
    if accepted and accepted[-1][0] == last.visit:
        return [f"drift accepted: {said}"]
    if found["held"]:
        return [f"drift holds the study: {said}, beyond {limit['hold']:g}: mend the data, or run with --accept-drift"]
    return [f"drift: {said}, beyond {limit['warn']:g}"] if worst["psi"] > limit["warn"] else []


def calibration_lines(news: Mapping[str, Any] | None) -> list[str]:
    """Where the model surely misses by more than the study's limit.

    >>> calibration_lines({"what": "calibration", "limit": 0.2, "ratios": {"all sites": 1.5, "west": 0.5}})
    ['calibration: observed / expected is 1.50 at all sites, 0.50 at west, beyond a factor of 1.22']
    """
    if not news:
        return []
    listed = ", ".join(f"{ratio:.2f} at {site}" for site, ratio in news["ratios"].items())
    return [f"calibration: observed / expected is {listed}, beyond a factor of {exp(news['limit']):.2f}"]


def drift_table(study: Study, found: Mapping[str, Any]) -> str:
    """A row for each site and column beyond chance, the furthest first, as Markdown."""
    limit = found["limit"]
    rows = []
    for site, its in found["sites"].items():
        for what, psi in values(study, its).items():
            ks = its["features"].get(what, {}).get("ks")
            rows.append((psi, site, what, ks))
    told = [row for row in sorted(rows, key=lambda row: (-row[0], row[1], row[2])) if row[0] > 0]
    new = sorted(found["between"].keys() - found["sites"].keys())
    head = ["| site | column | PSI | KS | |", "|---|---|---:|---:|---|"] if told else ["No drift beyond chance."]
    body = [
        f"| {site} | {what.replace('|', '/')} | {psi:.3f} | {'–' if ks is None else f'{ks:.3f}'} | {_word(psi, limit)} |"
        for psi, site, what, ks in told
    ]
    without = [f"Without a reference yet: {', '.join(new)}."] if new else []
    compared = f"Compared with visit {found['reference']}; warn {limit['warn']:g}, hold {limit['hold']:g}."
    return "\n\n".join(["\n".join([*head, *body]), *without, compared, f"*{READING}*"]) + "\n"


def _word(psi: float, limit: Mapping[str, float]) -> str:
    return "**held**" if psi > limit["hold"] else "warned" if psi > limit["warn"] else ""


def drift_points(study: Study, visit: Any, first: bool) -> dict[str, dict[str, float | None]]:
    """What MLflow charts of a visit: run ("lineage", "site north") -> its few numbers; of calibration when the model is scored `first`."""
    points: dict[str, dict[str, float | None]] = {}
    record = visit.record
    for site, its in record.get("drift", {}).get("sites", {}).items():
        psi = [shift["psi"] for shift in its["features"].values()]
        label = its["label"] and its["label"]["psi"]
        points[f"site {site}"] = {"drift_psi_max": max(psi, default=None), "drift_label_psi": label}
    if points:
        every = [value for site in record["drift"]["sites"].values() for value in values(study, site).values()]
        points["lineage"] = {"drift_psi_max": max(every, default=None)}
    calibration = record.get("calibration_drift")
    if calibration and first:
        points["lineage"] = {"calibration_ratio": calibration["ratio"]}
        points |= {f"site {site}": {"calibration_ratio": its["ratio"]} for site, its in calibration["sites"].items()}
    return points


def drift_plots(study: Study, visits: Sequence[Any]) -> dict[str, bytes]:
    """name -> PNG: the last profile against the reference and between the sites, and every profile's furthest columns."""
    profiled = [visit for visit in visits if "drift" in visit.record]
    if not profiled:
        return {}
    last, pictures = profiled[-1].record["drift"], {}
    limits = {"warn": last["limit"]["warn"], "hold": last["limit"]["hold"]}
    if last["sites"]:
        against = f"their profile of visit {last['reference']}"
        pictures["drift"] = _heatmap(study, last["sites"], sorted(last["between"] or last["sites"]), against, limits)
    if last["between"]:
        pictures["drift-between"] = _heatmap(study, last["between"], sorted(last["between"]), "the other sites", {})
    compared = [visit for visit in profiled if visit.record["drift"]["sites"]]
    if len(compared) > 1:
        sites = sorted({site for visit in compared for site in visit.record["drift"]["sites"]})
        worst = {
            site: [_worst(study, visit.record["drift"]["sites"].get(site)) for visit in compared] for site in sites
        }
        numbers = [visit.visit for visit in compared]
        accepted = sorted({visit.record["drift"]["reference"] for visit in compared} & set(numbers))
        pictures["drift-history"] = draw.history(numbers, worst, study=study.name, accepted=accepted, **limits)
    return pictures


def _worst(study: Study, its: Mapping[str, Any] | None) -> float | None:
    return max(values(study, its).values(), default=None) if its else None


def _heatmap(
    study: Study, found: Mapping[str, Any], sites: Sequence[str], against: str, limits: Mapping[str, float]
) -> bytes:
    each = {site: values(study, found[site]) if site in found else {} for site in sites}
    columns = [*(feature.name for feature in study.features), study.target.column]
    columns = [column for column in columns if any(column in its for its in each.values())]
    table = {site: [its.get(column) for column in columns] for site, its in each.items()}
    return draw.heatmap(sites, columns, table, study=study.name, against=against, **limits)
