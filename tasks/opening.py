"""A study's run, opened from the path of its folder: of hospitals in this process, or of a coordinator's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from fedrounds.tasks import folder as folders
from fedrounds.tasks.run import Run, opened


def opening(folder: Path, data: Path | None = None, state: Path | None = None) -> AbstractContextManager[Run]:
    """A run that holds the study's lease.

    Args:
        folder: a study's, or a coordinator's.
        data, state: where the sites' relative paths start, and where the state is; a coordinator's folder says both itself.

    Raises StudyError, StateError or ServiceError with one line.
    """
    if (folder / "coordinator.toml").is_file():
        from fedrounds.tasks.federation import read

        federation = read(folder)
        folders.prepare(federation.place, fresh=False)
        return federation.opened(None, None)
    found = folders.read(folder, data)
    place = folders.state_of(found.path, found.study.name, state)
    folders.prepare(place, fresh=False)
    return opened(found, place)
