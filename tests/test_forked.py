"""Helpers forked from a process: they answer and end as programs do, share its imports, and hold nothing of it that they should not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path
from fedrounds.core.errors import ServiceError
from fedrounds.tasks.child import Child
from fedrounds.tasks.forked import Forked, alone
import decimal

log, held = Path(sys.argv[1]), os.pipe()
said = {"alone": alone()}
env = {**os.environ, "GREETING": "hello"}
other = Forked("work", [], log, env)
helper = Child("work", log, process=Forked("work", ["a", "b"], log, env))
said |= helper.call({"do": "tell"}).result(20)
said["comm"] = Path(f"/proc/{helper.pid}/comm").read_text().strip()
said["open"] = sorted(os.readlink(f"/proc/{helper.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{helper.pid}/fd"))
said["held"] = os.readlink(f"/proc/self/fd/{held[0]}")
threads = threading.Thread(target=time.sleep, args=(1,))
threads.start()
said["alone beside a thread"] = alone()
said["a helper that closes"] = (helper.close(), helper._process.poll())[1]
failing = Child("work", log, process=other)
try:
    failing.call({"do": "die"}).result(20)
except ServiceError as error:
    said["a helper that dies"] = str(error)
broken = Forked("work.nothing", [], log, env)
said["a module that is not there"] = broken.wait(20)
try:
    sleeping = Forked("work", [], log, env)
    sleeping.wait(0.1)
except subprocess.TimeoutExpired:
    said["one that lives"] = sleeping.poll()
sleeping.kill(); sleeping.wait(20); sleeping.kill()
said["one that is killed"] = sleeping.poll()
print(json.dumps(said))
"""
WORK = """
import os, sys
started = "decimal" in sys.modules, os.environ.get("GREETING"), sys.argv[1:], __name__
from fedrounds.tasks.child import serve

def handle(request):
    if request["do"] == "die":
        os._exit(7)
    print("printed")
    shared, greeting, words, name = started
    return {"shared": shared, "greeting": greeting, "words": words, "name": name, "group": os.getpgid(0) == os.getpid()}

if __name__ == "__main__":
    serve(handle)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a process of its own says of helpers that it forked, and their log."""
    folder = tmp_path_factory.mktemp("forked")
    (folder / "work.py").write_text(WORK)
    command = [sys.executable, "-c", PROGRAM, str(folder / "log")]
    env = {**os.environ, "PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"log": (folder / "log").read_text(), "terminal": done.stderr}


def test_a_forked_helper_is_the_module_with_its_words_its_environment_and_what_was_imported(told):
    assert (told["name"], told["words"], told["greeting"], told["shared"]) == ("__main__", ["a", "b"], "hello", True)
    assert (told["comm"], told["group"]) == ("work", True)


def test_it_holds_its_input_its_output_its_log_and_nothing_else_of_its_parent(told):
    assert told["held"] not in told["open"]
    assert {Path(name).name.partition(":")[0] for name in told["open"]} == {"pipe", "log", "null"}


def test_its_prints_are_in_the_log(told):
    assert "printed" in told["log"]
    assert told["terminal"] == ""


def test_it_ends_as_a_program_does_and_says_how(told):
    assert told["a helper that closes"] == 0
    assert told["a helper that dies"].startswith("helper work ended with exit code 7")
    assert (told["one that lives"], told["one that is killed"]) == (None, -9)


def test_a_module_that_is_not_there_is_an_exit_code_and_a_line_of_the_log(told):
    assert told["a module that is not there"] == 1
    assert "run_module" in told["log"]


def test_nothing_is_forked_beside_a_thread(told):
    assert (told["alone"], told["alone beside a thread"]) == (True, False)


def test_a_helper_of_a_process_that_writes_to_a_file_speaks_on_its_pipe_and_says_nothing_of_its_parents(tmp_path):
    (tmp_path / "says.py").write_text(
        'import sys\nsys.stdout.reconfigure(errors="replace")\nprint("piped", flush=True)\n'
    )
    program = """
import os, sys
from pathlib import Path
from fedrounds.tasks.forked import Forked
print("waits", end="")
helper = Forked("says", [], Path(sys.argv[1]), dict(os.environ))
assert helper.wait(20) == 0
Path(sys.argv[2]).write_bytes(helper.stdout.read())
"""
    with (tmp_path / "out").open("wb") as out:
        words = [sys.executable, "-c", program, str(tmp_path / "log"), str(tmp_path / "piped")]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, timeout=120, check=False, env=env)
    assert done.returncode == 0, (done.stderr, (tmp_path / "log").read_text())
    assert ((tmp_path / "out").read_text(), (tmp_path / "piped").read_text()) == ("waits", "piped\n")
