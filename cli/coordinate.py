"""`fedrounds run` in a coordinator's folder: the same flow, carried by mail, with the patience that servers on other machines need."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedrounds.cli import run as local

if TYPE_CHECKING:
    from fedrounds.tasks.clock import Clock
    from fedrounds.tasks.correspondence import Correspondence
    from fedrounds.tasks.federation import Federation

T = TypeVar("T")
FIRST_S, LONGEST_S = 0.5, 15.0  # between two tries while something is away
LONG_S = 20.0  # what worked for so long was there


def coordinate(directory: Path, more: int, fresh: bool, as_json: bool, accept_drift: bool) -> int:
    """Bring the study to its rounds, or `more` further, by its hospitals' agents."""
    from fedrounds.cli.status import show
    from fedrounds.core.errors import StudyError
    from fedrounds.tasks.clock import Clock
    from fedrounds.tasks.federation import read
    from fedrounds.tasks.folder import prepare

    if fresh:
        raise StudyError(
            "expected a study that its hospitals know, found --fresh: another `seed` in study.toml is another protocol and starts anew"
        )
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    clock, found = Clock(), read(directory)
    if accept_drift:
        local.accept(found.place)
    patience = Patience(found.folder.operations.federation.patience_s)
    if not more and patience(lambda: local.done(found.folder, found.place)):
        return show(found.folder, found.place, as_json)
    patience(lambda: local.compatible(found.folder, found.place, fresh))
    prepare(found.place, fresh=False)
    _carry_out(found, more, as_json, clock, patience)
    return show(found.folder, found.place, as_json, timings=clock.spent())


class Patience:
    """Tries again, ever less often, while a database or a server is away; after `seconds` of nothing else it gives up.

    Args:
        seconds: how long it waits in all for one thing.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._said = seconds, ""
        self._terminal = os.fdopen(os.dup(2), "w", errors="replace")

    def __call__(self, act: Callable[[], T], before_again: Callable[[], Any] = lambda: None) -> T:
        """What `act` gives.

        Args:
            before_again: done before each further try; where it fails as well, that counts as the try.

        Raises:
            ServiceError: it was away for too long.
        """
        from fedrounds.core.errors import ServiceError

        until, pause, again = time.monotonic() + self.seconds, FIRST_S, False
        while True:
            began = time.monotonic()
            try:
                if again:
                    before_again()
                found = act()
            except ServiceError as error:
                now = time.monotonic()
                if now - began > LONG_S:  # it worked for a while: this is another absence
                    until, pause = now + self.seconds, FIRST_S
                if now + pause > until:
                    raise
                self._say(f"{error} (it waits, up to {self.seconds:.0f} s, and goes on)")
                time.sleep(pause)
                pause, again = min(LONGEST_S, 2 * pause), True
            else:
                self._said = ""
                return found

    def _say(self, line: str) -> None:
        """Once for each thing that is away, however often it is tried."""
        if line != self._said:
            print(f"fedrounds: {line}", file=self._terminal, flush=True)
        self._said = line


def _carry_out(found: Federation, more: int, as_json: bool, clock: Clock, patience: Patience) -> None:
    """Run the flow on the coordinator's Prefect server, or on one of our own where none answers."""
    from fedrounds.tasks.prefect_server import PrefectServer, settings

    folder, place = found.folder, found.place
    with ExitStack() as stack:
        theirs = found.prefect()
        if theirs is None:
            server = PrefectServer(place.prefect_home, place.log, templates=place.mlruns / ".cache")
            stack.callback(server.stop)
            theirs = {"PREFECT_API_URL": server.api_url}
        else:
            server = None
        stack.enter_context(local.surroundings(settings(place.prefect_home, None) | theirs))
        terminal = stack.enter_context(local.quiet(place.log))
        on_visit = stack.enter_context(local.progress(folder, terminal, as_json))
        stack.callback(local.flush_prefect)
        run = stack.enter_context(patience(lambda: found.opened(on_visit, clock)))
        _flow(run, more, clock, patience, server)


def _flow(run: Correspondence, more: int, clock: Clock, patience: Patience, server: Any) -> None:
    with clock("Prefect"):
        run.warm_up()
        import fastapi.encoders  # noqa: F401  Prefect's client wants it for its first call

        from fedrounds.flows.study import carry

        if server is not None:
            server.wait()
        patience(lambda: asyncio.run(carry(run, more)), run.resume)
        if server is not None:
            server.drain(run.flow_run, run.tasks)
    sys.stdout.flush()
