"""What several tests share: one study that has run, and copies of it that may be broken."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROUNDS = 3
FEDROUNDS = Path(sys.executable).with_name("fedrounds")
PATHS = {  # where MLflow's database keeps places on the disk
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}


def alone(**more: str) -> dict[str, str]:
    """The environment of a user who has neither Prefect's nor MLflow's variables set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "COLUMNS": "80", **more}


def fedrounds(*words: object, **options) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it, without a terminal."""
    return subprocess.run(
        [FEDROUNDS, *map(str, words)], capture_output=True, text=True, env=alone(), timeout=240, check=False, **options
    )


@dataclass(frozen=True)
class Finished:
    """A toy study with `ROUNDS` rounds behind it. Shared by all tests: read it, or work on a `copy`."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def state(self) -> Path:
        """Its own state: ledger, Prefect's home, log."""
        return self.folder / "mlruns" / "toy"

    def copy(self, to: Path) -> Path:
        """A copy of its own, MLflow's store with it, in the folder `to`."""
        shutil.copytree(self.folder, to)
        with sqlite3.connect(to / "mlruns" / "mlflow.db") as store:
            for table, columns in PATHS.items():
                for column in columns:
                    query = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                    store.execute(query, (str(self.folder), str(to)))
        store.close()
        return to


@pytest.fixture(scope="session")
def toy_study(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`fedrounds init toy`, rounds = 3, `fedrounds run toy`, once for all tests of all workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder, said = base / "toy-study" / "toy", base / "toy-study" / "said.json"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            initiated(folder)
            done = fedrounds("run", folder)
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    return Finished(folder, *json.loads(said.read_text()))


def initiated(folder: Path) -> Path:
    """A toy study that has not run."""
    from fedrounds.cli.main import main

    assert main(["init", str(folder), "--json"]) == 0
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace("rounds = 10 ", f"rounds = {ROUNDS} "))
    return folder


@pytest.fixture
def new_study(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A toy study that has not run."""
    folder = initiated(tmp_path / "toy")
    capfd.readouterr()
    return folder


@pytest.fixture(scope="session")
def program():
    """`fedrounds …` as a user starts it, without a terminal: gives the ended process."""
    return fedrounds
