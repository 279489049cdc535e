"""`fedrounds ui`: the MLflow UI and the Prefect UI of a study, on this machine alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from fedrounds.cli.study import opened


def ui(directory: Path, state: Path | None, mlflow_port: int, prefect_port: int, as_json: bool) -> int:
    """Serve both until Ctrl-C; prints their addresses when they answer."""
    from fedrounds.core.errors import StateError
    from fedrounds.tasks.prefect_server import PrefectServer

    folder, place = opened(directory, None, state)
    if not place.ledger.exists():
        raise StateError(
            f"expected a study that has run, found no state at {place.own}: `fedrounds run {directory}` first"
        )
    log = place.own / "ui.log"
    port = mlflow_port if mlflow_port and _free(mlflow_port) else _any_port()
    prefect = PrefectServer(
        place.prefect_home, log, prefect_port if prefect_port and _free(prefect_port) else 0, ui=True
    )
    mlflow = _mlflow(place.tracking_uri, place.mlruns / "artifacts", port, log)
    try:
        prefect.wait()
        mlflow_url = f"http://127.0.0.1:{port}"
        _wait(mlflow_url, mlflow, log)
        addresses = {"mlflow": f"{mlflow_url}/#/experiments", "prefect": prefect.api_url.removesuffix("/api") + "/runs"}
        if as_json:
            print(json.dumps({"study": folder.study.name, **addresses}), flush=True)
        else:
            print(f"MLflow   {addresses['mlflow']}  (experiment and registered model: {folder.study.name})")
            print(f"Prefect  {addresses['prefect']}  (flow runs, tasks, gate tables)\nCtrl-C ends both.", flush=True)
        while mlflow.poll() is None:
            time.sleep(0.2)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        mlflow.terminate()
        prefect.stop()
        mlflow.wait()


def _mlflow(store: str, artifacts: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store,
        "--default-artifact-root",
        str(artifacts),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "GIT_PYTHON_REFRESH": "quiet"}
    with log.open("ab") as sink:
        return subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            stdout=sink,
            stderr=sink,
            env={**os.environ, **quiet},
            start_new_session=True,
        )


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120) -> None:
    from fedrounds.core.errors import ServiceError

    until = time.monotonic() + timeout_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310 (our own server)
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise ServiceError(f"expected the MLflow UI to answer within {timeout_s:g} s at {url}, found it did not: see {log}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
