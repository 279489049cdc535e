"""`fedrounds run`: checks first, then the flow, with a progress bar and a table at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedrounds.cli.study import loaded, opened

if TYPE_CHECKING:
    from fedrounds.tasks.folder import Folder, State
    from fedrounds.tasks.prefect_server import PrefectServer
    from fedrounds.tasks.run import Run
    from fedrounds.tasks.ward import Ward


def run(directory: Path, data: Path | None, state: Path | None, more: int, fresh: bool, as_json: bool) -> int:
    """Bring the study to its rounds, or `more` further."""
    from fedrounds.tasks.folder import prepare

    began = time.time()
    folder, place = opened(directory, data, state)
    if not fresh and not more and done(folder, place):
        return _say_done(folder, place, as_json)
    wards = loaded(folder)
    compatible(folder, place, fresh)
    prepare(place, fresh)
    _carry_out(folder, place, wards, more, as_json)
    from fedrounds.cli.status import show

    return show(folder, place, as_json, seconds=time.time() - began)


def done(folder: Folder, place: State) -> bool:
    """Whether the study is at its rounds, scored, and wholly in MLflow."""
    from fedrounds.ledger import Ledger

    if not place.ledger.exists():
        return False
    with Ledger.open(place.ledger) as ledger:
        lineage, last = ledger.lineage(), ledger.progress()
        if lineage is None or last is None or lineage.digest != folder.study.digest:
            return False
        closed = last.ask == "score" and last.round >= folder.operations.rounds
        return closed and ledger.noted("finished") == last.visit and not ledger.unprojected()


def _say_done(folder: Folder, place: State, as_json: bool) -> int:
    from fedrounds.cli.status import show

    if not as_json:
        print(
            f"{folder.study.name} is at its {folder.operations.rounds} rounds already; `--more N` goes on, `--fresh` starts anew."
        )
    return show(folder, place, as_json)


def compatible(folder: Folder, place: State, fresh: bool) -> None:
    """Refuse to go on, or to start a lineage of the same name, with another protocol or dictionary. Writes nothing."""
    from fedrounds.core.errors import StudyError
    from fedrounds.ledger import Ledger

    if not place.ledger.exists():
        return
    with Ledger.open(place.ledger) as ledger:
        if ledger.lineage() is None:
            return
        before = ledger.study()
    old = [(feature.name, feature.type) for feature in before.features]
    new = [(feature.name, feature.type) for feature in folder.study.features]
    if before.target.column != folder.study.target.column or old != new:
        raise StudyError(
            f"expected the dictionary that '{before.name}' is registered with ({len(old)} features, target '{before.target.column}'),"
            f" found another one: give the study a new name"
        )
    if not fresh and before.digest != folder.study.digest:
        raise StudyError(
            f"expected protocol {before.digest[:12]} of '{before.name}', found {folder.study.digest[:12]}: --fresh starts a new lineage"
        )


def _carry_out(folder: Folder, place: State, wards: Mapping[str, Ward], more: int, as_json: bool) -> None:
    """Run the flow on a Prefect server: ours, or the one at PREFECT_API_URL."""
    from fedrounds.tasks.prefect_server import PrefectServer, settings

    theirs = os.environ.get("PREFECT_API_URL")
    server = None if theirs else PrefectServer(place.prefect_home, place.log, templates=place.mlruns / ".cache")
    try:
        os.environ.update(settings(place.prefect_home, theirs or server.api_url))
        with quiet(place.log) as terminal, progress(folder, terminal, as_json) as on_visit:
            _flow(folder, place, wards, more, server, on_visit)
    finally:
        if server is not None:
            server.stop()


def _flow(
    folder: Folder,
    place: State,
    wards: Mapping[str, Ward],
    more: int,
    server: PrefectServer | None,
    on_visit: Callable[[Run], None],
) -> None:
    from fedrounds.tasks.run import opened as opened_run

    with opened_run(folder, place, on_visit, wards) as run:
        run.warm_up()
        from fedrounds.flows.study import at_hand, study

        logging.getLogger("EventsWorker").setLevel(
            logging.ERROR
        )  # it counts what it still has to send, on the terminal
        if server is not None:
            server.wait()
        at_hand.set(run)
        asyncio.run(study(str(folder.path), more=more))
        run.ledger.note("finished", run.visit)
        if server is not None:
            server.drain(run.flow_run, run.tasks)


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """What libraries print goes to the study's log; yields the terminal (standard error), which only we write to."""
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w")
    saved = os.dup(1), os.dup(2)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        with terminal, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in zip((1, 2), saved, strict=True):
            os.dup2(original, fd)
            os.close(original)
        os.close(sink)


@contextmanager
def progress(folder: Folder, terminal: TextIO, as_json: bool) -> Iterator[Callable[[Run], None]]:
    """A live bar: rounds, sites, loss, seconds left. Yields what to call after each closed visit."""
    if as_json:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fedrounds.core.evaluate import LOSS

    loss = LOSS[folder.study.target.kind]
    label = loss.replace("_", "-")
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("rounds · {task.fields[sites]} sites · {task.fields[loss]} ·"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(file=terminal)) as bar:
        task = bar.add_task(
            folder.study.name,
            total=folder.operations.rounds,
            sites=len(folder.sites),
            loss="starting Prefect, MLflow, gate",
        )

        def on_visit(run: Run) -> None:
            value = run.last["metrics"].get(loss)
            said = "agreeing on statistics" if value is None else f"{label} {value:.4f}"
            bar.update(task, completed=run.state.round, total=run.target, sites=len(run.last["sites"]), loss=said)

        yield on_visit
