"""Sites on a Dask cluster: the same bits as in one process, whatever dies; rows stay at the workers. A real scheduler, real workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import distributed
import pytest
import warmed

from fedrounds.core.errors import DataContractError, ServiceError
from fedrounds.core.messages import encode
from fedrounds.core.plan import build
from fedrounds.core.round import Asking, close_exchange, open_round
from fedrounds.core.simulate import simulate
from fedrounds.ledger import Ledger
from fedrounds.tasks import dask, far
from fedrounds.tasks import folder as folders
from fedrounds.tasks.clock import Clock
from fedrounds.tasks.ward import Ward, read_reply

HOUSE = Path(__file__).resolve().parents[1]


# As docs/dask.md has it: else a scheduler on a busy machine lets an idle worker take a site, and load its rows once more.
AT_ITS_WORKER = {"DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False"}


@dataclass
class Cluster:
    """A scheduler and workers, each a process of its own without a nanny."""

    folder: Path
    scheduler: subprocess.Popen | None = None
    workers: list[subprocess.Popen] = field(default_factory=list)

    @property
    def address(self) -> str:
        return json.loads((self.folder / "scheduler.json").read_text())["address"]

    @property
    def runner(self) -> str:
        return self.address.replace("tcp://", "dask://")

    def start(self, workers: int) -> None:
        place = ["--scheduler-file", str(self.folder / "scheduler.json")]
        self.scheduler = self._start("dask_scheduler", *place, "--host", "127.0.0.1", "--port", "0")
        until = time.monotonic() + 60
        while not (self.folder / "scheduler.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        for _ in range(workers):
            self.add()
        while not (self.folder / "scheduler.json").stat().st_size:
            time.sleep(0.05)
        with distributed.Client(self.address, set_as_default=False, timeout=60) as client:
            if workers:
                client.wait_for_workers(workers, timeout=60)

    def add(self) -> None:
        place = ["--scheduler-file", str(self.folder / "scheduler.json"), "--local-directory", str(self.folder)]
        options = ["--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
        self.workers.append(self._start("dask_worker", *place, *options))

    def _start(self, module: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *words, "--no-dashboard"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=os.environ | AT_ITS_WORKER)

    def kill(self, pid: int) -> None:
        """kill -9 one of ours."""
        alive = [it for it in [self.scheduler, *self.workers] if it and it.poll() is None]
        process = next(it for it in alive if pid in (it.pid, warmed.itself(it.pid)))
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def started(folder: Path, workers: int):
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder)
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers that no test kills."""
    with started(tmp_path_factory.mktemp("cluster"), 2) as running:
        yield running


@contextmanager
def crew_of(runner: str, folder: folders.Folder):
    crew = dask.Crew(runner, folder)
    try:
        crew.load()
        yield crew
    finally:
        crew.stop()


def diabetes(to: Path, rounds: int = 3, epochs: int = 2) -> Path:
    """studies/diabetes, cut to a few rounds."""
    shutil.copytree(HOUSE / "studies" / "diabetes", to, ignore=shutil.ignore_patterns("mlruns"))
    operations, study = to / "operations.toml", to / "study.toml"
    lines = operations.read_text().splitlines()
    operations.write_text("\n".join(f"rounds = {rounds}" if line.startswith("rounds = ") else line for line in lines))
    study.write_text(study.read_text().replace("epochs = 2", f"epochs = {epochs}"))
    return to


def plain(path: Path):
    """The last state of the plain loop."""
    read = folders.read(path)
    plan = build(read.study)
    wards = {name: Ward(site, plan, read.data) for name, site in read.sites.items()}
    for ward in wards.values():
        ward.load()
    policy = next(iter(wards.values())).policy
    cohorts = {name: ward.cohort for name, ward in wards.items()}
    return list(simulate(plan, cohorts, read.operations.rounds, policy=policy))[-1].state


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_run_on_a_cluster_of_its_own_ends_in_the_same_model(tmp_path, program, warm, prefect_beside):
    path = diabetes(tmp_path / "diabetes")
    warm(path / "mlruns")
    ended = program("run", path, "--runner", "dask", "--json", **prefect_beside)
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert told["model_digest"] == plain(path).model_digest
    assert [(site["site"], site["gate"]) for site in told["sites"][:4]] == [
        (name, "passed") for name in ("east", "north", "south", "west")
    ]
    assert all(site["local"] is None for site in told["sites"])  # no process has all rows to compare with
    with Ledger.open(path / "mlruns" / "diabetes" / "ledger.db") as ledger:
        assert [(visit.ask, visit.round) for visit in ledger.visits()] == [
            ("statistics", 0), ("train", 1), ("train", 2), ("train", 3), ("score", 3)
        ]  # fmt: skip
        assert all(site["bytes_in"] and site["bytes_out"] for site in ledger.visits()[2].record["sites"].values())
        assert ledger.unprojected() == []


