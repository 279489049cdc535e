"""`fedrounds status`, and the table that ends a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.cli.study import opened

if TYPE_CHECKING:
    from rich.table import Table

    from fedrounds.ledger import Act, Standing
    from fedrounds.tasks.folder import Folder, State


def status(directory: Path, state: Path | None, as_json: bool) -> int:
    """Where the study stands."""
    folder, place = opened(directory, None, state)
    if not place.begun:
        if as_json:
            print(json.dumps({"study": folder.study.name, "rounds": 0, "of": folder.operations.rounds}))
        else:
            print(f"{folder.study.name}: no round yet. `fedrounds run {directory}` starts it.")
        return 0
    return show(folder, place, as_json)


def show(folder: Folder, place: State, as_json: bool, timings: Mapping[str, float] | None = None) -> int:
    """Print the study's table and where to look next, from the ledger; `timings`: where the run's seconds went."""
    from dataclasses import asdict

    from fedrounds.ledger import Ledger
    from fedrounds.reports import traffic
    from fedrounds.reports.drift import calibration_lines, drift_lines, last_drift
    from fedrounds.reports.summary import last_scores, lines
    from fedrounds.tasks.drift import beyond

    with Ledger.open(place.ledger) as ledger:
        visits, baselines, failures = ledger.visits(), ledger.noted("baselines") or {}, ledger.failures()
        reports = ledger.noted("reports") or []
        standing, acts = ledger.standing(), ledger.acts()
        drifted = drift_lines(visits, ledger.noted("accepted_drift") or [])
    table = lines(folder.study, visits, baselines)
    record = last_scores(visits) or {}
    limits, calibration = folder.operations.drift, record.get("calibration_drift")
    drifted += calibration_lines(beyond(calibration, limits)) if limits and calibration else []
    number = max((visit.round for visit in visits), default=0)
    seconds = sum(timings.values()) if timings else None
    if as_json:
        document = {
            "study": folder.study.name,
            "note": folder.study.note,
            "rounds": number,
            "of": folder.operations.rounds,
            "champion": standing.champion,
            "challenger": standing.challenger,
            "last_act": asdict(acts[-1]) if acts else None,
            "model_digest": visits[-1].model if visits else None,
            "metrics": record.get("metrics", {}),
            "sites": [asdict(line) for line in table],
            "decision": record.get("decision"),
            "bytes": traffic.summary(visits),
            "drift": last_drift(visits).record["drift"] if last_drift(visits) else None,
            "last_failure": asdict(failures[-1]) if _last_failure(visits, failures) else None,
            "reports": reports,
            "state": str(place.own),
            "seconds": seconds,
            "timings": timings,
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    _print(
        folder,
        table,
        record,
        number,
        [*(_last_failure(visits, failures) or drifted), *reports],
        seconds,
        standing,
        acts,
        traffic.line(visits),
    )
    return 0


def _last_failure(visits: Sequence[Any], failures: Sequence[Any]) -> list[str]:
    """Why the last try did not close, if nothing closed since."""
    pending = failures and (not visits or failures[-1].failed > visits[-1].committed)
    return [f"last try failed: {failures[-1].reason}"] if pending else []


def _print(
    folder: Folder,
    table: list[Any],
    record: Any,
    number: int,
    warnings: Sequence[str],
    seconds: float | None,
    standing: Standing,
    acts: Sequence[Act] = (),
    crossed: str = "",
) -> None:
    from rich.console import Console

    from fedrounds.reports.summary import headline, title

    study = folder.study
    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:  # into a file or a pipe a sentence goes unbroken
        console.print(text, style=style or None, markup=False, soft_wrap=not console.is_terminal)

    took = f" in {seconds:.1f} s" if seconds else ""
    say(f"{study.title or study.name} · {_rounds(number, folder.operations.rounds)}{took}", "bold")
    if study.note:
        say(study.note)
    console.print(_drawn(folder, table))
    for line in table:
        if line.gate and line.gate != "passed":
            say(
                f"{_gate_word(line.gate)}: {line.site} — {line.gate.removeprefix(f'{_gate_word(line.gate)}: ')}",
                "yellow",
            )
    metric = headline(study)
    if f"{metric}_error" in record.get("metrics", {}):
        error = record["metrics"][f"{metric}_error"]
        exact = f"±{error:.4f}" if error >= 0.0001 else "<0.0001"
        say(f"{title(metric)} from histograms of {study.validation.bins} bins: exact to {exact}.", "dim")
    say("* one pool of all rows: only a run in one process can know it.", "dim")
    for line in _standing(folder, standing, acts):
        say(line)
    if crossed:
        say(f"bytes: {crossed}; bytes.csv beside the report has all", "dim")
    for warning in warnings:
        say(warning, "red")
    say(f"Look next: fedrounds ui {folder.path}  (charts and versions in MLflow, tasks in Prefect)")


def _standing(folder: Folder, standing: Standing, acts: Sequence[Act]) -> list[str]:
    """Who is champion, who waits for a person, and what a person did last."""
    from fedrounds.tasks.acts import told

    found = []
    if standing.champion is not None:
        found.append(f"champion: round {standing.champion} — {standing.said[standing.champion][1]}")
    if standing.challenger is not None:
        why = standing.said[standing.challenger][1]
        found.append(f"challenger: round {standing.challenger} — {why}: `fedrounds promote {folder.path}`")
    if acts:
        found.append(f"last act: {told(acts[-1])}")
    return found


def _drawn(folder: Folder, table: list[Any]) -> Table:
    from rich.table import Table

    from fedrounds.reports.summary import headline, title

    metric = title(headline(folder.study))
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("site", overflow="fold")
    drawn.add_column("patients", justify="right", no_wrap=True)
    drawn.add_column("gate", no_wrap=True)
    own = [f"{metric} personal"] if any(line.personal is not None for line in table) else []
    for name in (f"{metric} alone", f"{metric} federated", f"{metric} pooled*", *own):
        drawn.add_column(name, justify="right", no_wrap=True)
    for line in table:
        numbers = (line.local, line.federated, line.pooled, *([line.personal] if own else []))
        values = ["–" if value is None else f"{value:.3f}" for value in numbers]
        style = "bold" if line.site in ("all sites", "sites asked") else "" if line.gate == "passed" else "yellow"
        drawn.add_row(line.site, str(line.patients or "–"), _gate_word(line.gate), *values, style=style)
    return drawn


def _gate_word(gate: str) -> str:
    """The gate's column holds a word; the sentence goes below the table."""
    if gate in ("", "passed"):
        return gate
    words = ("refused", "warned", "down-weighted", "quarantined")
    return next((word for word in words if gate.startswith(f"{word}: ")), "excluded")


def _rounds(number: int, of: int) -> str:
    """How far the study is; `--more` may have taken it past what operations.toml asks for."""
    return f"{number} of {of} rounds" if number < of else f"{number} round{'' if number == 1 else 's'}"
