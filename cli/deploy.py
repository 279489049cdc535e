"""`fedrounds deploy`: the study on a Prefect server, with its calendar; `--serve` brings a server and a worker of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from fedrounds.cli.study import opened

if TYPE_CHECKING:
    from fedrounds.tasks.deployment import Deployed
    from fedrounds.tasks.folder import Folder, State

What = Literal["deploy", "pause", "resume", "remove", "serve"]


def deploy(directory: Path, data: Path | None, state: Path | None, what: What, port: int, as_json: bool) -> int:
    """Create, update, pause, resume or take away the deployment on the server at PREFECT_API_URL, or serve it here."""
    from fedrounds.cli.run import surroundings
    from fedrounds.core.errors import ServiceError
    from fedrounds.tasks.folder import prepare
    from fedrounds.tasks.prefect_server import settings

    folder, place = opened(directory, data, state)
    if what == "serve":
        return _serve(folder, place, port, as_json)
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ServiceError(
            "expected a Prefect server's address in PREFECT_API_URL, found none: `prefect server start` runs one"
            f" (PREFECT_API_URL=http://127.0.0.1:4200/api), or `fedrounds deploy {directory} --serve` brings its own"
        )
    prepare(place, fresh=False)
    with surroundings(settings(place.prefect_home, url)):
        if what == "remove":
            return _say_removed(folder, as_json)
        _say(_deployed(folder, place, {"pause": True, "resume": False}.get(what)), url, as_json)
    if not as_json:
        print("A worker carries it out: `prefect worker start --pool hospitals` where the study's folder can be seen.")
    return 0


def _deployed(folder: Folder, place: State, paused: bool | None, command: str | None = None) -> Deployed:
    """`command` says that the worker is ours, and not started yet."""
    from fedrounds.tasks.deployment import BEGUN, RUNNING, deploy

    dead = () if _at_work(place) else BEGUN if command else RUNNING
    with _server_errors():
        return asyncio.run(deploy(folder, place, paused, command, dead))


def _at_work(place: State) -> bool:
    from fedrounds.cli.run import unless_running
    from fedrounds.core.errors import StudyBusy

    try:
        unless_running(place)
    except StudyBusy:
        return True
    return False


def _server_errors():
    """Prefect's client speaks of its server in many ways; people hear one line."""
    from contextlib import contextmanager

    from httpx import HTTPError
    from prefect.exceptions import PrefectException

    from fedrounds.core.errors import ServiceError

    @contextmanager
    def told():
        try:
            yield
        except (HTTPError, PrefectException, RuntimeError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ServiceError(
                f"expected the Prefect server at {os.environ['PREFECT_API_URL']} to take the deployment, found: {first}:"
                " see whether it runs, and is of Prefect 3"
            ) from None

    return told()


def _say(done: Deployed, url: str, as_json: bool) -> None:
    ui = url.removesuffix("/api")
    page, ticks = f"{ui}/deployments/deployment/{done.id}", f"{ui}/runs?deployment={done.id}"
    if as_json:
        from fedrounds.tasks.deployment import dumped

        print(json.dumps({**dumped(done), "page": page, "ticks": ticks}, ensure_ascii=False), flush=True)
        return
    verb = "created" if done.created else "brought up to date"
    print(f"{done.name} {verb}: {done.calendar}; {'paused' if done.paused else f'next tick {done.next}'}")
    told = ", ".join(done.notifications) or "nobody (`notify` of operations.toml says who)"
    print(f"  hears when something is wrong: {told}\n  its calendar: {page}\n  every tick: {ticks}", flush=True)


def _say_removed(folder: Folder, as_json: bool) -> int:
    from fedrounds.tasks.deployment import FLOW, remove

    with _server_errors():
        there = asyncio.run(remove(folder))
    name = f"{FLOW}/{folder.study.name}"
    if as_json:
        print(json.dumps({"name": name, "removed": there}))
    else:
        print(f"{name} removed: models and ledger stay" if there else f"{name} was not there: nothing to remove")
    return 0


def _serve(folder: Folder, place: State, port: int, as_json: bool) -> int:
    """The workspace's own server and worker, in the foreground, until Ctrl-C."""
    from fedrounds.cli.run import surroundings
    from fedrounds.core.errors import ServiceError
    from fedrounds.tasks.deployment import POOL
    from fedrounds.tasks.folder import prepare
    from fedrounds.tasks.prefect_server import settings
    from fedrounds.tasks.serve import Served

    prepare(place, fresh=False)
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    served = Served(place.mlruns, port)
    try:
        served.server.wait()
        with surroundings({**settings(served.home, served.api_url), **served.secrets}):
            _say(_deployed(folder, place, None, served.command), served.api_url, as_json)
        served.work(POOL)
        if not as_json:
            print(f"Log in with {served.password}\nThe schedule runs until Ctrl-C.", flush=True)
            print(f"What its rounds come to: `fedrounds status {folder.path}` in another terminal", flush=True)
        while (ended := served.ended()) is None:
            time.sleep(0.5)
        raise ServiceError(f"{ended}: see {served.log}; start again, the ledger has what was done")
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave a server behind
        served.stop()


def _as_ctrl_c(*_: object) -> NoReturn:
    raise KeyboardInterrupt
