"""A coordinator's MLflow server as a child: basic-auth, artifacts served, one process on a socket of its parent's.

It is what `mlflow server --app-name basic-auth --serve-artifacts --workers 1` serves, less what that lets every user do (`_close`), and less
the processes around it: that starts a program that starts a program, and a killed one leaves the other with the port. Here the parent keeps
the socket: while the server is away and comes back, who asks waits in its queue. Passwords come by the environment, not by the command line,
which every user of a machine sees.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from fedrounds.tasks.ending import end

HOST = "127.0.0.1"
GRACE_S = 5.0
QUIET = {
    "DO_NOT_TRACK": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


class MlflowServer:
    """The server, started at once.

    Args:
        listening: a bound socket that the caller keeps.
        database: the tracking store's URL.
        artifacts: where artifacts are kept: a folder, or a URL.
        environment: further settings, secrets among them.
    """

    def __init__(
        self,
        listening: socket.socket,
        database: str,
        artifacts: str,
        home: Path,
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._address = listening.getsockname()
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
        own = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_ARTIFACTS_DESTINATION": artifacts}
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedrounds.tasks.mlflow_server", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**theirs, **QUIET, **own, **environment},
                cwd=home,
                pass_fds=(listening.fileno(),),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.poll()

    def answers(self) -> bool:
        """Whether it does, within two seconds."""
        connection = http.client.HTTPConnection(*self._address, timeout=2)  # never through a proxy
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def stop(self) -> None:
        """End it: by the end of its input, else by force. A second call does nothing."""
        end(self._process, GRACE_S + 1)


# The child process.


def make_store(file: Path, scratch: Path) -> None:
    """Make MLflow's database if there is none: in `scratch` first, so that a process killed amid the migrations leaves no half of one."""
    if file.exists():
        return
    from mlflow import MlflowClient

    for left in (scratch, Path(f"{scratch}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{scratch}").search_experiments()
    try:
        os.link(scratch, file)
        scratch.unlink()
    except FileExistsError:  # another study of this workspace was quicker
        scratch.unlink()
    except OSError:  # a file system without links
        scratch.replace(file)


def main() -> None:
    """Serve on the inherited socket until the standard input ends: `SOCKET_FD`."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes our input
    ending = threading.Event()
    threading.Thread(target=_end_with_input, args=(ending,), daemon=True).start()
    database, artifacts = os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    from mlflow.server import constants

    os.environ.update(
        {
            constants.BACKEND_STORE_URI_ENV_VAR: database,
            constants.REGISTRY_STORE_URI_ENV_VAR: database,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            "_MLFLOW_SGI_NAME": "uvicorn",  # else MLflow builds an app of another kind
        }
    )
    import uvicorn
    from mlflow.server.auth import create_app
    from mlflow.server.handlers import initialize_backend_stores

    _close()
    initialize_backend_stores(database, database, "mlflow-artifacts:/")
    config = uvicorn.Config(create_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # it would answer Ctrl-C
    threading.Thread(target=_tell, args=(ending, server), daemon=True).start()
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    os._exit(0 if server.started else 1)


def _close() -> None:
    """Leave to administrators what MLflow lets every user do: see who the users are, make experiments and registered models."""
    from mlflow.server import auth

    open_to_all = {
        auth.validate_can_list_users,
        auth.validate_can_create_experiment,
        auth.validate_can_create_registered_model,
    }
    doors = auth.BEFORE_REQUEST_VALIDATORS
    doors.update({door: auth.sender_is_admin for door, asks in doors.items() if asks in open_to_all})


def _end_with_input(ending: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ending.set()
    time.sleep(GRACE_S)
    os._exit(0)


def _tell(ending: threading.Event, server: object) -> None:
    ending.wait()
    server.should_exit = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
