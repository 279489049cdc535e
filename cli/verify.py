"""`fedrounds verify`: is the audit log as it was signed, and is the ledger what the log says?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedrounds.cli.study import opened
from fedrounds.core.errors import StateError, StudyError


def verify(
    directory: Path | None,
    state: Path | None,
    file: Path | None,
    seen: Path | None,
    export: Path | None,
    as_json: bool,
) -> int:
    """Verify a study's log and ledger, or an exported log alone; with `export` write the log for others to verify."""
    from fedrounds.tasks import audit

    if (directory is None) == (file is None):
        raise StudyError("expected a study's folder or --log FILE, found both or none: name one of them")
    kept = [audit.checkpoint_in(seen)] if seen else []
    written: list[str] = []
    if file is not None:
        if export:
            raise StudyError("expected --export with a study's folder, found it with --log: the log is a file already")
        found, where = audit.verify_file(file, kept), str(file)
    else:
        assert directory is not None
        found, where, written = _study(directory, state, kept, export)
    _say(found, where, written, export, as_json)
    return 0


def _study(directory: Path, state: Path | None, kept: list[Any], export: Path | None) -> tuple[Any, str, list[str]]:
    from fedrounds.cli import verify_log
    from fedrounds.ledger import Ledger
    from fedrounds.tasks import audit

    folder, place = opened(directory, None, state)
    if not place.begun:
        raise StateError(
            f"expected a study that has run, found no ledger at {place.own}: `fedrounds run {directory}` starts it"
        )
    with Ledger.open(place.ledger) as ledger:
        found = audit.verify(ledger, audit.known_key(place), kept)
        return found, folder.study.name, audit.export(ledger, export, Path(verify_log.__file__)) if export else []


def _say(found: Any, where: str, written: list[str], export: Path | None, as_json: bool) -> None:
    from fedrounds.core.identity import fingerprint, spoken

    head = found.log.checkpoint
    document = {
        "log": where,
        "origin": head.origin,
        "leaves": head.size,
        "root": head.root.hex(),
        "key": fingerprint(found.key),
        "visits": found.visits,
        "rosters": [spoken(bytes.fromhex(digest)) for digest in found.rosters],
        "written": written,
    }
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    ledger = f", and {found.visits} visits of the ledger as they say" if found.visits else ""
    print(f"{where}: {head.size} leaves as they were signed{ledger}; key {document['key']}.")
    for digest in document["rosters"]:
        print(
            f"Sums were asked for under the roster {digest}, signed by its members: compare it with `fedrounds site roster`."
        )
    if export:
        print(
            f"Written to {export}: {', '.join(written)}. Anybody verifies it by `python3 {export}/verify_log.py {export}`."
        )
