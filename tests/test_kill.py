"""kill -9 at any instant, then `run` again: as if nothing had happened. `benchmarks/soak.py` does the same for longer."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import warmed

from fedrounds.core.plan import build
from fedrounds.core.simulate import simulate
from fedrounds.ledger import Ledger
from fedrounds.tasks import folder as folders
from fedrounds.tasks.ward import Ward

ROUNDS = 6
VISITS = ROUNDS + 2  # statistics, rounds, a closing visit
TRACK, PREFECT = "fedrounds.tasks.track", "fedrounds.tasks.prefect_server"


@dataclass
class Patient:
    """A study that is run, killed, and run again."""

    folder: Path
    kills: list[str] = field(default_factory=list)  # when it was killed, for the record
    lineages: set[str] = field(default_factory=set)  # MLflow's parent runs, as seen after each kill

    @property
    def state(self) -> Path:
        return self.folder / "mlruns" / self.folder.name

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedrounds.cli.main", "run", str(self.folder), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill(self, rng: random.Random, phase: str, visit: int | None = None) -> None:
        """Run it, and kill -9 it at an instant that the seed draws; no process of it may stay."""
        after_s = rng.uniform(0, {"start": 3.0, "rounds": 0.15, "end": 1.5}[phase])
        if visit is None:
            visit = {"start": 0, "rounds": min(self.visits() + rng.randint(1, 3), VISITS), "end": VISITS}[phase]
        process = self.start()
        self._await(process, lambda: self.visits() >= visit)
        time.sleep(after_s)
        with process:
            ended = process.poll() is not None
            process.send_signal(signal.SIGKILL)
        word = "ended before" if ended else f"after {self.visits()} visits"
        self.kills.append(f"{phase} + {after_s:.3f} s: {word}")
        self.bury()

    def kill_helper(self, module: str, visit: int) -> tuple[int, str]:
        """Run it, and kill -9 one of its helper processes after a visit; gives the exit code and what it said."""
        process, found = self.start(), [0]

        def there() -> bool:
            found[0] = self.helper(process.pid, module) if self.visits() >= visit else 0
            return found[0] > 0

        self._await(process, there)
        assert found[0], f"the run ended before its {module} was there after visit {visit}"
        os.kill(found[0], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        self.bury()
        return process.returncode, said

    def finish(self) -> None:
        """Run it to its end."""
        process = self.start()
        _, said = process.communicate(timeout=240)
        assert (process.returncode, said) == (0, ""), said
        self.bury()

    def visits(self) -> int:
        if not (self.state / "ledger.db").exists():
            return 0
        try:
            return self._ask("ledger.db", "select count(*) from visits")[0][0]
        except sqlite3.OperationalError:  # it has no tables yet
            return 0

    def helper(self, parent: int, module: str) -> int:
        """The pid of a child of that module, 0 if there is none."""
        parent = warmed.itself(parent)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                its_parent = int(stat.read_text().rpartition(")")[2].split()[1])
                name = stat.with_name("comm").read_text().strip()  # what a forked helper calls itself
                words = stat.with_name("cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if its_parent == parent and (name == module.rpartition(".")[2] or module.encode() in words):
                return int(stat.parent.name)
        return 0

    def bury(self) -> None:
        """No process of the study stays, and no second lineage has come."""
        until = time.monotonic() + 8
        while (left := self._alive()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, f"processes stayed: {left}"
        if (self.state.parent / "mlflow.db").exists():
            query = "select run_uuid from tags where key = 'fedrounds.about' and value = 'lineage'"
            self.lineages |= {run for (run,) in self._ask("../mlflow.db", query)}
        assert len(self.lineages) <= 1

    def _alive(self) -> list[int]:
        """Processes whose environment, command, place or open files are of the study's folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
                words += _places(process)
                zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if str(self.folder).encode() in words and not zombie and int(process.name) != os.getpid():
                found.append(int(process.name))
        return found

    def _ask(self, database: str, query: str) -> list[tuple]:
        file = (self.state / database).resolve()
        # rw: a writer that was killed may have left a journal, which whoever reads next has to roll back
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=30)) as connection:
            return connection.execute(query).fetchall()

    def _await(self, process: subprocess.Popen[str], there: Callable[[], object]) -> None:
        until = time.monotonic() + 120
        while not there() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)

    # --- what must hold at the end ------------------------------------------------------------------------------------

    def examine(self) -> None:
        """The study is as it would be had nobody killed it."""
        with Ledger.open(self.state / "ledger.db") as ledger:
            visits = ledger.visits()
            assert [entry.visit for entry in visits] == list(range(1, VISITS + 1))
            assert [entry.round for entry in visits] == [0, *range(1, ROUNDS + 1), ROUNDS]
            assert ledger.head().state.model_digest == self.reference()
            assert ledger.unprojected() == []
        self._examine_mlflow()
        self._examine_prefect()

    def _examine_prefect(self) -> None:
        states = Counter(state for (state,) in self._ask("prefect/prefect.db", "select state_type from flow_run"))
        assert states["COMPLETED"] == 1
        assert states.keys() <= {"COMPLETED", "CRASHED", "FAILED"}

    def reference(self) -> str:
        """The digest of the model that the plain loop ends with."""
        read = folders.read(self.folder)
        plan = build(read.study)
        wards = {name: Ward(site, plan, read.data) for name, site in read.sites.items()}
        cohorts = {name: ward.cohort for name, ward in wards.items() if ward.load()}
        return list(simulate(plan, cohorts, ROUNDS))[-1].state.model_digest

    def _examine_mlflow(self) -> None:
        def ask(query: str) -> list[tuple]:
            return self._ask("../mlflow.db", query)

        about = [word for (word,) in ask("select value from tags where key = 'fedrounds.about'")]
        sites = [f"site {site}" for site in folders.read(self.folder).sites]
        rounds = list(range(1, ROUNDS + 1))
        assert sorted(about) == sorted(["lineage", *sites, *(f"round {number}" for number in rounds)])
        assert {status for (status,) in ask("select status from runs")} == {"FINISHED"}
        versions = ask("select value from model_version_tags where key = 'fedrounds.round'")
        assert sorted(int(number) for (number,) in versions) == rounds
        points = Counter(ask("select run_uuid, key, step from metrics"))
        assert max(points.values()) == 1
        (lineage,) = self.lineages
        assert sorted(step for run, key, step in points if (run, key) == (lineage, "log_loss")) == [0, *rounds]
        for (source,) in ask("select source from model_versions"):
            model = Path(source.removeprefix("file://"))
            assert (model / "MLmodel").exists()
            assert (model / "model.skops").exists()
        assert not list(self.state.parent.rglob("*.new*"))


