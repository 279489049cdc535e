"""An own Prefect server as a child process: an SQLite file in the study's home, the UI, and no trace on the terminal.

`PrefectServer` starts it at second 0 and does not wait, so its start overlaps with everything else; only the standard
library is imported here. The socket is bound before the child exists: the address is known at once, nobody can take
the port meanwhile, and a client that is early waits in the queue instead of being refused.

Guarantees:
    * the server never outlives its parent: at the end of its standard input it stops, within `GRACE_S` at the latest;
    * Ctrl-C reaches the parent alone; all the server says goes to its log;
    * the user's own Prefect profile, settings and database are neither read nor written.
"""

import contextlib
import gc
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrounds.core.errors import ServiceError
from fedrounds.tasks.ending import end

HOST = "127.0.0.1"
GRACE_S = 2.5  # from the end of the input to the end of the process
TERMINAL_STATES = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]
IDLE_SERVICES = (  # of use to deployments, schedules, automations, the event feed and concurrency limits, not to one run at a time
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "EVENT_PERSISTER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TRIGGERS",
)


def settings(home: Path, api_url: str | None) -> dict[str, str]:
    """Return the environment of a quiet, private Prefect; it must be set before Prefect is imported.

    Args:
        home: Prefect's home: never the user's `~/.prefect`.
        api_url: the server to talk to, if there is one already.
    """
    loopback = f"{HOST},localhost"
    proxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")  # httpx and websockets would ask the proxy
    direct = proxied if proxied and loopback in proxied else ",".join(filter(None, (proxied, loopback)))
    environment = {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PREFECT_CLIENT_MAX_RETRIES": "2",  # waits of 2, 4, 8… s: with the usual 5 a run takes minutes to see that its server died
        "PREFECT_HOME": str(Path(home).absolute()),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # In batches, else every task state is a transaction of its own. Whole seconds only: below 1 it is cut to 0,
        # and an idle server then burns a core.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    return environment if api_url is None else {**environment, "PREFECT_API_URL": api_url}


class PrefectServer:
    """A Prefect server of our own, started at once; `wait` before relying on it.

    Args:
        home: Prefect's home: the database and nothing else of value.
        log: where the server's output is appended.
        port: 0 takes a free one.
        ui: whether http://127.0.0.1:PORT/ shows the runs.
        services: whether schedules, automations, block types and their kin are served too; one run needs none of them.
        templates: a folder for an empty, migrated database: the first start leaves it there, later fresh homes copy it
            instead of running all of Prefect's migrations, which is most of a first start.
        environment: further settings of the server.
        begin: whether it starts at once; else its address is taken, and `begin` starts it.
    """

    def __init__(
        self,
        home: Path,
        log: Path,
        port: int = 0,
        ui: bool = True,
        services: bool = False,
        templates: Path | None = None,
        environment: Mapping[str, str] | None = None,
        begin: bool = True,
    ) -> None:
        self.home, self.log = Path(home).absolute(), Path(log).absolute()
        self.home.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._listening: socket.socket = _listen(port)
        self.port: int = self._listening.getsockname()[1]
        self._words = [] if templates is None else [str(Path(templates).absolute())]
        self._env = {**self._environment(ui, services), **(environment or {})}
        self._process: Any = None
        if begin:
            self.begin()

    def begin(self, fork: bool = False) -> None:
        """Start it.

        Args:
            fork: from this process, which has imported Prefect's client and has no second thread: half of the start is done then.
        """
        fd = self._listening.fileno()
        with self._listening:
            self._process = self._forked(fd) if fork else self._started(fd)
        self.pid = self._process.pid

    def _started(self, fd: int) -> Any:
        with self.log.open("ab") as log_file:
            return subprocess.Popen(
                [sys.executable, "-m", "fedrounds.tasks.prefect_server", str(fd), *self._words],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                env=self._env,
                cwd=self.home,  # Prefect reads .env, prefect.toml and pyproject.toml where it starts
                pass_fds=(fd,),
                start_new_session=True,
            )

    def _forked(self, fd: int) -> Any:
        from fedrounds.tasks.forked import Forked

        words = [str(fd), *self._words]
        return Forked(
            "fedrounds.tasks.prefect_server", words, self.log, self._env, answers=False, keep=[fd], cwd=self.home
        )

    def _environment(self, ui: bool, services: bool) -> dict[str, str]:
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        idle = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": str(services).lower() for name in IDLE_SERVICES}
        return {
            **theirs,
            **settings(self.home, None),
            **idle,
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_API_BLOCKS_REGISTER_ON_START": str(services).lower(),
            "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": str(services).lower(),
            "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": str(services).lower(),
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            "PREFECT_SERVER_UI_ENABLED": str(ui).lower(),
        }

    @property
    def api_url(self) -> str:
        """The value of PREFECT_API_URL; known before the server answers."""
        return f"http://{HOST}:{self.port}/api"

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.poll()

    def wait(self, timeout_s: float = 90) -> None:
        """Return when the server answers.

        Raises:
            ServiceError: it ended, or took longer than `timeout_s`.
        """
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            if (code := self._process.poll()) is not None:
                raise ServiceError(f"the Prefect server ended with exit code {code} at its start: see {self.log}")
            with contextlib.suppress(OSError, http.client.HTTPException):  # a dying server resets the connection
                if self._ask("GET", "/api/health", None, left) is True:
                    return
            time.sleep(0.05)
        raise ServiceError(f"the Prefect server did not answer within {timeout_s:g} s: see {self.log}")

    def drain(self, flow_run_id: str, expected_tasks: int, timeout_s: float = 15) -> bool:
        """Wait until the flow run's finished task runs are stored; False if that took too long, which is no error.

        Task states travel as events and are stored later: a server stopped before that loses them, with tracebacks.
        """
        query = {
            "flow_runs": {"id": {"any_": [flow_run_id]}},
            "task_runs": {"state": {"type": {"any_": TERMINAL_STATES}}},
        }
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0 and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                stored = self._ask("POST", "/api/task_runs/count", query, left)
                if isinstance(stored, int) and stored >= expected_tasks:
                    return True
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        """End the server: it closes its database and leaves, or is killed. A second call does nothing."""
        if self._process is None:
            self._listening.close()
        else:
            end(self._process, GRACE_S + 1)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> Any:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)  # never through a proxy
        with contextlib.closing(connection):
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return json.loads(response.read()) if response.status == 200 else None


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise ServiceError(f"port {port} of {HOST} cannot be used by the Prefect server ({error.strerror})") from None
    listening.listen(128)
    return listening


