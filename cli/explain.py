"""`fedrounds explain`: what the model goes by, for whom it works, and what each hospital brought."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.cli.study import drawn, opened, told

if TYPE_CHECKING:
    from fedrounds.tasks.folder import Folder


def explain(directory: Path, data: Path | None, state: Path | None, as_json: bool) -> int:
    """Ask the hospitals, keep the result in the ledger and in MLflow, and say it in short."""
    if (directory / "coordinator.toml").is_file():
        folder, note = _by_mail(directory)
    else:
        from fedrounds.tasks.explain import explain as explained

        folder, place = opened(directory, data, state)
        note = explained(folder, place)
    if as_json:
        return told(folder, note)
    from rich.console import Console

    from fedrounds.reports import explained as reported

    console = Console(highlight=False, markup=False)
    for head, *rows in reported.told(note):
        console.print(drawn(head, rows))
        console.print()
    if "none" in note["contribution"]:
        console.print(f"What each hospital brought was not worked out: {note['contribution']['none']}", soft_wrap=True)
    console.print(reported.whom(note), soft_wrap=True)
    console.print(
        "Look next: explain/explained.html beside the lineage's run in MLflow, and report.html", soft_wrap=True
    )
    return 0


def _by_mail(directory: Path) -> tuple[Folder, dict[str, Any]]:
    """A coordinator's hospitals, with its patience for servers that are away."""
    from fedrounds.cli.coordinate import Patience
    from fedrounds.coordinator.roster import active
    from fedrounds.tasks.explain_apart import explain as explained
    from fedrounds.tasks.federation import read

    found = read(directory)
    sites = active(found.home)

    def say(line: str) -> None:
        print(f"fedrounds: {line}", file=sys.stderr, flush=True)

    patience = Patience(found.folder.operations.federation.patience_s)
    ask = lambda: explained(found.folder, found.place, sites, lambda: found.opened(None, None), say)  # noqa: E731
    return found.folder, patience(ask)
