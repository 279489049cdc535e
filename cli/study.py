"""What several commands do first: read the folder, load and check every site's rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from fedrounds.tasks.folder import Folder, State
    from fedrounds.tasks.ward import Ward


def opened(folder: Path, data: Path | None, state: Path | None) -> tuple[Folder, State]:
    """The study's files, typed, and where its state is. Writes nothing."""
    from fedrounds.tasks.folder import read, state_of

    if (folder / "coordinator.toml").is_file():
        from fedrounds.tasks.federation import read as federation

        federated = federation(folder)
        return federated.folder, federated.place
    found = read(folder, data)
    return found, state_of(folder, found.study.name, state)


def here(directory: Path, data: Path | None, state: Path | None, why: str) -> tuple[Folder, State]:
    """The same, of a study whose hospitals are in this process. Raises StudyError of a coordinator's folder, and says `why`."""
    from fedrounds.core.errors import StudyError

    if (directory / "coordinator.toml").is_file():
        raise StudyError(
            f"expected a study whose hospitals are in this process, found a coordinator's folder at {directory}: {why}"
        )
    return opened(directory, data, state)


def told(folder: Folder, note: Mapping[str, Any]) -> int:
    """Print a note of the ledger as JSON, without what it is recognised by."""
    kept = {key: value for key, value in note.items() if key != "token"}
    print(json.dumps({"study": folder.study.name, **kept}, ensure_ascii=False))
    return 0


def drawn(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal: the first column is names, the others numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(head[0], overflow="fold")
    for name in head[1:]:
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def loaded(folder: Folder) -> Mapping[str, Ward]:
    """Every site's rows, read by the dictionary: all that can be wrong with them is found before anything is written."""
    from fedrounds.core.plan import build
    from fedrounds.tasks.ward import Ward

    plan = build(folder.study)
    wards = {name: Ward(site, plan, folder.data) for name, site in folder.sites.items()}
    for ward in wards.values():
        ward.load()
    enough(folder, wards)
    return wards


def enough(folder: Folder, wards: Mapping[str, Ward]) -> None:
    """Raise DataContractError where too few sites can take part at all."""
    from fedrounds.core.errors import DataContractError

    refused = {name: ward.refusal() for name, ward in wards.items() if ward.refusal()}
    quorum = folder.operations.quorum_of(len(wards))
    if len(wards) - len(refused) < quorum:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise DataContractError(
            f"expected at least {quorum} sites that can take part, found {len(wards) - len(refused)} ({reasons})"
        )