def test_a_worker_killed_amid_a_round_loses_nothing(tmp_path, warm, prefect_beside):
    path = diabetes(tmp_path / "diabetes", epochs=5000)  # so that a worker is met at work, on a busy machine too
    warm(path / "mlruns")
    with started(tmp_path / "cluster", 2) as cluster:
        command = [sys.executable, "-m", "fedrounds.cli.main", "run", str(path), "--json", "--runner", cluster.runner]
        with (
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | prefect_beside,
            ) as run,
            distributed.Client(cluster.address, set_as_default=False, timeout=60) as client,
        ):
            pids, killed = client.run(os.getpid), ""
            until = time.monotonic() + 150
            while not killed and run.poll() is None and time.monotonic() < until:
                busy = client.processing()
                killed = next((at for at, calls in busy.items() if any("answer-" in key for key in calls)), "")
                time.sleep(0.02)
            assert killed, "no worker was seen at work"
            cluster.kill(pids[killed])
            said, complained = run.communicate(timeout=200)
            left = list(client.nthreads())
    assert (run.returncode, complained) == (0, "")
    assert left == [at for at in pids if at != killed]
    assert json.loads(said)["model_digest"] == plain(path).model_digest
    assert f"worker {killed} is gone: its sites are loaded elsewhere" in (path / "mlruns/diabetes/run.log").read_text()
    with Ledger.open(path / "mlruns" / "diabetes" / "ledger.db") as ledger:
        assert [visit.round for visit in ledger.visits()] == [0, 1, 2, 3, 3]
        assert ledger.failures() == []


# --- what crosses -----------------------------------------------------------------------------------------------------


def rounds(crew, read, exchanges):
    """A study's rounds by the crew and by wards of this process; each pair of replies is held to be the same bytes."""
    plan = build(read.study)
    here = {name: Ward(site, plan, read.data) for name, site in read.sites.items()}
    for ward in here.values():
        ward.load()
    state = plan.start()
    for ask in ("statistics", "train", "train", "score"):
        asking = open_round(state, plan, ask, here)
        while isinstance(asking, Asking):
            request = encode(asking.request)
            group = crew.group([crew.wards[name] for name in asking.sites], Clock())
            crew.send([group], request)
            replies = group.answer(dict.fromkeys(asking.sites, request))
            assert replies == [here[name].answer(request) for name in asking.sites]
            exchanges.append((request, replies))
            asking = close_exchange(asking, plan, map(read_reply, replies))
        state = asking.state
    return state


def test_a_round_sends_bytes_and_site_files_and_brings_bytes(cluster, new_study, monkeypatch):
    read = folders.read(new_study)
    sent, brought = [], []
    submit, wait = dask.Crew.submit, dask.Crew.wait
    monkeypatch.setattr(
        dask.Crew,
        "submit",
        lambda self, call, head, *words: sent.append((call.__name__, words)) or submit(self, call, head, *words),
    )
    monkeypatch.setattr(dask.Crew, "wait", lambda *words: brought.append(wait(*words)) or brought[-1])
    exchanges = []
    with crew_of(cluster.runner, read) as crew:
        state = rounds(crew, read, exchanges)
    assert state.round == 2
    answers = [words for name, words in sent if name == "answer"]
    assert [words[1] for words in answers] == [request for request, _ in exchanges]
    for stays, _ in answers:
        for stay in stays:
            assert stay.keys() == {"file", "aside", "fingerprint"}
            assert json.loads(stay["file"]).keys() == read.sites["north"].model_dump().keys()
            assert stay["aside"] == ()
    counts = {"patients", "fingerprint", "problem", "refusal"}
    for got in brought:
        assert all(isinstance(it, bytes) or it.keys() == counts for it in got)
    assert [got for got in brought if isinstance(got[0], bytes)] == [replies for _, replies in exchanges]


def test_a_worker_keeps_its_rows_between_rounds(cluster, new_study):
    """Once loaded, the tables may go: rounds read them no more."""
    read = folders.read(new_study)
    with crew_of(cluster.runner, read) as crew:
        here = build(read.study)
        kept = {name: Ward(site, here, read.data) for name, site in read.sites.items()}
        for ward in kept.values():
            ward.load()
        shutil.move(new_study / "data", new_study / "gone")
        request = encode(open_round(here.start(), here, "statistics", kept).request)
        groups = [crew.group([ward], Clock()) for ward in crew.wards.values()]
        for _ in range(2):
            crew.send(groups, request)
            answers = [group.answer(dict.fromkeys([ward.name for ward in group.wards], request)) for group in groups]
            assert answers == [[ward.answer(request)] for ward in kept.values()]


def test_rows_set_aside_are_left_out_at_whichever_worker(cluster, new_study):
    read = folders.read(new_study)
    plan = build(read.study)
    request = encode(open_round(plan.start(), plan, "statistics", ["north"]).request)
    with crew_of(cluster.runner, read) as crew:
        there, here = crew.wards["north"], Ward(read.sites["north"], plan, read.data)
        here.load()
        whole = there.patients
        for ward in (there, here):
            ward.leave_out([0, 5])
        assert there.patients == here.cohort.patients < whole
        assert crew.group([there], Clock()).answer({there.name: request}) == [here.answer(request)]


