"""What several tests share: one study that has run, and copies of it that may be broken; a PostgreSQL server that may be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import io
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import warmed
from postgres import Postgres

pytest.register_assert_rewrite("hidden_study")

ROUNDS = 3
STUDIES = itertools.count(1)
FEDROUNDS = Path(sys.executable).with_name("fedrounds")
# Files whose subject is how helpers start have those of a user; all others' are forked (tests/warmed.py).
COLD = [
    "test_canary",
    "test_child",
    "test_forked",
    "test_later",
    "test_offline",
    "test_prefect_server",
    "test_quick_settings",
    "test_routes",
]
# Files whose `fedrounds …` are forked as well, however they are started.
FORKED = [
    "test_browser",
    "test_coordinator",
    "test_dask",
    "test_federated",
    "test_kill",
    "test_schedule",
    "test_third_party",
]
# Files whose `python -c …` are.
CODED = ["test_audit", "test_exchange", "test_ledger"]
# An eighth of what tests do is wait for the disk. Who is killed with -9 loses nothing that is in memory either; a power cut is in no test.
MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # bytes: a run leaves 1 GiB at most
MLFLOW = "mlflow.db"
# One, as the product sets it: for matrices as small as these a second one costs more than it does.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATHS = {  # where MLflow's database keeps places on the disk
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
# Files that take longest, first: two workers then end together. What is not named comes after, as it was found.
HEAVIEST = [
    "test_federated",
    "test_schedule",
    "test_masked",
    "test_correspondence",
    "test_browser",
    "test_repair",
    "test_dask",
    "test_end_to_end",
    "test_docs",
    "test_kill",
    "test_canary",
    "test_track",
    "test_acts",
    "test_prefect_server",
    "test_quality",
    "test_cli",
    "test_actions",
    "test_drift_run",
    "test_privacy_run",
    "test_offline",
    "test_coordinator",
    "test_draft",
    "test_packaging",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The heaviest files first (`make test` keeps xdist from an order of its own: most tests first, which is the lightest first)."""
    rank = {name: number for number, name in enumerate(HEAVIEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(HEAVIEST)))


gc.disable()  # until all is imported and collected, which stays for good: looking through it again and again took a seventh of the time


def pytest_collection_finish() -> None:
    """Leave out of garbage collections what is there now."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


def pytest_sessionfinish() -> None:
    """Of what is there at the end pytest would collect the garbage, five times over."""
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """One process that forks `fedrounds …` for all workers: whoever starts them starts it, and ends it. Files in memory, where there is room."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None
    os.environ.update(dict.fromkeys(THREADS, "1"))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles the house anew, each worker all tests
    sys.dont_write_bytecode = False
    if warmed.ADDRESS not in os.environ:
        config.warmed = warmed.Warmed()
        os.environ[warmed.ADDRESS] = config.warmed.address


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "warmed"):
        del os.environ[warmed.ADDRESS]
        config.warmed.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Which programs are forked."""
    name = item.path.stem
    warmed.quick(os.environ[warmed.ADDRESS], name not in COLD, name in FORKED, name in CODED)


def alone(**more: str) -> dict[str, str]:
    """The environment of a user who has neither Prefect's nor MLflow's variables set, nor ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", *THREADS))}
    return {**kept, "COLUMNS": "80", **more}


