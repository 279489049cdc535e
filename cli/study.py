"""What several commands do first: read the folder, load and check every site's rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
