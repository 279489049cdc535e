"""The own Prefect server: it answers, stores what ran, shows the UI, and never outlives its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import warmed

from fedrounds.core.errors import ServiceError
from fedrounds.tasks.prefect_server import PrefectServer, settings

FLOW = """
import asyncio, logging
from prefect import flow, task

logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # at exit it warns that it still sends, then sends

@task
async def double(n):
    return 2 * n

@task(persist_result=True)
async def keep(n):
    return n

@flow
async def three():
    from prefect.runtime import flow_run
    assert [await double(1), await double(2), await keep(3)] == [2, 4, 3]
    return flow_run.id

print(asyncio.run(three()))
"""


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def forked():
    """Servers that are forked, in a test whose subject is not how they start."""
    warmed.quick(os.environ[warmed.ADDRESS], helpers=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory, templates):
    """A server started in a fresh home, with all of Prefect's migrations."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as user:  # what the user set for himself must not reach our server
        user.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
        user.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
        user.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        server = PrefectServer(folder / "prefect", folder / "server.log", templates=templates)
        server.wait()
    yield server
    server.stop()


def get(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers={"Accept": "text/html"}), timeout=10) as response:
        return response.read()


def gone(pid: int, within_s: float) -> bool:
    """Whether the process leaves in time; a zombie that nobody reaps in this container has left."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_the_server_answers_and_shows_its_ui(server):
    assert get(f"{server.api_url}/health") == b"true"
    assert b"<title>Prefect" in get(f"http://127.0.0.1:{server.port}/")
    assert f"127.0.0.1:{server.port}/api".encode() in get(f"http://127.0.0.1:{server.port}/ui-settings")
    assert (server.home / "prefect.db").exists()


def test_a_flow_of_three_tasks_leaves_three_stored_task_runs(server, tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    environment = {**os.environ, **settings(tmp_path / "home", server.api_url)}
    ran = subprocess.run(
        [sys.executable, tmp_path / "flow.py"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    flow_run_id = ran.stdout.strip()
    assert server.drain(flow_run_id, 3) is True
    assert server.drain(flow_run_id, 4, timeout_s=0.3) is False
    assert (
        server._ask("POST", "/api/task_runs/count", {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}, 5) == 3
    )


def test_a_fresh_home_takes_the_template_and_a_stopped_server_leaves_a_clean_log(
    server, templates, tmp_path, capfd, forked
):
    assert [file.suffix for file in templates.iterdir()] == [".db"]
    second = PrefectServer(tmp_path / "home", tmp_path / "log", ui=False, templates=templates)
    second.wait()
    second.stop()
    second.stop()
    assert gone(second.pid, 0.5)
    assert (tmp_path / "log").read_text() == ""
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ServiceError, match="exit code 0 at its start"):
        second.wait()


def test_a_server_that_dies_is_reported_with_its_log(tmp_path, forked):
    (tmp_path / "home" / "prefect.db").mkdir(parents=True)
    broken = PrefectServer(tmp_path / "home", tmp_path / "log")
    with pytest.raises(ServiceError, match=r"the Prefect server ended with exit code .*log$"):
        broken.wait(30)
    broken.stop()


def test_a_taken_port_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} .*Address already in use"):
            PrefectServer(tmp_path, tmp_path / "log", port=port)


def test_servers_leave_when_their_parent_is_killed(templates, server, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "from pathlib import Path; from fedrounds.tasks.prefect_server import PrefectServer; import os, signal, time\n"
        f"start = lambda name: PrefectServer(Path({str(tmp_path)!r}, name), Path({str(tmp_path / 'log')!r}),"
        f" templates=Path({str(templates)!r}))\n"
        "ready = start('ready'); ready.wait(); os.kill(ready.pid, signal.SIGINT)\n"
        "starting = start('starting'); time.sleep(0.5); ready.wait()\n"
        "print(ready.pid, starting.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(signal.SIGKILL)
    assert all(gone(pid, 3.5) for pid in pids)


def test_settings_keep_quiet_and_go_past_the_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "hospital.example")
    there = settings(tmp_path, "http://127.0.0.1:4200/api")
    assert there["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert there["no_proxy"] == there["NO_PROXY"] == "hospital.example,127.0.0.1,localhost"
    assert there["DO_NOT_TRACK"] == "1"
    assert float(there["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL"]) >= 1
    monkeypatch.setenv("no_proxy", there["no_proxy"])
    assert "PREFECT_API_URL" not in settings(tmp_path, None)
    assert settings(tmp_path, None)["no_proxy"] == there["no_proxy"]
