"""`fedrounds status`, and the table that ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.cli.study import opened

if TYPE_CHECKING:
    from fedrounds.tasks.folder import Folder, State


def status(directory: Path, state: Path | None, as_json: bool) -> int:
    """Where the study stands."""
    folder, place = opened(directory, None, state)
    if not place.ledger.exists():
        if as_json:
            print(json.dumps({"study": folder.study.name, "rounds": 0, "of": folder.operations.rounds}))
        else:
            print(f"{folder.study.name}: no round yet. `fedrounds run {directory}` starts it.")
        return 0
    return show(folder, place, as_json)


def show(folder: Folder, place: State, as_json: bool, seconds: float | None = None) -> int:
    """Print the study's table and where to look next, from the ledger."""
    from dataclasses import asdict

    from fedrounds.ledger import Ledger
    from fedrounds.reports.summary import last_scores, lines

    with Ledger.open(place.ledger) as ledger:
        visits, baselines, failures = ledger.visits(), ledger.noted("baselines") or {}, ledger.failures()
    table = lines(folder.study, visits, baselines)
    record = last_scores(visits) or {}
    number = max((visit.round for visit in visits), default=0)
    if as_json:
        document = {
            "study": folder.study.name,
            "note": folder.study.note,
            "rounds": number,
            "of": folder.operations.rounds,
            "champion": record.get("champion"),
            "model_digest": visits[-1].model if visits else None,
            "metrics": record.get("metrics", {}),
            "sites": [asdict(line) for line in table],
            "decision": record.get("decision"),
            "last_failure": asdict(failures[-1])
            if failures and (not visits or failures[-1].failed > visits[-1].committed)
            else None,
            "state": str(place.own),
            "seconds": seconds,
        }
        print(json.dumps(document, ensure_ascii=False))
        return 0
    _print(folder, table, record, number, visits, failures, seconds)
    return 0


def _print(
    folder: Folder, table: list[Any], record: Any, number: int, visits: Any, failures: Any, seconds: float | None
) -> None:
    from rich.console import Console
    from rich.table import Table

    from fedrounds.reports.summary import headline

    study = folder.study
    metric = {"auc": "AUC", "r2": "R²"}[headline(study)]
    took = f" in {seconds:.1f} s" if seconds else ""
    console = Console(highlight=False)
    console.print(f"[bold]{study.title or study.name}[/] · {number} of {folder.operations.rounds} rounds{took}", end="")
    console.print(f" · {study.note}" if study.note else "")
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("site")
    drawn.add_column("patients", justify="right")
    drawn.add_column("gate")
    for name in (f"{metric} alone", f"{metric} federated", f"{metric} pooled*"):
        drawn.add_column(name, justify="right")
    for line in table:
        values = ["–" if value is None else f"{value:.3f}" for value in (line.local, line.federated, line.pooled)]
        style = "bold" if line.site == "all sites" else "" if line.gate == "passed" else "yellow"
        drawn.add_row(line.site, str(line.patients or "–"), line.gate, *values, style=style)
    console.print(drawn)
    if "auc_error" in record.get("metrics", {}):
        console.print(
            f"AUC from histograms of {study.validation.bins} bins: exact to ±{record['metrics']['auc_error']:.4f}.",
            style="dim",
        )
    console.print("* one pool of all rows: only a run in one process can know it.", style="dim")
    if record.get("champion") is not None:
        console.print(f"champion: round {record['champion']} — {(record.get('decision') or {}).get('reason', '')}")
    if failures and (not visits or failures[-1].failed > visits[-1].committed):
        console.print(f"last try failed: {failures[-1].reason}", style="red")
    console.print(
        f"Look next: [bold]fedrounds ui {folder.path}[/] (charts and versions in MLflow, the round's steps in Prefect)"
    )
