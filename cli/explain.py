"""`fedrounds explain`: what the model goes by, for whom it works, and what each hospital brought."""

from __future__ import annotations

import json
from pathlib import Path

from fedrounds.cli.study import opened
from fedrounds.core.errors import StudyError


def explain(directory: Path, data: Path | None, state: Path | None, as_json: bool) -> int:
    """Ask the hospitals, keep the result in the ledger and in MLflow, and say it in short."""
    if (directory / "coordinator.toml").is_file():
        raise StudyError(
            f"expected a study whose hospitals are in this process, found a coordinator's folder at {directory}: hospitals that are apart are"
            " not asked this by mail yet"
        )
    from fedrounds.tasks.explain import explain as explained

    folder, place = opened(directory, data, state)
    note = explained(folder, place)
    if as_json:
        kept = {key: value for key, value in note.items() if key != "token"}
        print(json.dumps({"study": folder.study.name, **kept}, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    from fedrounds.reports.explained import told

    console = Console(highlight=False, markup=False)
    for head, *rows in told(note):
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        drawn.add_column(head[0], overflow="fold")
        for name in head[1:]:
            drawn.add_column(name, justify="right")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)
        console.print()
    if "none" in note["contribution"]:
        console.print(f"What each hospital brought was not worked out: {note['contribution']['none']}", soft_wrap=True)
    for site, reason in note["refused"].items():
        console.print(f"{site} answered nothing of this: {reason}", soft_wrap=True)
    console.print(
        "Look next: explain/explained.html beside the lineage's run in MLflow, and report.html", soft_wrap=True
    )
    return 0
