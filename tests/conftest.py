"""What several tests share: one study that has run, and copies of it that may be broken; a PostgreSQL server that may be killed."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROUNDS = 3
STUDIES = itertools.count(1)
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


def tool(name: str, package: str, *places: str) -> Path:
    """A program of the system. Fails, not skips: what was not tried must not pass."""
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))
    assert found, f"expected {name} on this machine, found none: apt-get install {package}"
    return Path(found)


class Postgres:
    """Debian's PostgreSQL on a socket file in a folder of its own; as root it runs as Debian's user `postgres`."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="fedrounds-pg-"))  # pytest's own folders are closed to that user
        self.home.chmod(0o755)
        self.log, self.socket = self.home / "log", self.home / "server"
        self.socket.mkdir()
        self.who: dict[str, object] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.socket, owner.pw_uid, owner.pw_gid)
            self.who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self.run(
            "initdb",
            "-D",
            self.socket / "data",
            "-A",
            "trust",
            "-U",
            "fedrounds",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        )
        self.server: subprocess.Popen[bytes] | None = None
        self.start()

    def run(self, name: str, *words: object) -> None:
        """One of its programs, as its user."""
        command = [str(self.tool(name)), *map(str, words)]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60, **self.who)

    def tool(self, name: str) -> Path:
        """One of its programs."""
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        return tool(name, "postgresql", *map(str, places))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = [self.tool("postgres"), "-D", self.socket / "data", "-k", self.socket, "-c", "listen_addresses=", "-F"]
        with self.log.open("wb") as said:
            command = list(map(str, words))
            self.server = subprocess.Popen(
                command, cwd="/", stdout=said, stderr=said, start_new_session=True, **self.who
            )
        end = time.monotonic() + 60
        while "ready to accept" not in self.log.read_text():
            assert self.server.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.02)

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End the server and its children, which are a group of their own: at once, and with no last word to anybody."""
        if self.server is not None:
            os.killpg(self.server.pid, how)
            self.server.wait(30)
            self.server = None

    def database(self, name: str) -> str:
        """Make a database of that name; gives its address."""
        self.run("createdb", "-h", self.socket, "-U", "fedrounds", name)
        return self.address(name)

    def address(self, name: str) -> str:
        """A database's address for SQLAlchemy."""
        return f"postgresql+psycopg2://fedrounds@/{name}?host={self.socket}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a worker. Whoever kills it starts it again."""
    made = Postgres()
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(made.home, ignore_errors=True)


@pytest.fixture(scope="session")
def ledgers(postgres: Postgres) -> str:
    """The address of a database for ledgers: a study's own is that and `&study=NAME`."""
    return postgres.database("ledgers").replace("postgresql+psycopg2", "postgresql")


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_at(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new ledger will be, in a file and on a server: whoever asks runs twice."""
    if request.param == "sqlite":
        return tmp_path / "state" / "ledger.db"
    return request.getfixturevalue("new_address")


@pytest.fixture
def new_address(ledgers: str) -> str:
    """The address of a study that has no ledger yet."""
    return f"{ledgers}&study=study-{next(STUDIES)}"
