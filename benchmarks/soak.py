"""The long tests in full: 30 kills at seeded instants, and dead helpers in mid-run. Writes docs/soak.md.

make soak          or          .venv/bin/python benchmarks/soak.py [SEED]
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KILLS = 30
KILLED_TICKS = 20
PHASES = ("start", "start", "rounds", "rounds", "end")  # of each study


def machinery(name: str = "test_kill"):
    """The test's own study, kills and examination."""
    sys.path.append(str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def program(*words: object, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    """`fedrounds …` with `more` variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    command = [str(Path(sys.executable).with_name("fedrounds")), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=kept | more, timeout=timeout, check=False)


def main() -> None:
    seed = int(sys.argv[1]) if sys.argv[1:] else 2026
    test, began, lines, killed = machinery(), time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="fedrounds-soak-") as scratch:
        cache = None  # the first workspace is empty, so that kills hit the making of the databases too
        while killed < KILLS:
            rng = random.Random(f"{seed}:{len(lines)}")
            patient = test.initiated(Path(scratch) / str(len(lines)) / "toy", cache)
            killed += ordeal(patient, rng, f"study {len(lines)}")
            lines.append(f"| {len(lines)} | {'; '.join(patient.kills)} |")
            cache = patient.folder / "mlruns" / ".cache"
        helpers = dead_helpers(test, Path(scratch) / "helpers" / "toy", cache)
        ticks = killed_ticks(seed, Path(scratch) / "ticks", cache)
    write(seed, killed, lines, helpers, ticks, time.monotonic() - began)


def ordeal(patient, rng: random.Random, name: str) -> int:
    """A study killed once a phase, then left alone and examined; gives how many kills hit it alive."""
    for phase in PHASES:
        patient.kill(rng, phase)
        print(f"{name}: {patient.kills[-1]}", flush=True)
    patient.finish()
    patient.examine()
    return sum("ended before" not in kill for kill in patient.kills)


def dead_helpers(test, folder: Path, cache: Path) -> list[str]:
    """Each helper killed alone in mid-run: one clear line, exit 16, and the next run goes on."""
    patient, said = test.initiated(folder, cache), []
    for module in (test.TRACK, test.PREFECT):
        code, line = patient.kill_helper(module, visit=patient.visits() + 2)
        assert (code, len(line.splitlines())) == (16, 1), (code, line)
        said.append(f"| {module} | {code} | {line.strip().replace(str(folder.parent), '…')} |")
        print(said[-1], flush=True)
    patient.finish()
    patient.examine()
    return said


def killed_ticks(seed: int, place: Path, cache: Path) -> list[str]:
    """Ticks of a schedule, killed on a real server with a real worker; the next tick goes on. One line a study."""
    test, said, killed = machinery("test_schedule"), [], 0
    house = test.House(place / "mlruns", cache, program)
    try:
        house.served.server.wait()
        house.served.work(test.POOL, poll_s=1)
        while killed < KILLED_TICKS:
            rng = random.Random(f"{seed}:tick:{len(said)}")
            patient = test.Patient(
                test.scheduled(place / str(len(said)) / f"toy{len(said)}", test.kills.ROUNDS, cron="0 3 * * 1")
            )
            patient.house, patient.deployment = house, house.deploy(patient.folder)["id"]
            killed += ordeal(patient, rng, f"scheduled study {len(said)}")
            said.append(f"| {len(said)} | {'; '.join(patient.kills)} |")
    finally:
        house.served.stop()
    return said


def write(seed: int, killed: int, lines: list[str], helpers: list[str], ticks: list[str], seconds: float) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    text = f"""# Soak

Written by `make soak` on {dt.date.today()}, commit {commit}, seed {seed}, Python {platform.python_version()}, {seconds / 60:.0f} minutes.

**{killed} times kill -9** of `fedrounds run`, over {len(lines)} studies of {machinery().ROUNDS} rounds and four hospitals.
After every kill no process stayed. At the end of every study:

- the model digest is that of the plain loop (`core.simulate`, never interrupted), and the ledger's visits are dense;
- MLflow has one parent run (the same after every kill), one run a round and a site, all of them finished, one version a round, one point a metric and
  step, and no half-written file;
- Prefect shows no dead flow run as running.

`start + t`: t seconds after the process started; `rounds + t`: t after a drawn visit was in the ledger; `end + t`: t after the last, while MLflow,
baselines and plots are written.

| study | killed at |
|---|---|
{chr(10).join(lines)}

A helper process killed alone, in mid-run; then the study ran to its end and passed the same examination:

| helper | exit code | what the command said |
|---|---|---|
{chr(10).join(helpers)}

**Ticks of a schedule, killed -9** on a real Prefect server with a real process worker; the worker showed each as crashed, the next tick went on, and
the last was followed by the same examination. On the server: one completed flow run a study, the killed ones crashed, none running.

| study | killed at |
|---|---|
{chr(10).join(ticks)}
"""
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "soak.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
