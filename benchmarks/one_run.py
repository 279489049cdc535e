"""One run of somebody's, measured as a process: the study that Fedrounds runs, and the same work by Flower."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrounds.core.plan import build
from fedrounds.tasks.folder import read

HERE = Path(__file__).resolve().parent
REPO, FLOWER = HERE.parent, HERE / ".flower-venv"
CALM = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NO_TRACES = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}


# --- a measured process -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One process and all it started: wall and CPU seconds, the largest resident set among them in MB, its last line.

    `load`: of the machine when it began, over a minute; what was measured just before weighs in it.
    """

    wall: float
    cpu: float
    peak: float
    said: str
    load: float

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.said)


def measured(command: Sequence[str | Path], env: Mapping[str, str] = {}, leave: bool = False) -> Ran:
    """Run a command in a fork of its own, which adopts what the command leaves behind, so that its CPU counts too.

    Args:
        leave: whether what the command leaves running is left alone (and not counted).
    """
    r, w = os.pipe()
    load = os.getloadavg()[0]
    if os.fork() == 0:
        os.close(r)
        with os.fdopen(w, "w") as answer:
            answer.write(json.dumps(_measure([str(word) for word in command], env, leave)))
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as answer:
        wall, cpu, peak, code, out = json.loads(answer.read())
    os.wait()
    if code:
        sys.exit(f"{' '.join(map(str, command))} ended with exit code {code}:\n{out[-3000:]}")
    return Ran(wall, cpu, peak, (out.strip().splitlines() or [""])[-1], load)


def _measure(command: list[str], env: Mapping[str, str], leave: bool) -> list[Any]:
    if not leave:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER (Linux)
    began = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wall = time.perf_counter() - began
    try:
        while not leave:
            os.wait()
    except ChildProcessError:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = done.stdout.decode(errors="replace")
    return [wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.returncode, out]


# --- the same work, three times ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """W1 over so many sites for so many rounds: a Fedrounds study, and the words that the others read."""

    sites: int
    rounds: int
    folder: Path
    task: Any

    @property
    def spec(self) -> str:
        return f"w1:{self.sites}:{self.rounds}"


def job(work: Any, sites: int, rounds: int, scratch: Path) -> Job:
    """Write the study: every row once to train on and once more to be scored on, since W1 scores on all rows."""
    task, folder = work.Task(f"w1:{sites}:{rounds}"), scratch / f"study-{sites}-{rounds}"
    for name in ("sites", "rows", "expectations"):
        (folder / name).mkdir(parents=True)
    features = "\n".join(f'  {{ type = "number", name = "x{j}" }},' for j in range(30))
    (folder / "study.toml").write_text(
        f'name = "w1"\nfeatures = [\n{features}\n]\ntarget = {{ kind = "binary", column = "y", positive_above = 0.5 }}\n'
        'preprocess = { standardise = "none" }\nvalidation = { fold = "fold", bins = 1000 }\nmodel = { kind = "logistic" }\n'
        'algorithm = { preset = "fedavg", local = { rate = 0.05, epochs = 5, batch = 32 } }\n'
    )
    (folder / "operations.toml").write_text(f'rounds = {rounds}\nquorum = 1.0\ngate = {{ suite = "w1" }}\n')
    (folder / "expectations" / "w1.json").write_text(json.dumps({"name": "w1", "expectations": list(expectations())}))
    header = ",".join([*(f"x{j}" for j in range(30)), "y", "fold"])
    for site in range(sites):
        X, y = task.rows(site)
        cells = [",".join([*(repr(float(x)) for x in row), str(int(label))]) for row, label in zip(X, y, strict=True)]
        rows = [f"{row},{fold}" for fold in ("train", "valid") for row in cells]
        (folder / "rows" / f"site{site:04}.csv").write_text("\n".join([header, *rows, ""]))
        (folder / "sites" / f"site{site:04}.toml").write_text(
            f'simulated = true\nsource = {{ kind = "csv", path = "rows/site{site:04}.csv" }}\npolicy = {{ minimum_patients = 1 }}\n'
        )
    return Job(sites, rounds, folder, task)


