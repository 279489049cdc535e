"""What a site of this process remembers of a study between rounds: as a hospital's book has it (`site/book.py`), in a file of its own.

What a round leaves takes effect when a later round is asked for, which proves that it closed; asked again, a round begins with what it began
with. The file is in its place before the answer that it belongs to is seen, so a run that is killed and run again goes on bit for bit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedrounds.core.algorithm import SiteState
from fedrounds.core.errors import StateError, StudyError, UpdateRejected
from fedrounds.core.messages import Request, pack, unpack
from fedrounds.core.params import Array
from fedrounds.core.strategy import Averaging

if TYPE_CHECKING:
    from fedrounds.tasks.run import Run


def begins(asked: Request) -> int:
    """The round that a request finds the beginning of, by what a site remembers: training is its round's own; what asks about a closed
    round, such as scores, finds what that one left, as its number proves that it closed."""
    return asked.round if asked.ask == "train" else asked.round + 1


class Memory:
    """The last two states of one site, by the round that left them. Of a rule that remembers nothing no file is made.

    Args:
        file: where they are kept; without one, in this process alone.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._left: dict[int, SiteState] = self._read(file) if file and file.exists() else {}

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return any(self._left.values())

    def before(self, number: int) -> SiteState:
        """What round `number` begins with: what the last round before it left."""
        rounds = [left for left in self._left if left < number]
        return self._left[max(rounds)] if rounds else {}

    def keep(self, number: int, state: SiteState) -> None:
        """Store what round `number` leaves if it closes, and what it began with."""
        if not state and not self:
            return
        self._left = {**{left: self._left[left] for left in self._last(number)}, number: state}
        if self._file is not None:
            arrays = {f"{left}/{name}": array for left, kept in self._left.items() for name, array in kept.items()}
            scratch = self._file.with_suffix(".new")
            scratch.parent.mkdir(exist_ok=True)
            with scratch.open("wb") as written:
                written.write(pack({"rounds": sorted(self._left)}, arrays))
                written.flush()
                os.fsync(written.fileno())
            scratch.replace(self._file)
            _settle(self._file.parent)

    def _last(self, number: int) -> list[int]:
        return sorted(left for left in self._left if left < number)[-1:]

    @staticmethod
    def _read(file: Path) -> dict[int, SiteState]:
        try:
            header, arrays = unpack(file.read_bytes())
            left: dict[int, dict[str, Array]] = {number: {} for number in header["rounds"]}
            for name, array in arrays.items():
                number, _, rest = name.partition("/")
                left[int(number)][rest] = array
        except (UpdateRejected, KeyError, ValueError):
            raise StateError(
                f"expected what site '{file.stem}' remembers in {file}, found damaged bytes: restore the state folder from a copy, or begin a new"
                " lineage with --fresh"
            ) from None
        return dict(left)


def _settle(folder: Path) -> None:
    """Let a name in a folder outlive a power failure, as the ledger's rows do."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remembering(run: Run) -> None:
    """Let the sites of a run in this process keep what they remember. Raises StudyError where they are at a cluster's workers."""
    algorithm = run.folder.study.algorithm
    if run.carrier == "mail" or not (isinstance(algorithm, Averaging) and algorithm.remembers):
        return
    if run.on_dask:
        raise StudyError(
            f"expected an algorithm whose sites remember nothing on a cluster, found '{algorithm.names[0]}': a worker that dies would lose what its"
            " sites remember; leave --runner out"
        )
    for ward in run.wards.values():
        ward.remember(run.place.memories)
