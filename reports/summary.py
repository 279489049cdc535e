"""A study in a table, a note and three pictures, from the records that its ledger keeps.

`visits` are the ledger's entries in order; `baselines` is what `Run.baselines` noted, or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrounds.core.evaluate import HEADLINE, LOSS
from fedrounds.core.study import Study
from fedrounds.reports import plots as draw
from fedrounds.reports.drift import drift_plots
from fedrounds.reports.groups import groups
from fedrounds.reports.words import count, how_to_load, shown, trained_on

AXIS = {
    "auc": "AUC (0 to 1)",
    "r2": "R² (1 is perfect)",
    "concordance": "concordance (0 to 1)",
    "log_loss": "log-loss (nats per patient)",
    "mse": "mean squared error",
    "explained": "explained share (1 is all)",
    "distance": "mean squared distance",
}


SHOWN = {  # a metric's name in MLflow, which draws a chart each, by name: so AUC, Brier and loss come before training, traffic and counts
    "n": "validation_patients",
    "auc_error": "validation_auc_error",
    "concordance_error": "validation_concordance_error",
    "train_loss": "training_loss",
    "train_loss_plain": "training_loss_plain",
    "patients": "training_patients",
    "sites": "training_sites",
    "weight": "training_weight",
    "epsilon": "privacy_epsilon",
    "delta": "privacy_delta",
    "seconds": "training_seconds",
    "bytes_in": "traffic_bytes_in",
    "bytes_out": "traffic_bytes_out",
    "bytes_from_sites": "traffic_bytes_from_sites",
    "bytes_to_sites": "traffic_bytes_to_sites",
}
MOST = 5000  # characters that MLflow keeps of a tag
READING = (
    "*Alone*: the site's own model. *Federated*: the model of all sites together. *Pooled*: one model of all rows in one place, which only a "
    "simulation can know. Each is measured on that site's validation patients."
)


PERSONAL = " *Personal*: a model that the site trains for itself beside the federated one and {stays}."


@dataclass(frozen=True)
class Line:
    """A site in the table: its patients, its gate's verdict or why it did not take part, and values of the study's metric."""

    site: str
    patients: int | None
    gate: str
    local: float | None
    federated: float | None
    pooled: float | None
    personal: float | None = None  # of a model of its own beside the federated one


def headline(study: Study) -> str:
    """The metric that the table shows: auc or r2."""
    return HEADLINE[study.target.kind]


def title(metric: str) -> str:
    """A metric's name for people.

    >>> title("auc"), title("log_loss"), title("r2")
    ('AUC', 'log-loss', 'R²')
    """
    return {"auc": "AUC", "r2": "R²", "mse": "MSE", "log_loss": "log-loss", "explained": "explained"}.get(
        metric, metric
    )


def study_note(study: Study) -> str:
    """What MLflow shows above the study's runs, and as they stand in its list of experiments: so with little markup."""
    question = study.title or study.name
    return f"{question} *{study.note}*" if study.note else question


def model_note(study: Study) -> str:
    """What MLflow shows above the registered model's versions."""
    load, gives = how_to_load(study)
    return (
        f"{study_note(study)}\n\nA version a round, whatever its number: the tag `fedrounds.round` tells. The alias `champion` is the version "
        f"that the promotion rule or a person chose, `challenger` one that waits for a person; "
        f"`{load}` gives {gives}, for raw rows."
    )


def round_note(record: Mapping[str, Any]) -> str:
    """What MLflow shows in a round's run: who trained, and who did not and why."""
    sites = record["sites"]
    rows = trained_on(record)
    names = f": {', '.join(sites)}" if len(sites) <= 12 else ""
    parts = [f"{len(sites)} sites trained{'' if rows is None else f' on {rows:.0f} patients'}{names}."]
    if spent := record.get("privacy"):
        parts.append(f"- spent of each site's privacy so far: ε = {spent['epsilon']:.4g} at δ = {spent['delta']:.3g}")
    parts += [f"- **{site}** sat out: {reason}" for site, reason in record["excluded"].items()]
    parts += [f"- **{site}** took part, {gate_of(record, site)}" for site in record["warned"]]
    parts += [f"- **{site}** refused: {reason}" for site, reason in record["refused"].items()]
    return "\n".join(parts)[:MOST]


