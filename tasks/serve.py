"""A workspace's own Prefect server and worker for schedules: an SQLite file in the state folder, a UI, a password.

The password matters: a process worker runs what any deployment of its pool says, so whoever may talk to the server may run programs as the
worker's user. On loopback that would be every user of the machine.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path

from fedrounds.core.errors import StateError
from fedrounds.tasks.locked import locked
from fedrounds.tasks.prefect_server import PrefectServer, settings
from fedrounds.tasks.worker import Worker

LATE_AFTER_S = 120  # a tick that nobody started by then is missed, and is told
POLL_S = 5  # how often the worker asks for ticks that are due
OURS = {  # settings of the server beyond those of a single run's
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",  # how soon a tick that had to wait for another asks again
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": str(LATE_AFTER_S),
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",  # survives a restart
}


class Served:
    """Starts the server at once; `work` starts the worker. `stop` ends both, and they end when this process does."""

    def __init__(self, mlruns: Path, port: int = 0, ours: dict[str, str] | None = None) -> None:
        self.home, self.log = mlruns / ".prefect", mlruns / ".prefect" / "serve.log"
        self.home.mkdir(parents=True, exist_ok=True)
        self._alone = locked(
            self.home / "lock",
            f"expected to serve the workspace {self.home.parent}, found another process that does: deploy to its server"
            " (docs/schedules.md), or end it",
        )
        self.password = _password(self.home / "password")
        self.secrets = {"PREFECT_API_AUTH_STRING": self.password}
        more = {**OURS, **(ours or {}), "PREFECT_SERVER_API_AUTH_STRING": self.password, **self.secrets}
        self.server = PrefectServer(
            self.home, self.log, port, services=True, templates=mlruns / ".cache", environment=more
        )
        self.worker: Worker | None = None

    @property
    def command(self) -> str:
        """How the worker starts a tick."""
        return f"{shlex.quote(sys.executable)} -m prefect.engine"

    @property
    def api_url(self) -> str:
        """The value of PREFECT_API_URL."""
        return self.server.api_url

    def work(self, pool: str, poll_s: int = POLL_S) -> None:
        """Start the worker."""
        environment = {
            **settings(self.home, self.api_url),
            **self.secrets,
            "PREFECT_WORKER_QUERY_SECONDS": str(poll_s),
        }
        self.worker = Worker(pool, environment, self.log)

    def ended(self) -> str | None:
        """Which of the two has ended by itself, in words; None while both live."""
        if (code := self.server.poll()) is not None:
            return f"the Prefect server ended with exit code {code}"
        if self.worker is not None and (code := self.worker.poll()) is not None:
            return f"the worker ended with exit code {code}"
        return None

    def stop(self) -> None:
        """End both: the worker first, so that it can say what became of a running tick."""
        if self.worker is not None:
            self.worker.stop()
        self.server.stop()
        self._alone.close()


def _password(file: Path) -> str:
    """The workspace's, made once: `fedrounds:…`, readable by its owner alone."""
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(f"fedrounds:{secrets.token_urlsafe(18)}")
    except FileExistsError:
        pass
    except OSError as error:
        raise StateError(
            f"expected to keep a password at {file}, found: {error.strerror}: check the folder's rights"
        ) from None
    return file.read_text()
