"""`fedrounds repair`: MLflow's store, lost or half lost, from the study's ledger."""

from __future__ import annotations

import json
from pathlib import Path

from fedrounds.cli.study import opened

KINDS = ("runs", "versions", "files", "tags", "aliases", "undeleted")


def repair(directory: Path, state: Path | None, as_json: bool) -> int:
    """Write what is missing and say how much that was."""
    from fedrounds.tasks.repair import repair as mended

    folder, place = opened(directory, None, state)
    found = mended(place)
    document = {"study": folder.study.name, "visits": found["visits"], **{kind: found.get(kind, 0) for kind in KINDS}}
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return 0
    missing = ", ".join(f"{document[kind]} {kind}" for kind in KINDS if document[kind])
    visits = f"MLflow holds what the ledger's {document['visits']} visits say"
    print(f"{folder.study.name}: {visits}; {'put right: ' + missing if missing else 'nothing was missing'}.")
    return 0
