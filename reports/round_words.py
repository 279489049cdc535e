"""A round in Prefect's pages: a few lines, and a row a hospital."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrounds.core.evaluate import HEADLINE, LOSS
from fedrounds.core.study import Study
from fedrounds.reports.model_card import text
from fedrounds.reports.result import NAMES, error, figure, size
from fedrounds.reports.words import count, shown, trained_on

MOST_ROWS = 200  # rows of a table that a browser draws without a pause


def line(study: Study, record: Mapping[str, Any], number: int, target: int) -> str:
    """How far the run is, in a line. A visit scores the model that came in, which is an earlier round's until the last visit."""
    loss, scored = record["metrics"].get(LOSS[study.target.kind]), record["scored"]
    whose = "" if scored == number else f" after round {scored}:"
    said = "" if loss is None else f" · {NAMES[LOSS[study.target.kind]]}{whose} {figure(loss, 4)}"
    return f"Round {number} of {target}{said}"


def markdown(study: Study, record: Mapping[str, Any], number: int, target: int) -> str:
    """Who trained, how the model that came in scored, what was decided, who sat out and why."""
    sites, scored, metrics = record["sites"], record["scored"], record["metrics"]
    rows = trained_on(record)
    parts = [f"# {text(study.title or study.name)}", f"**Round {number} of {target}**"]
    if rows:
        loss = figure(record["training"].get("train_loss"), 4)
        parts[-1] += f": {count(len(sites), 'hospital')} trained on {shown(rows)} patients, training loss {loss}."
        if some := record.get("participation"):
            parts[-1] += f" {count(len(some['asked']), 'hospital')} asked; the first {some['goal']} to answer count."
    elif number:
        parts[-1] += ": closed. This visit scored its model."
    if metrics.get("n"):
        parts.append(
            f"The model of round {scored}, on {shown(metrics['n'])} validation patients: {_scores(study, metrics)}."
        )
    if record["decision"]:
        parts.append(f"Decision on round {scored}: {text(record['decision']['reason'])}.")
    if record["champion"] is not None:
        parts.append(f"Champion: **round {record['champion']}**.")
    out = [(site, word, reason) for kind, word in (("excluded", "sat out"), ("refused", "refused"), ("warned", "warned"))
           for site, reason in record[kind].items()]  # fmt: skip
    parts += ["\n".join(f"- **{text(site)}** {word}: {text(reason)}" for site, word, reason in out)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(study: Study, metrics: Mapping[str, Any]) -> str:
    found = [
        f"{NAMES[key]} {figure(metrics[key], 4)}"
        for key in (LOSS[study.target.kind], HEADLINE[study.target.kind])
        if key in metrics
    ]
    blur = metrics.get(f"{HEADLINE[study.target.kind]}_error")
    if blur is not None:
        found[-1] += f" ({error(blur)} by its histograms)"
    return ", ".join(found)


def table(study: Study, record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a hospital: what it trained on, how the incoming model does there, what it sent; what nobody has is left out."""
    loss, metric = LOSS[study.target.kind], HEADLINE[study.target.kind]
    rows: list[dict[str, str]] = []
    for name, site in sorted(record["sites"].items()):
        training, metrics = site.get("training", {}), site.get("metrics", {})
        rows.append(
            {
                "hospital": name,
                "patients trained on": shown(training.get("patients")),
                "training loss": figure(training.get("train_loss"), 4),
                "patients judging": shown(metrics.get("n")),
                NAMES[loss]: figure(metrics.get(loss), 4),
                NAMES[metric]: figure(metrics.get(metric), 4),
                "sent to it": size(site["bytes_in"]),
                "sent by it": size(site["bytes_out"]),
            }
        )
    kept = [key for key in rows[0] if any(row[key] != "–" for row in rows)] if rows else []
    return [{key: row[key] for key in kept} for row in rows[:MOST_ROWS]]
