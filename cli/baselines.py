"""`fedrounds baselines`: what other ways of learning from the same rows would give, each at every hospital."""

from __future__ import annotations

import json
from pathlib import Path

from fedrounds.cli.study import opened
from fedrounds.core.errors import StudyError


def baselines(directory: Path, data: Path | None, state: Path | None, as_json: bool) -> int:
    """Train them, keep them in the ledger and in MLflow, and say how they fare."""
    if (directory / "coordinator.toml").is_file():
        raise StudyError(
            f"expected a study whose hospitals are in this process, found a coordinator's folder at {directory}: only a simulation may hold all rows"
        )
    from fedrounds.tasks.matrix import compare

    folder, place = opened(directory, data, state)
    note = compare(folder, place)
    if as_json:
        kept = {key: value for key, value in note.items() if key != "token"}
        print(json.dumps({"study": folder.study.name, **kept}, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    from fedrounds.reports.matrix import told

    (name, *sites), *rows = told(note)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column(name, overflow="fold")
    for site in sites:
        drawn.add_column(site, justify="right")
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(drawn)
    for line in note["lines"]:
        if line["remark"]:
            console.print(f"{line['name']}: {line['remark']}", soft_wrap=True)
    for site, reason in note["refused"].items():
        console.print(f"{site} takes part in no comparison: {reason}", soft_wrap=True)
    console.print(
        "Look next: baselines/matrix.html beside the lineage's run in MLflow, and report.html", soft_wrap=True
    )
    return 0
