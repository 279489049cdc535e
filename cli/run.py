"""`fedrounds run`: checks first, then the flow, with a progress bar and a table at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedrounds.cli.study import enough, loaded, opened

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from fedrounds.tasks.clock import Clock
    from fedrounds.tasks.dask import Crew
    from fedrounds.tasks.folder import Folder, State
    from fedrounds.tasks.forked import Forked
    from fedrounds.tasks.prefect_server import PrefectServer
    from fedrounds.tasks.run import Run
    from fedrounds.tasks.ward import Ward


def run(
    directory: Path,
    data: Path | None,
    state: Path | None,
    more: int,
    fresh: bool,
    as_json: bool,
    accept_drift: bool = False,
    runner: str | None = None,
) -> int:
    """Bring the study to its rounds, or `more` further; with `accept_drift`, the sites' newest profile is what later ones are compared with.

    Args:
        runner: `dask`, or the address of a Dask scheduler, whose workers hold the rows; by default this process does.
    """
    if (directory / "coordinator.toml").is_file():
        from fedrounds.cli.coordinate import coordinate

        return coordinate(directory, more, fresh, as_json, accept_drift)
    from fedrounds.tasks.clock import Clock
    from fedrounds.tasks.folder import prepare

    clock = Clock()
    folder, place = opened(directory, data, state)
    if accept_drift:
        accept(place)
    if not fresh and not more and done(folder, place):
        return _say_done(folder, place, as_json)
    with crew_of(runner, folder) as crew:
        wards = crew.wards if crew else loaded(folder)
        compatible(folder, place, fresh)
        if fresh:
            unless_running(place)
        prepare(place, fresh)
        _carry_out(folder, place, wards, more, as_json, clock, crew)
    from fedrounds.cli.status import show

    return show(folder, place, as_json, timings=clock.spent())


@contextmanager
def crew_of(runner: str | None, folder: Folder) -> Iterator[Crew | None]:
    """The workers of a Dask cluster with every site's rows loaded there, None without a runner."""
    if runner is None:
        yield None
        return
    from fedrounds.tasks.dask import Crew

    with quiet(Path(os.devnull)):  # its worker processes take over what they start with
        crew = Crew(runner, folder)
    try:
        crew.load()
        enough(folder, crew.wards)
        yield crew
    finally:
        with quiet(Path(os.devnull)):
            crew.stop()


def done(folder: Folder, place: State) -> bool:
    """Whether the study is at its rounds, scored, and wholly in MLflow."""
    from fedrounds.ledger import Ledger

    if not place.begun:
        return False
    with Ledger.open(place.ledger) as ledger:
        lineage, newest, last = ledger.lineage(), ledger.progress(), ledger.progress(besides="profile")
        if lineage is None or newest is None or last is None or lineage.digest != folder.study.digest:
            return False
        closed = last.ask == "score" and last.round >= folder.operations.rounds
        written = not ledger.unprojected() and not ledger.unprojected_acts()
        return closed and ledger.noted("finished") == newest.visit and written


def accept(place: State) -> None:
    """Make the newest profile the reference. Raises StateError if there is none, or while another runner works on the study."""
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.drift import NOTHING, accept

    if not place.begun:
        raise NOTHING
    with Ledger.open(place.ledger) as ledger:
        accept(ledger)


def _say_done(folder: Folder, place: State, as_json: bool) -> int:
    from fedrounds.cli.status import show

    if not as_json:
        rounds = folder.operations.rounds
        print(f"Nothing to do: operations.toml asks for {rounds} rounds. `--more N` goes on, `--fresh` starts anew.")
    return show(folder, place, as_json)


def compatible(folder: Folder, place: State, fresh: bool) -> bool:
    """Refuse to go on, or to start a lineage of the same name, with another protocol or dictionary. Writes nothing.

    Returns whether the protocol is another one than that which ran, so that only a fresh start will do.
    """
    from fedrounds.core.errors import StudyError
    from fedrounds.ledger import Ledger

    if not place.begun:
        return False
    with Ledger.open(place.ledger) as ledger:
        if ledger.lineage() is None:
            return False
        before = ledger.study()
    old = [(feature.name, feature.type) for feature in before.features]
    new = [(feature.name, feature.type) for feature in folder.study.features]
    if before.target.column != folder.study.target.column or old != new:
        raise StudyError(
            f"expected the dictionary that '{before.name}' is registered with ({len(old)} features, target '{before.target.column}'),"
            f" found another one in study.toml: give the study a new `name`"
        )
    changed = before.digest != folder.study.digest
    if changed and not fresh:
        raise StudyError(
            f"expected study.toml as it ran (protocol {before.digest[:12]}), found {folder.study.digest[:12]}:"
            f" undo the change, or start a new lineage with --fresh"
        )
    return changed


def unless_running(place: State) -> None:
    """Raise StateError while another runner works on the study: its folder must not be set aside under its feet."""
    from fedrounds.ledger import Ledger

    if place.begun:
        with Ledger.open(place.ledger) as ledger:
            ledger.acquire()
            ledger.release()