def expectations() -> Iterable[dict[str, Any]]:
    """Twenty."""
    yield {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1, "max_value": 100_000}}
    yield {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "y", "value_set": [0, 1]}}
    for j in range(9):
        yield {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": f"x{j}"}}
        yield {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": f"x{j}", "min_value": -20, "max_value": 20},
        }


def bare_loss(made: Job, work: Any) -> float:
    """The final loss of the bare loop with Fedrounds' seeds."""
    plan, sites = build(read(made.folder).study), range(made.sites)
    params = made.task.init()
    for number in range(1, made.rounds + 1):
        learned = []
        for site in sites:
            X, y = made.task.rows(site)
            learned.append((made.task.model.step(params, X, y, plan.rng(number, f"site{site:04}")), len(y)))
        params = work.fedavg(learned)
    scored = [made.task.evaluate(params, site) for site in sites]
    return sum(found["loss"] * rows for found, rows in scored) / sum(rows for _, rows in scored)


def fedrounds(made: Job, *options: str | Path, env: Mapping[str, str] = {}) -> Ran:
    return measured([REPO / ".venv/bin/fedrounds", "run", made.folder, "--json", *options], env)


def flower_env(made: Job, shared: Path, scratch: Path) -> dict[str, str]:
    words = {"BENCH_TASK": made.spec, "BENCH_DIGEST": read(made.folder).study.digest, "PYTHONPATH": str(shared)}
    return {**CALM, **NO_TRACES, **words, "FLWR_HOME": str(scratch / "flower-home")}


# --- Flower's environment ---------------------------------------------------------------------------------------------


def flower_venv() -> str:
    """Install Flower's newest release that installs, once; returns versions."""
    if not (FLOWER / "ready").exists():
        print("installing flwr[simulation] …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", FLOWER], check=True)
        (FLOWER / ".gitignore").write_text("*\n")
        subprocess.run(
            [FLOWER / "bin/pip", "install", "-q", "--disable-pip-version-check", "flwr[simulation]"], check=True
        )
        (FLOWER / "ready").touch()
    asked = "from importlib.metadata import version as v; print('flwr', v('flwr') + ', ray', v('ray') + ', numpy', v('numpy'))"
    return subprocess.check_output([FLOWER / "bin/python", "-c", asked], text=True).strip()


def flower(made: Job, shared: Path, scratch: Path) -> Ran:
    """`run_simulation`: all in one process and its Ray workers."""
    return measured([FLOWER / "bin/python", HERE / "flower/server.py"], flower_env(made, shared, scratch))


def documented(made: Job, runs: int, shared: Path, scratch: Path) -> list[Ran]:
    """`flwr run --stream`, the command that Flower documents: the first starts its SuperLink, the others find it running."""
    app = scratch / f"app-{made.sites}"
    shutil.copytree(HERE / "flower", app / "w1", ignore=shutil.ignore_patterns("__pycache__", "*.toml"))
    server = app / "w1/server.py"
    server.write_text(server.read_text().replace("from client import", "from w1.client import"))
    shutil.copy(HERE / "flower/pyproject.toml", app)
    env = flower_env(made, shared, scratch) | {
        "FLWR_HOME": str(app / "home"),
        "PATH": f"{FLOWER / 'bin'}:{os.environ['PATH']}",
    }
    options = f"num-supernodes={made.sites} client-resources-num-cpus=1 init-args-num-cpus={os.cpu_count()}"
    command = [FLOWER / "bin/flwr", "run", app, "--stream", "--federation-config", options]
    before = _superlinks()
    try:
        ran = []
        for number in range(runs):
            ran.append(measured(command, env, leave=True))
            print(f"  K={made.sites} run {number + 1} flwr run: wall {ran[-1].wall:.2f} s", flush=True)
            time.sleep(15)  # what a run leaves behind it ends
        return ran
    finally:
        for pid in _superlinks() - before:
            os.kill(pid, 15)


def _superlinks() -> set[int]:
    """The processes of this environment's SuperLink."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(FLOWER / "bin/flower-super").encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found