def cold(*words: object) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it, without a terminal."""
    with warmed.true_programs():
        return subprocess.run(
            [FEDROUNDS, *map(str, words)], capture_output=True, text=True, env=alone(), timeout=240, check=False
        )


def fedrounds(*words: object, timeout: float = 240, **more: str) -> subprocess.CompletedProcess[str]:
    """The same, all imported already (tests/warmed.py), and with `more` variables."""
    return warmed.run(os.environ[warmed.ADDRESS], "fedrounds.cli.main", words, alone(**more), timeout=timeout)


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
            cache = folder / "mlruns" / ".cache"
            make = "from pathlib import Path; from fedrounds.tasks.mlflow_server import make_store; make_store(*map(Path, sys.argv[1:]))"
            words = ["code", f"import sys; {make}", cache / MLFLOW, cache / "mlflow.new"]
            made = warmed.run(os.environ[warmed.ADDRESS], "warmed", words, alone())
            assert made.returncode == 0, made.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    return Finished(folder, *json.loads(said.read_text()))


@pytest.fixture(scope="session")
def templates(toy_study: Finished) -> Path:
    """Empty databases of Prefect, as the first run left it, and of MLflow: half of what a first run takes is their migrations."""
    return toy_study.folder / "mlruns" / ".cache"


@pytest.fixture(scope="session")
def warm(templates: Path) -> Callable[[Path], None]:
    """Gives an empty folder of runs the `templates`."""

    def warmed(mlruns: Path) -> None:
        mlruns.mkdir(parents=True, exist_ok=True)
        (mlruns / ".cache").symlink_to(templates)
        if not (mlruns / MLFLOW).exists():
            shutil.copy(templates / MLFLOW, mlruns)

    return warmed


@pytest.fixture(scope="session")
def prefect_beside(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables by which a command finds a Prefect server that is there already: a quarter of a run is to start and end its own."""
    from fedrounds.tasks.prefect_server import PrefectServer

    home = tmp_path_factory.mktemp("prefect-beside")
    with warmed.forking(os.environ[warmed.ADDRESS], helpers=True):
        server = PrefectServer(home, home / "log", templates=templates)
    server.wait()
    yield {"PREFECT_API_URL": server.api_url}
    server.stop()


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
def true_program():
    """`fedrounds …` as a user starts it, without a terminal: gives the ended process."""
    return cold


@pytest.fixture(scope="session")
def program():
    """`fedrounds …` without the seconds of its imports: a process of its own too."""
    return fedrounds


@pytest.fixture(scope="session")
def python():
    """`python -c CODE WORDS`, all imported already: gives the ended process."""
    address = os.environ[warmed.ADDRESS]
    return lambda code, *words, timeout=240: warmed.run(
        address, "warmed", ["code", code, *words], alone(), timeout=timeout
    )


@pytest.fixture(scope="session")
def begun():
    """The same, as it starts: gives the process, which may be killed. It has no output."""
    return lambda *words: warmed.Started(os.environ[warmed.ADDRESS], "fedrounds.cli.main", words, alone())


