"""Helper processes: answers in order, prints kept out, errors by name, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from fedrounds.core.errors import GateHalt, ServiceError
from fedrounds.tasks.child import Child

HELPER = """
import os, subprocess, sys, time
from fedrounds.core.errors import GateHalt
from fedrounds.tasks.child import serve

def warm():
    print("warming")
    time.sleep(0.2)

def handle(request):
    match request["do"]:
        case "print":
            print("a library prints")
            os.write(1, b"a C library prints\\n")
            subprocess.run(["echo", "a program prints"])
            assert sys.stdin.read() == ""
        case "halt":
            raise GateHalt("site 'north' failed\\n  its gate")
        case "bug":
            raise KeyError("Mrs Smith, 1948-02-03")
        case "nonsense":
            return {"answer": object()}
        case "sleep":
            time.sleep(request["seconds"])
        case "die":
            os._exit(7)
        case "stopped":
            os.kill(os.getpid(), 2)
    return {"echo": request, "pid": os.getpid(), "warmed": os.environ.get("WARMED")}

serve(handle, warm)
"""


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A module `helper` that children can be started from, with its own log."""
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    children = []

    def start(**options) -> Child:
        children.append(Child("helper", tmp_path / "logs" / "helper.log", **options))
        return children[-1]

    start.log = tmp_path / "logs" / "helper.log"
    yield start
    for child in children:
        child.kill()


def gone(pid: int, within_s: float = 10) -> bool:
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


def answer(future: Future) -> dict:
    return future.result(timeout=10)


def test_answers_come_in_the_order_of_the_calls_and_close_finishes_the_queue(helper):
    child = helper(env={"WARMED": "yes"})
    futures = [child.call({"do": "echo", "n": n, "text": "é" * 100_000}) for n in range(20)]
    child.close()
    assert all(future.done() for future in futures)
    assert [answer(future)["echo"]["n"] for future in futures] == list(range(20))
    assert {(answer(future)["pid"], answer(future)["warmed"]) for future in futures} == {(child.pid, "yes")}
    assert gone(child.pid, 0.5)


def test_what_the_child_prints_goes_to_its_log_alone(helper, capfd):
    child = helper()
    assert answer(child.call({"do": "print"}))["pid"] == child.pid
    assert answer(child.call({"do": "echo"}))["echo"] == {"do": "echo"}
    child.close()
    log = helper.log.read_text()
    assert all(line in log for line in ("warming", "a library prints", "a C library prints", "a program prints"))
    assert capfd.readouterr() == ("", "")


def test_an_error_comes_back_by_name_and_the_child_goes_on(helper):
    child = helper()
    halted, bug, nonsense, echo = [child.call({"do": do}) for do in ("halt", "bug", "nonsense", "echo")]
    with pytest.raises(GateHalt, match=r"^site 'north' failed its gate$"):
        answer(halted)
    with pytest.raises(ServiceError, match=r"helper helper failed with KeyError: see .*helper\.log") as raised:
        answer(bug)
    assert "Smith" not in str(raised.value)
    with pytest.raises(ServiceError, match="TypeError"):
        answer(nonsense)
    assert answer(echo)["echo"] == {"do": "echo"}
    child.close()
    assert "Traceback" in helper.log.read_text()


def test_a_child_that_dies_fails_all_that_is_unanswered(helper):
    child = helper()
    before, dying, after = [child.call({"do": do}) for do in ("echo", "die", "echo")]
    assert answer(before)
    for lost in (dying, after, child.call({"do": "echo"})):
        with pytest.raises(ServiceError, match=r"helper helper ended with exit code 7 .*helper\.log"):
            answer(lost)
    child.close()


def test_a_child_that_cannot_start_fails_its_calls(tmp_path):
    child = Child("no_such_module", tmp_path / "log")
    with pytest.raises(ServiceError, match="exit code 1"):
        answer(child.call({"do": "echo"}))
    child.close()
    assert "No module named no_such_module" in (tmp_path / "log").read_text()


def test_a_module_that_prints_before_it_serves_is_refused_not_misread(helper, tmp_path):
    (tmp_path / "helper.py").write_text("print('hello', flush=True)\n" + HELPER)
    with pytest.raises(ServiceError, match="exit code -9"):
        answer(helper().call({"do": "echo"}))


def test_close_kills_a_child_that_takes_too_long(helper):
    child = helper()
    asleep = child.call({"do": "sleep", "seconds": 60})
    began = time.monotonic()
    child.close(timeout_s=0.5)
    child.close()
    assert time.monotonic() - began < 5
    with pytest.raises(ServiceError):
        answer(asleep)
    assert gone(child.pid, 0.5)


def test_a_child_ignores_ctrl_c_and_stands_outside_the_group(helper):
    child = helper()
    assert answer(child.call({"do": "stopped"}))["pid"] == child.pid
    assert os.getpgid(child.pid) != os.getpgid(0)
    child.close()


def test_a_child_leaves_at_once_when_its_parent_is_killed(helper, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "from pathlib import Path; from fedrounds.tasks.child import Child; import time\n"
        f"children = [Child('helper', Path({str(tmp_path / 'log')!r})) for _ in range(3)]\n"
        "children[0].call({'do': 'echo'}).result(); children[1].call({'do': 'echo'}).result()\n"
        "children[1].call({'do': 'sleep', 'seconds': 60})\n"  # one idle, one busy, one still starting
        "print(*(child.pid for child in children), flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.send_signal(signal.SIGKILL)
    assert all(gone(pid) for pid in pids)
