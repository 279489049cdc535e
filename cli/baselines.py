"""`fedrounds baselines`: what other ways of learning from the same rows would give, each at every hospital."""

from __future__ import annotations

from pathlib import Path

from fedrounds.cli.study import drawn, here, told


def baselines(directory: Path, data: Path | None, state: Path | None, as_json: bool) -> int:
    """Train them, keep them in the ledger and in MLflow, and say how they fare."""
    folder, place = here(directory, data, state, "only a simulation may hold all rows")
    from fedrounds.tasks.matrix import compare

    note = compare(folder, place)
    if as_json:
        return told(folder, note)
    from rich.console import Console

    from fedrounds.reports import matrix

    console = Console(highlight=False, markup=False)
    head, *rows = matrix.told(note)
    console.print(drawn(head, rows))
    for line in note["lines"]:
        if line["remark"]:
            console.print(f"{line['name']}: {line['remark']}", soft_wrap=True)
    for site, reason in note["refused"].items():
        console.print(f"{site} takes part in no comparison: {reason}", soft_wrap=True)
    console.print(
        "Look next: baselines/matrix.html beside the lineage's run in MLflow, and report.html", soft_wrap=True
    )
    return 0
