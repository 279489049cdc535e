"""`fedrounds report`: the study as one page, from its ledger alone."""

from __future__ import annotations

import json
from pathlib import Path

from fedrounds.cli.study import opened
from fedrounds.core.errors import StateError


def report(directory: Path, state: Path | None, out: Path | None, as_json: bool) -> int:
    """Write report.html and say where it is."""
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.report import write

    folder, place = opened(directory, None, state)
    if not place.begun:
        raise StateError(
            f"expected a study that has run, found no ledger at {place.own}: `fedrounds run {directory}` starts it"
        )
    file = (out or place.own / "report.html").resolve()
    if file.is_dir():
        raise StateError(f"expected a file to write, found a folder at {file}: name a file with --out")
    with Ledger.open(place.ledger) as ledger:
        found = write(ledger, file)
    document = {
        "study": folder.study.name,
        "report": str(file),
        "bytes": file.stat().st_size,
        "rounds": found.rounds,
        "champion": found.champion,
        "visit": found.visits[-1].visit if found.visits else 0,
    }
    print(json.dumps(document, ensure_ascii=False) if as_json else f"{folder.study.name}: {file}")
    return 0