# The child process.


def main() -> None:
    """Serve Prefect on the inherited socket until the standard input ends: `SOCKET_FD [TEMPLATES]`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending = _Ending()
    threading.Thread(target=ending.watch, daemon=True).start()
    gc.disable()  # a fifth of the import's CPU time goes into collecting classes that stay
    database = Path(os.environ["PREFECT_HOME"], "prefect.db")
    template = Path(sys.argv[2], f"prefect-{importlib.metadata.version('prefect')}.db") if sys.argv[2:] else None
    if template is not None and template.exists() and not database.exists():
        with contextlib.suppress(OSError, sqlite3.Error):  # damaged: Prefect then runs its migrations itself
            _copy(template, database)
            if _migrated(database):  # by this very release: there is nothing to look for
                os.environ["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "false"

    from fedrounds.tasks.quick_settings import without_repeats
    from fedrounds.tasks.routes import as_asked

    without_repeats()
    as_asked()
    if "prefect.context" in sys.modules:  # imported by the process that this one was forked from, for a client
        sys.modules["prefect.context"].refresh_global_settings_context()

    import asyncio

    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.server.database import provide_database_interface

    if template is not None and not template.exists() and not database.exists():
        asyncio.run(provide_database_interface().create_db())
        with contextlib.suppress(OSError, sqlite3.Error):  # a read-only folder is no reason not to serve
            template.parent.mkdir(parents=True, exist_ok=True)
            _copy(database, template)
    _store_soon()
    config = uvicorn.Config(
        create_app(),  # `final` collects garbage, which takes .2 s, for the sake of routes that FastAPI no longer copies
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=1,
        ws_per_message_deflate=False,  # a thousand small events over loopback: packing them costs both ends more than sending them
    )
    ending.server = server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # it would answer Ctrl-C
    asyncio.run(_serve(server, socket.socket(fileno=int(sys.argv[1]))))
    sys.stderr.flush()
    os._exit(0 if server.started else 1)


def _store_soon() -> None:
    """Store what is left of a batch of task states after a fifth of a second: Prefect's least is one, which every run would wait at its end."""
    from prefect.server.services import task_run_recorder as recorder

    consumer = recorder.consumer

    def hasty(write_batch_size: int, flush_every: int, **options: Any) -> Any:  # noqa: ARG001
        return consumer(write_batch_size, 0.2, **options)  # type: ignore[arg-type]

    recorder.consumer = hasty  # type: ignore[assignment]


async def _serve(server: Any, listening: socket.socket) -> None:
    import asyncio

    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.02)
    gc.freeze()
    gc.enable()
    await serving


class _Ending:
    """Ends the process after its standard input does: in order if the server is up, and in any case soon."""

    server: Any = None

    def watch(self) -> None:
        while os.read(0, 4096):
            pass
        if self.server is not None and self.server.started:
            self.server.should_exit = True
            time.sleep(GRACE_S)
        os._exit(0)


def _migrated(database: Path) -> bool:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return bool(connection.execute("select count(*) from alembic_version").fetchone()[0])


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(part)) as new:
        old.backup(new)
    part.replace(target)


if __name__ == "__main__":
    main()
