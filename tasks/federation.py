"""A coordinator's folder, opened: its study, its ledger and MLflow, its hospitals' desks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fedrounds.coordinator.config import Config
from fedrounds.tasks.clock import Clock
from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.desk import Desk
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.run import Listener, opened


@dataclass(frozen=True)
class Federation:
    """What a coordinator's folder says."""

    home: Path
    config: Config
    folder: Folder
    place: State
    desks: Mapping[str, Desk]

    def opened(self, on_visit: Listener | None, clock: Clock | None) -> AbstractContextManager[Correspondence]:
        """A run with its hospitals, which holds the study's lease."""
        return opened(self.folder, self.place, on_visit, self.desks, clock, Correspondence)  # type: ignore[return-value]