def last_scores(visits: Sequence[Any]) -> Mapping[str, Any] | None:
    """The latest record that scored a model."""
    return next((visit.record for visit in reversed(visits) if visit.record["scored"] is not None), None)


def lines(study: Study, visits: Sequence[Any], baselines: Mapping[str, Any]) -> list[Line]:
    """A line a site, then one for all sites."""
    record = last_scores(visits) or (
        visits[-1].record if visits else {"sites": {}, "excluded": {}, "refused": {}, "warned": {}, "metrics": {}}
    )
    metric = headline(study)
    local, pooled, patients = (baselines.get(key, {}) for key in ("local", "pooled", "patients"))
    found: list[Line] = []
    for site in sorted({*record["sites"], *record["excluded"], *record["refused"]}):
        if site in record["sites"]:
            own = record["sites"][site].get("metrics", {}).get(metric)
            found.append(
                Line(
                    site,
                    patients.get(site),
                    gate_of(record, site),
                    local.get(site, {}).get(metric),
                    own,
                    pooled.get(site, {}).get(metric),
                    record["sites"][site].get("personal", {}).get(f"personal_{metric}"),
                )
            )
        else:
            reason = record["excluded"].get(site) or f"refused: {record['refused'][site]}"
            found.append(Line(site, patients.get(site), reason, None, None, None))
    overall = baselines.get("pooled_all", {}).get(metric)
    everybody, own = sum(patients.values()) or None, record.get("personal", {}).get(f"personal_{metric}")
    asked = (
        record.get("participation") and study.participation.fraction < 1
    )  # a run under way: nobody else has scored it
    whose = "sites asked" if asked else "all sites"
    found.append(Line(whose, everybody, "", None, record["metrics"].get(metric), overall, own))
    return found


def gate_of(record: Mapping[str, Any], site: str) -> str:
    """What a taking-part site's gate did, as `word: sentence`; "passed" alone where there is nothing to say."""
    sentence, found = record["warned"].get(site), record.get("gate", {}).get(site, {})
    if sentence is None:
        return "passed"
    if found.get("action") == "down-weight":
        return f"down-weighted: λ times {found['factor']:g}, {sentence}"
    return f"{'warned' if found.get('quarantined', 0) == 0 else 'quarantined'}: {sentence}"


def gate_words(record: Mapping[str, Any]) -> dict[str, str]:
    """A word for each site that did not simply pass its gate."""
    words = {site: gate_of(record, site).partition(":")[0] for site in record["warned"]}
    return words | dict.fromkeys(record["excluded"], "excluded")


def markdown_table(study: Study, visits: Sequence[Any], baselines: Mapping[str, Any]) -> str:
    """The table for Prefect and MLflow, and how to read it."""
    name, found = title(headline(study)), lines(study, visits, baselines)
    own = any(line.personal is not None for line in found)
    rows = [
        f"| site | patients | gate | {name} alone | {name} federated | {name} pooled |" + f" {name} personal |" * own,
        "|---|---:|---|---:|---:|---:|" + "---:|" * own,
    ]
    for line in found:
        numbers = (line.local, line.federated, line.pooled, *([line.personal] if own else []))
        values = " | ".join("–" if value is None else f"{value:.3f}" for value in numbers)
        rows.append(f"| {line.site} | {shown(line.patients)} | {line.gate.replace('|', '/')} | {values} |")
    return "\n".join(rows) + f"\n\n{READING}{PERSONAL.format(stays=study.averaging.stays) if own else ''}\n"