def tool(name: str, package: str, *places: str) -> Path:
    """A program of the system. Fails, not skips: what was not tried must not pass."""
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))
    assert found, f"expected {name} on this machine, found none: apt-get install {package}"
    return Path(found)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of a worker. Whoever kills it starts it again."""
    place = Path(tempfile.mkdtemp(prefix="fedrounds-pg-"))  # pytest's own folders are closed to the database's user
    place.chmod(0o755)
    made = Postgres(place / "server", network=False)
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(place, ignore_errors=True)


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


class Apart:
    """A toy study whose hospitals are apart: folders and mailboxes of their own, and a coordinator that asks by a plain loop."""

    SITES = ("east", "north", "south")
    ALL = ("east", "north", "south", "west")

    def __init__(
        self,
        base: Path,
        protocol=None,
        operations: str = "",
        policy: str = "",
        suite: bool = False,
        masked: str = "",
        sites: tuple[str, ...] = SITES,
        holder: str = "",
        **agent,
    ):
        """`protocol`: what to replace in study.toml; `operations`, `policy`: lines to add; `suite`: whether the gate has one; `masked`:
        how sums are protected, and then every hospital's people have agreed on the keys of all; `holder`: a third party without patients.
        """
        self.SITES = sites
        from fedrounds.cli.init import init
        from fedrounds.core import identity
        from fedrounds.core.plan import build
        from fedrounds.exchange.exchange import Exchange
        from fedrounds.exchange.fsspec import Folder
        from fedrounds.tasks import folder as folders
        from fedrounds.tasks import package
        from fedrounds.tasks.mailboxes import write_secret

        self.base, self.study = base, base / "study"
        with contextlib.redirect_stdout(io.StringIO()):
            init(self.study, True)
        for more in sorted(set(sites) - set(self.ALL)):  # of other names, with the west's rows
            own = (self.study / "sites" / "west.toml").read_text().replace("west", more)
            (self.study / "sites" / f"{more}.toml").write_text(own)
            shutil.copy(self.study / "data" / "west.csv", self.study / "data" / f"{more}.csv")
        for left_out in set(self.ALL) - set(sites):
            (self.study / "sites" / f"{left_out}.toml").unlink()
        text = (self.study / "study.toml").read_text()
        text += f"\n[privacy]\nprotect = {masked}\n" if masked else ""
        for old, new in (protocol or {}).items():
            assert old in text
            text = text.replace(old, new)
        (self.study / "study.toml").write_text(text)
        text = (self.study / "operations.toml").read_text().replace("rounds = 10 ", f"rounds = {ROUNDS} ")
        text = text if suite else text.replace('suite = "readmission"', "")
        text = re.sub(r"(?m)^margin.*\n", "", text) if masked else text
        (self.study / "operations.toml").write_text(text.replace("quorum = 3 ", "quorum = 2 ") + operations)
        self.read = folders.read(self.study)
        self.plan = build(self.read.study)
        self.key = identity.new_key()
        self.keys = {site: identity.new_key() for site in (*self.SITES, *([holder] if holder else []))}
        self.mail = {site: Exchange(Folder(str(base / "mail" / site))) for site in self.keys}
        self.package = package.packed(self.read, self.study)
        self.place = folders.state_of(self.study, self.read.study.name, base / "state")
        self.place = dataclasses.replace(self.place, signing=base / "coordinator.key")
        write_secret(base / "coordinator.key", self.key.hex())
        folders.prepare(self.place, False)
        self.hospitals = {}
        options = "".join(f"{key} = {json.dumps(value)}\n" for key, value in ({"prefect": "off"} | agent).items())
        for site, key in self.keys.items():
            home = self.home(site)
            (home / "data").mkdir(parents=True)
            write_secret(home / "site.key", key.hex())
            own = ""
            if site != holder:
                shutil.copy(self.study / "data" / f"{site}.csv", home / "data")
                own = (self.study / "sites" / f"{site}.toml").read_text()
            known = f'key = "{identity.public_key(self.key).hex()}"\nexchange = "{base / "mail" / site}"'
            (home / "site.toml").write_text(
                f'name = "{site}"\n{own}\n[coordinator]\n{known}\n[agent]\n{options}\n[policy]\n{policy}'
            )
            self.put_study(site, self.package)
        self.roster = {site: identity.public_key(key) for site, key in self.keys.items()} if masked else {}
        for site in self.roster:
            self.hospital(site).book.learn("roster", {name: key.hex() for name, key in self.roster.items()})

    def put_study(self, site: str, data: bytes, digest: str = "") -> None:
        """Leave a study in a site's mailbox, signed by the coordinator."""
        from fedrounds.core import identity
        from fedrounds.exchange.name import Name

        digest = digest or self.read.study.digest
        about = identity.About(digest, 0, 0, 0, site, "request", digest)
        signed = identity.sign(self.key, about, data)
        self.mail[site].put(Name.of(signed, 0, 0, "study"), signed)

    def home(self, site: str) -> Path:
        return self.base / site

    def hospital(self, site: str, anew: bool = False):
        """The hospital; `anew` as its agent finds itself after it was started again."""
        from fedrounds.tasks.hospital import Hospital

        if anew and site in self.hospitals:
            self.hospitals.pop(site).close()
        if site not in self.hospitals:
            self.hospitals[site] = Hospital(self.home(site))
        return self.hospitals[site]

    def set_policy(self, site: str, policy: str) -> None:
        """Write another policy, and start the agent again."""
        file = self.home(site) / "site.toml"
        file.write_text(file.read_text().partition("\n[policy]\n")[0] + "\n[policy]\n" + policy)
        self.hospital(site, anew=True)

    def agent(self, site: str):
        """One look of the site's agent; what it answered, if it did."""
        hospital = self.hospital(site)
        letter = hospital.look()
        return None if letter is None else hospital.answer(letter)

    @contextlib.contextmanager
    def run(self):
        """An open run by mail."""
        from fedrounds.core import identity
        from fedrounds.tasks import run as runs
        from fedrounds.tasks.correspondence import Correspondence
        from fedrounds.tasks.desk import Desk

        desks = {
            site: Desk(site, self.mail[site], identity.public_key(key), self.key, self.plan)
            for site, key in self.keys.items()
        }
        for desk in desks.values():
            desk.roster = self.roster
        self.seen = getattr(self, "seen", [])
        on_visit = lambda run: self.seen.append((run.state.round, run.state.model_digest))  # noqa: E731
        with runs.opened(self.read, self.place, on_visit, desks, None, Correspondence) as run:
            yield run

    def ask(self, run, asking, sites=None, agent=None):
        """Ask, let each site's agent look once, and collect: the messages, in site order."""
        self.question, sites = run.question(asking), sites or asking.sites
        run.post(self.question, sites)
        for site in sites:
            (agent or self.agent)(site)
        found = [run.look(site, self.question) for site in sites]
        return [message for message in found if message is not None]

    def gate(self, run, agent=None):
        """The gate of every site, and the policy."""
        verdicts = run.found(self.ask(run, run.gate(), agent=agent))
        run.admit(verdicts)
        return verdicts

    def visit(self, run, ask: str, agent=None):
        """One visit, closed."""
        from fedrounds.core.round import Asking

        asking = run.open(ask)
        while isinstance(asking, Asking):
            asking = run.aggregate(asking, self.ask(run, asking, agent=agent))
        return asking

    def drive(self, run, agent=None, rounds: int = ROUNDS) -> str:
        """The study's flow without Prefect; returns the digest of the last model."""
        from fedrounds.tasks import drift

        self.gate(run, agent)
        if not run.state.statistics:
            self.visit(run, "statistics", agent)
        if drift.due(run):
            self.visit(run, "profile", agent)
        while run.state.round < rounds:
            self.visit(run, "train", agent)
        if not run.scored:
            self.visit(run, "score", agent)
        run.clear()
        return run.state.model_digest

    def reference(self, rounds: int = ROUNDS) -> list[tuple[int, str]]:
        """Round and model digest of each visit of the same study in one process."""
        from fedrounds.core.simulate import simulate
        from fedrounds.tasks.ward import Ward

        wards = [Ward(site, self.plan, self.read.data) for site in self.read.sites.values()]
        cohorts = {ward.name: ward.cohort for ward in wards if ward.load()}
        return [(it.state.round, it.state.model_digest) for it in simulate(self.plan, cohorts, rounds)]

    def replies(self, outcome: str = "") -> list:
        """The coordinator's receipts."""
        from fedrounds.ledger import Ledger

        with Ledger.open(self.place.ledger) as ledger:
            return [it for it in ledger.replies() if outcome in ("", it.outcome)]

    def objects(self, site: str) -> list[str]:
        """Names of all that is in a mailbox, the study aside."""
        return [str(name) for name in self.mail[site].list() if name.round]

    def close(self) -> None:
        for hospital in self.hospitals.values():
            hospital.close()


@pytest.fixture
def apart(tmp_path):
    """Makes toy studies whose hospitals are apart."""
    made = []

    def make(**options) -> Apart:
        made.append(Apart(tmp_path / f"apart-{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