def test_data_that_changed_are_refused_by_the_worker_that_loads_them_again(cluster, new_study):
    read = folders.read(new_study)
    plan = build(read.study)
    request = encode(open_round(plan.start(), plan, "statistics", ["north"]).request)
    with crew_of(cluster.runner, read) as crew:
        table = new_study / read.sites["north"].source.path
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join(lines[:-1]))
        assert len(crew.group([crew.wards["north"]], Clock()).answer({"north": request})) == 1  # held since the start
        crew._about = far.about("another worker", read.study, read.data)
        with pytest.raises(
            DataContractError, match="expected the data of site 'north' to hold still, found them changed"
        ):
            crew.group([crew.wards["north"]], Clock()).answer({"north": request})


def test_a_worker_with_other_software_is_refused(cluster, new_study, monkeypatch):
    monkeypatch.setattr(far, "software", lambda: "fedrounds 9.9.9")
    with (
        pytest.raises(ServiceError, match=r"expected fedrounds 9\.9\.9 at every worker, found fedrounds 0\.1\.0"),
        crew_of(cluster.runner, folders.read(new_study)),
    ):
        pass


def test_what_goes_wrong_at_a_worker_is_told_here_and_nothing_of_it_is_logged_there(cluster, new_study):
    site = new_study / "sites" / "north.toml"
    site.write_text('split_key = "canary-7131"\n' + site.read_text())
    read = folders.read(new_study)
    table = new_study / read.sites["north"].source.path
    table.write_text(table.read_text().replace("systolic_bp", "canary-2262"))
    with pytest.raises(DataContractError, match="site 'north'"), crew_of(cluster.runner, read):
        pass
    assert "canary" not in cluster.log
    assert "north" not in cluster.log


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["dusk", "dask://", "dask://host", "dask://host:port", "http://host:1", "ray"])
def test_an_unknown_runner_is_one_line(runner, new_study, true_program):
    ended = true_program("run", new_study, "--runner", runner)
    assert ended.returncode == 2
    expected = f"fedrounds: argument --runner: expected `dask` or a scheduler's address (dask://HOST:PORT, tls://HOST:PORT), found '{runner}'"
    assert ended.stderr.startswith(expected)
    assert ended.stderr.count("\n") == 1


def test_a_scheduler_that_is_not_there_is_one_line_and_nothing_is_written(new_study, true_program):
    ended = true_program("run", new_study, "--runner", "dask://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (16, "")
    expected = "fedrounds: expected a Dask scheduler at dask://127.0.0.1:1, found none that answers within 10 s (ConnectionRefusedError)"
    assert ended.stderr.startswith(expected)
    assert ended.stderr.count("\n") == 1
    assert not (new_study / "mlruns" / "toy").exists()


def test_dask_that_is_not_installed_is_one_line(new_study, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "distributed.py").write_text("raise ModuleNotFoundError('distributed')\n")
    command = [sys.executable, "-m", "fedrounds.cli.main", "run", str(new_study), "--runner", "dask"]
    without = {**os.environ, "PYTHONPATH": str(tmp_path / "without")}
    ended = subprocess.run(command, capture_output=True, text=True, env=without, timeout=60, check=False)
    assert ended.returncode == 16
    said = "fedrounds: expected Dask for --runner dask, found it is not installed: pip install 'fedrounds[dask]'\n"
    assert ended.stderr == said


def test_a_cluster_without_a_worker_and_one_that_loses_its_last_are_one_line(tmp_path, new_study, monkeypatch):
    monkeypatch.setattr(dask, "FIRST_S", 1)
    monkeypatch.setattr(dask, "ALONE_S", 0.5)
    monkeypatch.setattr(dask, "LOOK_S", 0.5)
    read = folders.read(new_study)
    plan = build(read.study)
    request = encode(open_round(plan.start(), plan, "statistics", ["north"]).request)
    with started(tmp_path / "cluster", 0) as cluster:
        with pytest.raises(ServiceError, match=f"expected a worker at {cluster.runner}, found none within 1 s"):
            dask.Crew(cluster.runner, read)
        cluster.add()
        monkeypatch.setattr(dask, "FIRST_S", 60)
        monkeypatch.setattr(dask, "REACH_S", 4)
        with crew_of(cluster.runner, read) as crew:
            group = crew.group([crew.wards["north"]], Clock())
            cluster.kill(cluster.workers[0].pid)
            with pytest.raises(ServiceError, match="expected a worker for site 'north', found none on the cluster"):
                group.answer(dict.fromkeys([ward.name for ward in group.wards], request))
            cluster.kill(cluster.scheduler.pid)
            with pytest.raises(ServiceError, match="expected the Dask cluster to carry a call, found"):
                group.answer(dict.fromkeys([ward.name for ward in group.wards], request))