def _carry_out(
    folder: Folder,
    place: State,
    wards: Mapping[str, Ward],
    more: int,
    as_json: bool,
    clock: Clock,
    crew: Crew | None = None,
) -> None:
    """Run the flow on a Prefect server: ours, or the one at PREFECT_API_URL."""
    from fedrounds.tasks.forked import alone
    from fedrounds.tasks.prefect_server import PrefectServer, settings

    theirs = os.environ.get("PREFECT_API_URL")
    forks = crew is None and alone()
    server = (
        None
        if theirs
        else PrefectServer(place.prefect_home, place.log, templates=place.mlruns / ".cache", begin=not forks)
    )
    try:
        with (
            surroundings(settings(place.prefect_home, theirs or server.api_url)),
            quiet(place.log) as terminal,
            forked(folder, place, wards, server, clock) if forks else nullcontext({}) as helpers,
            progress(folder, terminal, as_json) as on_visit,
        ):
            try:
                _flow(folder, place, wards, more, server, on_visit, clock, helpers, crew)
            finally:
                flush_prefect()
    finally:
        if server is not None:
            with clock("Prefect"):
                server.stop()


def _flow(
    folder: Folder,
    place: State,
    wards: Mapping[str, Ward],
    more: int,
    server: PrefectServer | None,
    on_visit: Callable[[Run], None],
    clock: Clock,
    helpers: Mapping[str, Forked],
    crew: Crew | None = None,
) -> None:
    from fedrounds.tasks.run import opened as opened_run

    with opened_run(folder, place, on_visit, wards, clock, crew=crew) as run, clock("Prefect"):
        run.forked.update(helpers)
        run.warm_up()
        import_prefect()
        from fedrounds.flows.study import carry

        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it counts aloud what it still has to send
        if server is not None:
            server.wait()
        asyncio.run(carry(run, more))
        if server is not None:
            server.drain(run.flow_run, run.tasks)


def import_prefect() -> None:
    """The flow, and what Prefect's client wants for its first call: better now than when the server is there."""
    from fedrounds.tasks.quick_settings import without_repeats
    from fedrounds.tasks.staying import staying

    with staying():
        without_repeats()
        import fastapi.encoders  # noqa: F401

        import fedrounds.flows.study  # noqa: F401


@contextmanager
def forked(
    folder: Folder, place: State, wards: Mapping[str, Ward], server: PrefectServer | None, clock: Clock
) -> Iterator[Mapping[str, Forked]]:
    """The run's helpers, and its server once Prefect is imported here: forks, which have less left to import than programs of their own."""
    from fedrounds.tasks.forked import alone
    from fedrounds.tasks.run import ahead

    helpers: Mapping[str, Forked] = {}
    try:
        with clock("Prefect"):
            helpers = ahead(folder, place, wards)
            import_prefect()
            if server is not None:
                server.begin(fork=alone())
        yield helpers
    finally:
        for helper in helpers.values():
            helper.kill()
            helper.wait()


def flush_prefect() -> None:
    """Let Prefect send what it still holds while its server is there; later it would complain on the terminal."""
    for module, worker in (("prefect.logging.handlers", "APILogWorker"), ("prefect.events.worker", "EventsWorker")):
        if module in sys.modules:
            getattr(sys.modules[module], worker).drain_all(timeout=2)


@contextmanager
def surroundings(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are as they were afterwards. A Prefect that was imported before goes by them too."""
    before, theirs = {name: os.environ.get(name) for name in settings}, "prefect.context" in sys.modules
    os.environ.update(settings)
    try:
        _heed(theirs)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _heed(theirs)


def _heed(imported: bool) -> None:
    """Let a Prefect that was imported read its settings again: it has those of the environment that it found then.

    One that came with the run itself is not asked: read outside the run, they would make a folder in the user's home.
    """
    if imported:
        sys.modules["prefect.context"].refresh_global_settings_context()


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """What libraries print goes to the study's log; yields the terminal (standard error), which only we write to."""
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", errors="replace")
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
    """A live bar on a terminal: rounds, sites, loss, seconds left. Yields what to call after each closed visit."""
    if as_json or not terminal.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    from fedrounds.core.evaluate import LOSS

    loss = LOSS[folder.study.target.kind]
    label = loss.replace("_", "-")
    with Progress(*_columns(), console=Console(file=terminal)) as bar:
        task = bar.add_task(folder.study.name, total=folder.operations.rounds, sites=len(folder.sites), loss="starting")

        def on_visit(run: Run) -> None:
            value = run.last["metrics"].get(loss)
            said = ("profile" if "profile" in run.last else "statistics") if value is None else f"{label} {value:.4f}"
            bar.update(task, completed=run.state.round, total=run.target, sites=len(run.last["sites"]), loss=said)

        yield on_visit


def _columns() -> Sequence[ProgressColumn]:
    """One line of an 80-column terminal, whatever the study's name."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return (
        TextColumn("[bold]{task.description}", table_column=Column(max_width=12, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=28, ratio=1)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("rounds · {task.fields[sites]} sites · {task.fields[loss]} ·", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
    )
