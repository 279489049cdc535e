"""What each hospital has sent in training, kept by a coordinator that says so (`keep_updates`): a file an exchange, written before it is closed.

A round that is asked again after a crash writes the same file again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fedrounds.core.algorithm import Folded, Sums
from fedrounds.core.contribution import Updates
from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.messages import pack, unpack
from fedrounds.core.plan import Plan
from fedrounds.core.state import RunState

FOLDER = "updates"  # in the study's own state


def keeping(plan: Plan, folder: Path) -> Plan:
    """The plan, whose training keeps in a folder what it combines."""
    train = plan.algorithms["train"]

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        held = list(replies)
        _write(folder, state, held)
        return train.fold(state, held)

    return replace(plan, algorithms={**plan.algorithms, "train": train._replace(fold=fold)})


def kept(folder: Path, study: str, rounds: int) -> Updates | str:
    """The updates of the rounds from the first to the last; or why they are not there."""
    found: list[list[tuple[str, Sums]]] = []
    for number in range(1, rounds + 1):
        files = sorted(folder.glob(f"{number:06}-*.update"))
        if not files:
            return f"the updates of round {number} were not kept"
        try:
            read = [_read(file) for file in files]
        except (UpdateRejected, OSError, LookupError):
            return f"the updates of round {number} cannot be read any more"
        if any(of != study for of, _ in read):
            return f"the updates of round {number} are another study's"
        found += [replies for _, replies in read]
    return found


def _write(folder: Path, state: RunState, replies: list[tuple[str, Sums]]) -> None:
    header = {"study": state.study, "sites": [site for site, _ in replies]}
    arrays = {f"{at}/{name}": array for at, (_, sums) in enumerate(replies) for name, array in sums.items()}
    file = folder / f"{state.round + 1:06}-{state.exchange:06}.update"
    scratch = file.with_suffix(".new")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        scratch.write_bytes(pack(header, arrays))
        scratch.replace(file)
    except OSError as error:
        raise StateError(
            f"expected to keep the round's updates in {folder}, found: {error.strerror}: free space, or leave out `keep_updates`"
        ) from None


def _read(file: Path) -> tuple[str, list[tuple[str, Sums]]]:
    header, arrays = unpack(file.read_bytes())
    return header["study"], [
        (site, {name.partition("/")[2]: array for name, array in arrays.items() if name.partition("/")[0] == str(at)})
        for at, site in enumerate(header["sites"])
    ]
