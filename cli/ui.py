"""`fedrounds ui`: the MLflow UI and the Prefect UI of a study, on this machine alone.

`python -m fedrounds.cli.ui SOCKET_FD EXPERIMENT RUN METRIC…` is MLflow's server as one quiet process that ends when its standard input does:
`mlflow server` takes four times as long to start: it adds nine processes, most for jobs that no study has.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedrounds.cli.study import opened

if TYPE_CHECKING:
    from fedrounds.core.study import Study
    from fedrounds.tasks.folder import State

HOST = "127.0.0.1"
GRACE_S = 3
TRAINING = "?workflowType=machine_learning"  # MLflow has two faces; the other one is about language models


def ui(directory: Path, state: Path | None, mlflow_port: int, prefect_port: int, as_json: bool) -> int:
    """Serve both until Ctrl-C; prints their addresses when they answer."""
    from fedrounds.core.errors import StateError
    from fedrounds.tasks.prefect_server import PrefectServer

    folder, place = opened(directory, None, state)
    if not place.begun:
        raise StateError(
            f"expected a study that has run, found no state at {place.own}: `fedrounds run {directory}` first"
        )
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    log = place.own / "ui.log"
    port, templates = prefect_port if _free(prefect_port) else 0, place.mlruns / ".cache"
    prefect = PrefectServer(place.prefect_home, log, port, ui=True, templates=templates)
    mlflow = None
    try:
        mlflow = MlflowServer(place, folder.study, log, mlflow_port)
        prefect.wait()
        mlflow.wait()
        addresses = _pages(mlflow.url, place, folder.study.name) | {
            "prefect": prefect.api_url.removesuffix("/api") + "/runs"
        }
        if as_json:
            print(json.dumps({"study": folder.study.name, **addresses}), flush=True)
        else:
            _show(addresses)
        mlflow.process.wait()
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave a server behind
        if mlflow is not None:
            mlflow.stop()
        prefect.stop()


def _show(addresses: dict[str, str]) -> None:
    says = {
        "mlflow": ("MLflow", "every round and every site as a run"),
        "charts": ("  charts", "loss and metrics, a point a round"),
        "model": ("  model", "its versions; `champion` is the one to use"),
        "prefect": ("Prefect", "flow runs, their tasks, gate and result tables"),
    }
    for key, address in addresses.items():
        name, what = says[key]
        print(f"{name:<9}{address}\n         {what}")
    print("Ctrl-C ends both.", flush=True)


def _pages(url: str, place: State, study: str) -> dict[str, str]:
    """Where in MLflow to look: the study's runs, the newest lineage's charts, the registered model."""
    experiment = _experiment(place, study)
    if experiment is None:  # its first round is not there yet
        return {"mlflow": f"{url}/#/experiments{TRAINING}"}
    pages = {"mlflow": f"{url}/#/experiments/{experiment}/runs{TRAINING}"}
    if (lineage := _lineage(place, experiment)) is not None:
        pages["charts"] = f"{url}/#/experiments/{experiment}/runs/{lineage}/model-metrics{TRAINING}"
    return pages | {"model": f"{url}/#/models/{study}{TRAINING}"}


def _experiment(place: State, study: str) -> int | None:
    return _ask(place, "SELECT experiment_id FROM experiments WHERE name = ?", study)


def _lineage(place: State, experiment: int) -> str | None:
    return _ask(
        place,
        "SELECT r.run_uuid FROM runs r JOIN tags t USING (run_uuid) WHERE t.key = 'fedrounds.about' AND t.value = 'lineage'"
        " AND r.experiment_id = ? AND r.lifecycle_stage = 'active' ORDER BY r.start_time DESC",
        experiment,
    )


def _ask(place: State, query: str, *values: Any) -> Any:
    """The first value of the first row; a look at MLflow's tables costs a millisecond, its library seconds."""
    try:
        connection = sqlite3.connect(f"file:{place.mlruns / 'mlflow.db'}?mode=ro", uri=True)
        try:
            return (connection.execute(query, values).fetchone() or [None])[0]
        finally:
            connection.close()
    except sqlite3.Error:
        return None


class MlflowServer:
    """MLflow's server and UI as a child that never outlives its parent; the address is known before it answers."""

    def __init__(self, place: State, study: Study, log: Path, port: int) -> None:
        from fedrounds.core.evaluate import HEADLINE, LOSS

        self.log = log
        quiet = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_BACKEND_STORE_URI": place.tracking_uri,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(place.mlruns / "artifacts"),
        }
        experiment = _experiment(place, study.name) or 0
        shown = [
            str(experiment),
            _lineage(place, experiment) or "",
            LOSS[study.target.kind],
            HEADLINE[study.target.kind],
        ]
        with socket.socket() as listening, log.open("ab") as sink:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((HOST, port))
            except OSError:  # taken, or not ours to take
                listening.bind((HOST, 0))
            listening.listen(128)
            self.url = f"http://{HOST}:{listening.getsockname()[1]}"
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedrounds.cli.ui", str(listening.fileno()), *shown],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **quiet},
                pass_fds=(listening.fileno(),),
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 120) -> None:
        """Return when it answers.

        Raises:
            ServiceError: it ended, or took longer than `timeout_s`.
        """
        from fedrounds.core.errors import ServiceError

        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with direct.open(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.1)
        raise ServiceError(
            f"expected the MLflow UI to answer within {timeout_s:g} s at {self.url}, found it did not: see {self.log}"
        )

    def stop(self) -> None:
        """End it: by the end of its input, else by force."""
        from fedrounds.tasks.ending import end

        end(self.process, GRACE_S + 1)


def _as_ctrl_c(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


# The child process.


def main() -> None:
    """Serve MLflow on the inherited socket until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, daemon=True).start()
    from mlflow.server import constants

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ["MLFLOW_BACKEND_STORE_URI"]
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    import uvicorn
    from mlflow.server.fastapi_app import app

    config = uvicorn.Config(_Calm(app, *sys.argv[2:4], sys.argv[4:]), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(0)


class _Calm:
    """MLflow's app, opened where a study is: model training, rounds unfolded, loss and metric as columns, no assistant.

    The assistant is a chat with a language model, and opens by itself on a loopback address; no text of a hospital goes there.
    What a user has chosen once stays.
    """

    def __init__(self, app: Any, experiment: str, lineage: str, metrics: list[str]) -> None:
        from mlflow.server import app as flask

        columns = [f"metrics.`{name}`" for name in metrics]
        first = {
            "mlflow.workflowType_v1": "machine_learning",
            "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
            f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState': {
                "selectedColumns": columns,
                "runsExpanded": {lineage: True},
            },
        }
        chosen = json.dumps({key: json.dumps(value) for key, value in first.items()}).replace("<", "\\u003c")
        script = f"for (const [k, v] of Object.entries({chosen})) if (localStorage.getItem(k) === null) localStorage.setItem(k, v)"
        page = Path(str(flask.static_folder), "index.html").read_text()
        self.page = page.replace(
            "<head>", f"<head><script>{script}</script><style>[data-assistant-ui]{{display:none!important}}</style>", 1
        ).encode()
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/":
            await _send(send, 200, self.page)
        elif scope["type"] == "http" and "/mlflow/assistant" in scope["path"]:
            await _send(send, 404, b"")
        else:
            await self.app(scope, receive, send)


async def _send(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    headers += [(b"x-frame-options", b"SAMEORIGIN"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    main()
