"""A run needs no network: in a namespace that has loopback alone it passes, and nothing even tries to reach further."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from fedrounds.cli.init import init
from fedrounds.ledger import Ledger

HOOK = """
# Every process of a run imports this first: it notes its name, and whom it tries to reach beyond loopback.
import os, sys

def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)).replace("\\n", " ") + "\\n")

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "127."  # a path: a socket of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0] or "localhost"
    elif event == "fedrounds.forked":
        return note("STARTED", *arguments)
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if not host.startswith("127.") and host not in ("::1", "localhost", "0.0.0.0", "::", ""):
        note("REACHED", event, host, *sys.orig_argv)

note("STARTED", *sys.orig_argv)
sys.addaudithook(hook)
"""
NAMESPACE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
IN_IT = [*NAMESPACE, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture
def offline(tmp_path):
    """Runs a program without a network; gives what it printed and what the hook noted."""
    if (
        not shutil.which("unshare")
        or not shutil.which("ip")
        or subprocess.run([*IN_IT, "true"], capture_output=True).returncode
    ):
        pytest.fail(
            "no network namespace can be made here: apt-get install util-linux iproute2, and run as root or allow user namespaces"
        )
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    notes = tmp_path / "notes"
    mine = {"PYTHONPATH": str(tmp_path / "hook"), "NOTES": str(notes), "HOME": str(tmp_path)}
    told = ("DO_NOT_TRACK", "MLFLOW_", "PREFECT_", "GX_", "PYTHON", "HOME")  # telemetry must be off by itself
    environment = {key: value for key, value in os.environ.items() if not key.startswith(told)} | mine

    def run(*words: object) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        program = [*IN_IT, sys.executable, *map(str, words)]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=180)
        return done, notes.read_text().splitlines()

    return run


def test_the_hook_and_the_namespace_work(offline):
    program = "import socket; socket.create_server(('127.0.0.1', 0)); socket.create_connection(('192.0.2.1', 80), 2)"
    done, notes = offline("-c", program)
    assert "Network is unreachable" in done.stderr
    assert any(note.startswith("REACHED socket.connect 192.0.2.1") for note in notes)


def test_a_run_without_a_network_passes_and_tries_to_reach_nobody(offline, toy_study, tmp_path):
    folder = tmp_path / "toy"
    init(folder, as_json=True)
    shutil.copy(toy_study.folder / "operations.toml", folder)
    shutil.copytree(toy_study.folder / "mlruns" / ".cache", folder / "mlruns" / ".cache")
    done, notes = offline("-m", "fedrounds.cli.main", "run", folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [note for note in notes if note.startswith("REACHED")] == []
    processes = " ".join(notes)
    for module in (
        "fedrounds.cli.main",
        "fedrounds.tasks.gate",
        "fedrounds.tasks.track",
        "fedrounds.tasks.prefect_server",
    ):
        assert module in processes
    with Ledger.open(toy_study.state / "ledger.db") as ledger:
        assert json.loads(done.stdout)["model_digest"] == ledger.progress().model
    assert not (tmp_path / ".prefect").exists()  # the user's own Prefect is left alone