def _places(process: Path) -> bytes:
    """Where a process works and what it has open; it may close that while one looks."""
    found = [os.fsencode(os.readlink(process / "cwd"))]
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.fsencode(os.readlink(link)))
    return b" ".join(found)


def initiated(folder: Path, cache: Path | None = None) -> Patient:
    """A toy study of some rounds; with `cache`, a workspace where Prefect has run before."""
    from fedrounds.cli.init import init

    init(folder, as_json=True)
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace("rounds = 10 ", f"rounds = {ROUNDS} "))
    if cache is not None:
        shutil.copytree(cache, folder / "mlruns" / ".cache")
    return Patient(folder)


def test_three_kills_and_a_dead_helper_change_nothing(tmp_path, toy_study):
    patient = initiated(tmp_path / "toy", toy_study.folder / "mlruns" / ".cache")
    rng = random.Random(20260)
    code, said = patient.kill_helper(PREFECT, visit=0)
    assert code == 16
    assert said.startswith("fedrounds: the Prefect server ended with exit code -9")
    assert len(said.splitlines()) == 1
    with warmed.true_programs():  # amid their imports, too
        patient.kill(rng, "start")
    patient.kill(rng, "rounds")
    code, said = patient.kill_helper(TRACK, visit=min(patient.visits() + 1, VISITS))
    assert code == 16
    assert said.startswith("fedrounds: helper fedrounds.tasks.track ended with exit code -9")
    assert len(said.splitlines()) == 1
    patient.kill(rng, "end")
    patient.finish()
    patient.examine()
    assert not any("ended before" in kill for kill in patient.kills), patient.kills


def test_what_sites_remember_outlives_kills(tmp_path, toy_study):
    patient = initiated(tmp_path / "toy", toy_study.folder / "mlruns" / ".cache")
    words = patient.folder / "study.toml"
    words.write_text(words.read_text().replace('preset = "fedavg"', 'preset = "scaffold"'))
    rng = random.Random(7)
    patient.kill(rng, "rounds", 4)  # three rounds were trained, or more
    assert {file.stem for file in (patient.state / "memories").glob("*.memory")} == {"east", "north", "south", "west"}
    patient.finish()
    patient.examine()
    assert not any("ended before" in kill for kill in patient.kills), patient.kills
