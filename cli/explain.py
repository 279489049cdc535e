"""`fedrounds explain`: what the model goes by, for whom it works, and what each hospital brought."""

from __future__ import annotations

from pathlib import Path

from fedrounds.cli.study import drawn, here, told


def explain(directory: Path, data: Path | None, state: Path | None, as_json: bool) -> int:
    """Ask the hospitals, keep the result in the ledger and in MLflow, and say it in short."""
    folder, place = here(directory, data, state, "hospitals that are apart are not asked this by mail yet")
    from fedrounds.tasks.explain import explain as explained

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
    for site, reason in note["refused"].items():
        console.print(f"{site} answered nothing of this: {reason}", soft_wrap=True)
    console.print(
        "Look next: explain/explained.html beside the lineage's run in MLflow, and report.html", soft_wrap=True
    )
    return 0