def note(study: Study, visits: Sequence[Any], baselines: Mapping[str, Any], standing: Any, place: str = "") -> str:
    """What MLflow shows beside the lineage's run.

    Args:
        standing: the ledger's: who is champion, and who waits for a person.
        place: the address of the run's artifacts in MLflow's pages.
    """
    record = last_scores(visits) or {}
    rounds = max((visit.round for visit in visits), default=0)
    champion, challenger = standing.champion, standing.challenger
    chosen = standing.said[champion][1] if champion else ""
    reason = (record.get("decision") or {}).get("reason", "")
    parts = [
        f"**[Open the report]({place}/report.html)** · [model card]({place}/model_card.md) · [rounds]({place}/plots/rounds.png)"
        if place
        else "",
        study_note(study),
        f"{count(rounds, 'round')}. {_result(study, record, baselines)} "
        + (f"Champion: **round {champion}**." if champion else "No champion yet.")
        + (f" Round {challenger} waits for approval." if challenger else ""),
        markdown_table(study, visits, baselines),
        f"Round {champion} is champion: {chosen}." if champion else "",
        f"The last decision of the rule: {reason}." if reason and reason != chosen else "",
        "Patient rows never left a hospital: sites sent sums, counts and updates. Pictures: *Artifacts → plots*. Charts: *Model metrics*.",
    ]
    error = record.get("metrics", {}).get(f"{headline(study)}_error")
    if error is not None:
        parts.append(
            f"{title(headline(study))} is computed from score histograms of {study.validation.bins} bins: it is exact to ±{error:.4f}."
        )
    return "\n\n".join(part for part in parts if part)


def _result(study: Study, record: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    metric = headline(study)
    found, ceiling = (values.get(metric) for values in (record.get("metrics", {}), baselines.get("pooled_all", {})))
    if found is None:
        return ""
    beside = "" if ceiling is None else f"; one pool of all rows would give {ceiling:.3f}"
    return f"{title(metric)} of the federated model over all validation patients: **{found:.3f}**{beside}."


def plots(study: Study, visits: Sequence[Any], baselines: Mapping[str, Any], champion: int | None) -> dict[str, bytes]:
    """name -> PNG: the rounds (the champion's marked), the sites side by side, calibration (of the last scored model), drift where watched."""
    loss, metric = LOSS[study.target.kind], headline(study)
    scored: dict[int, Mapping[str, Any]] = {}
    for visit in visits:
        if visit.record["scored"] is not None and visit.record["metrics"]:  # none are told under differential privacy
            scored.setdefault(visit.record["scored"], visit.record)
    drift = drift_plots(study, visits)
    if not scored:
        return drift
    steps, records = list(scored), list(scored.values())
    names = sorted({site for record in records for site in record["sites"]})
    by_site = {site: [_of(record, site, loss) for record in records] for site in names}
    found = {
        "rounds": draw.rounds(
            steps,
            [record["metrics"].get(loss) for record in records],
            [record["metrics"].get(metric) for record in records],
            study=study.name,
            loss_name=AXIS[loss],
            metric_name=AXIS[metric],
            site_losses=by_site,
            champion=champion,
            whole="the sites asked" if study.participation.fraction < 1 else "all sites",
        )
    }
    table = [
        line for line in lines(study, visits, baselines)[:-1] if line.federated is not None or line.local is not None
    ]
    if table:
        columns = zip(
            *((line.site, line.local, line.federated, line.pooled, line.patients) for line in table), strict=True
        )
        sites, local, federated, pooled, patients = map(list, columns)
        found["sites"] = draw.sites(
            sites, local, federated, pooled, metric_name=AXIS[metric], study=study.name, patients=patients
        )
    if study.target.kind == "binary" and records[-1]["metrics"].get("n"):
        joined = groups(np.array(records[-1]["histogram"])[0])
        found["calibration"] = draw.calibration(
            [group.predicted for group in joined],
            [group.observed for group in joined],
            [group.rows for group in joined],
            study=study.name,
            round=steps[-1],
        )
    return found | drift


def _of(record: Mapping[str, Any], site: str, metric: str) -> float | None:
    return record["sites"].get(site, {}).get("metrics", {}).get(metric)
