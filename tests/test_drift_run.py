"""A study that watches for drift, run as a user runs it: held, told everywhere, accepted; and whole however its process dies."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedrounds.cli.init import init
from fedrounds.core.errors import StudyError
from fedrounds.core.operations import Drift
from fedrounds.ledger import Ledger
from fedrounds.tasks import drift
from fedrounds.tasks import folder as folders
from fedrounds.tasks.prefect_server import PrefectServer
from fedrounds.tasks.run import opened
from fedrounds.tasks.verdict import Verdict


def toy(folder: Path, words: str = "") -> Path:
    """`fedrounds init`, three rounds, watching for drift, and without a suite: the gate's start would take longer than all else."""
    init(folder, as_json=True)
    file = folder / "operations.toml"
    text = file.read_text().replace("rounds = 10 ", "rounds = 3 ").replace("suite =", "# suite =")
    file.write_text(f"{text}\n[drift]\n{words}\n")
    return folder


def shift(folder: Path, site: str, years: int) -> None:
    """Every patient of a site becomes younger."""
    file = folder / "data" / f"{site}.csv"
    head, *rows = csv.reader(file.read_text().splitlines())
    at = head.index("age")
    for row in rows:
        row[at] = str(max(int(row[at]) - years, 18))
    file.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")


def rows_of(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def shell(tmp_path_factory, templates, program):
    """Runs a command beside a Prefect server that keeps events, gives what it printed; `events` asks the server."""
    home = tmp_path_factory.mktemp("prefect")
    server = PrefectServer(home, home / "log", templates=templates, services=True)
    server.wait()
    api = server.api_url

    def run(*words, code=0):
        done = program(*words, PREFECT_API_URL=api)
        assert done.returncode == code, done.stderr
        document = json.loads(done.stdout) if "--json" in words else None
        return SimpleNamespace(out=" ".join(done.stdout.split()), err=done.stderr, json=document)

    def events(name: str, wanted: int) -> list[dict]:
        body = json.dumps({"filter": {"event": {"name": [name]}}}).encode()
        until = time.monotonic() + 10
        while True:
            asked = urllib.request.Request(f"{api}/events/filter", body, {"Content-Type": "application/json"})
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10) as answer:
                found = json.load(answer)["events"]
            if len(found) >= wanted or time.monotonic() > until:
                return found
            time.sleep(0.2)

    run.events, run.prefect = events, home / "prefect.db"
    yield run
    server.stop()


def test_drift_is_told_then_holds_the_study_until_somebody_accepts_it(shell, tmp_path, toy_study):
    folder = toy(tmp_path / "toy", "hold = 100.0")
    first = shell("run", folder, "--json").json
    with Ledger.open(toy_study.state / "ledger.db") as ledger:
        assert first["model_digest"] == ledger.head().state.model_digest  # watching changes no bit of the model
    assert (first["drift"]["sites"], first["drift"]["reference"]) == ({}, 2)
    assert set(first["drift"]["between"]) == {"east", "north", "south", "west"}

    shift(folder, "north", 18)
    told = shell("run", folder, "--more", 1, "--json").json
    assert (told["rounds"], told["drift"]["held"]) == (4, False)
    (event,) = shell.events("fedrounds.drift.warned", 1)
    assert event["payload"]["worst"] == told["drift"]["worst"]
    assert "drift: age at 'north' has PSI" in shell("status", folder).out

    shift(folder, "south", 18)
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace("hold = 100.0", "warn = 0.05"))
    held = shell("run", folder, "--more", 1, "--json", code=17)
    assert held.json["error"]["kind"] == "DriftHold"
    assert "expected new data like those of visit 2 (PSI of at most 0.25), found age at '" in held.err
    assert len(held.err.splitlines()) == 1
    with Ledger.open(folder / "mlruns" / "toy" / "ledger.db") as ledger:
        visits, head = ledger.visits(), ledger.head()
        asks = ["statistics", "profile", *["train"] * 3, "score", "profile", "train", "score", "profile"]
        assert [entry.ask for entry in visits] == asks
        assert (head.state.round, head.state.model_digest) == (4, told["model_digest"])
        assert [failure.reason for failure in ledger.failures()] == [held.json["error"]["message"]]
        assert ledger.unprojected() == []
        found = visits[-1].record["drift"]
        profiles = visits[-1].record["profile"].values()
        assert all(count <= 0 or count >= 10 for own in profiles for cells in own.values() for count in cells)
    assert found["held"]
    assert {site: its["features"]["age"]["psi"] > 1 for site, its in found["sites"].items()} == {
        "east": False,
        "north": True,
        "south": True,
        "west": False,
    }
    assert {its["features"]["sex"]["psi"] for its in found["sites"].values()} == {0.0}
    assert "last try failed: expected new data like those of visit 2" in shell("status", folder).out
    _mlflow_shows(folder, found)
    _prefect_shows(shell, found)

    accepted = shell("run", folder, "--more", 1, "--accept-drift", "--json").json
    assert accepted["rounds"] == 5
    assert "drift accepted: age at '" in shell("status", folder).out
    with Ledger.open(folder / "mlruns" / "toy" / "ledger.db") as ledger:
        visits = ledger.visits()
        assert [entry.ask for entry in visits] == [*asks, "train", "score"]
        ((visit, when),) = ledger.noted("accepted_drift")
        assert visit == 10
        assert visits[9].committed < when < visits[10].committed
        assert len(ledger.failures()) == 1
    assert "Nothing to do" in shell("run", folder).out


def _mlflow_shows(folder: Path, found: dict) -> None:
    points = rows_of(
        folder / "mlruns" / "mlflow.db",
        "select t.value, m.key, m.value, m.step from metrics m join tags t using (run_uuid) "
        "where t.key = 'fedrounds.about' and (m.key like 'drift%' or m.key = 'calibration_ratio')",
    )
    drifted = {(about, key, step): value for about, key, value, step in points if key.startswith("drift")}
    assert drifted["lineage", "drift_psi_max", 4] == found["worst"]["psi"]
    assert drifted["site south", "drift_psi_max", 4] == found["sites"]["south"]["features"]["age"]["psi"]
    assert drifted["site south", "drift_psi_max", 3] == drifted["site north", "drift_label_psi", 4] == 0.0
    assert len(drifted) == 2 * (1 + 4 * 2)  # two profiles; one number of the lineage, two of each site
    ratios = {(about, step) for about, key, _, step in points if key == "calibration_ratio"}
    assert {("lineage", step) for step in range(5)} | {("site north", step) for step in range(5)} <= ratios
    ((where,),) = rows_of(
        folder / "mlruns" / "mlflow.db",
        "select r.artifact_uri from runs r join tags t using (run_uuid) where t.key = 'fedrounds.about' and t.value = 'lineage'",
    )
    plots = Path(where.removeprefix("file://")) / "plots"
    assert all(
        (plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        for name in ("drift", "drift-between", "drift-history")
    )


def _prefect_shows(shell, found: dict) -> None:
    (event,) = shell.events("fedrounds.drift.held", 1)
    assert event["resource"] == {"prefect.resource.id": "fedrounds.study.toy", "prefect.resource.name": "toy"}
    assert event["payload"]["worst"] == found["worst"]
    assert event["payload"]["limit"] == {"warn": 0.05, "hold": 0.25}
    assert event["payload"]["sites"]["east"] == 0.0
    tables = [
        json.loads(data)
        for (data,) in rows_of(shell.prefect, "select data from artifact where key = 'drift-toy' order by created")
    ]
    assert len(tables) == 3
    assert "No drift beyond chance." in tables[0]
    assert "Without a reference yet: east, north, south, west." in tables[0]
    assert f"| south | age | {found['sites']['south']['features']['age']['psi']:.3f} | " in tables[2]
    assert tables[2].count("**held**") == 2


def test_nothing_is_there_to_accept_before_the_first_profile(shell, tmp_path):
    folder = toy(tmp_path / "early")
    assert "found none in the ledger" in shell("run", folder, "--accept-drift", code=15).err
    assert not (folder / "mlruns" / "early").exists()
    assert "not allowed with" in shell("run", folder, "--accept-drift", "--fresh", code=2).err


def test_a_feature_that_the_study_lacks_cannot_be_watched(tmp_path):
    with pytest.raises(StudyError, match=r"`features` under \[drift\].*found 'ages'"):
        folders.read(toy(tmp_path / "toy", 'features = ["ages"]'))


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_is_told_where_it_is_surely_beyond_the_limit():
    large = {"ratio": 1.5, "intercept": 1.28, "error": 0.0645}
    calibration = {**large, "sites": {"a": {**large, "error": 0.5}, "b": {**large, "ratio": 0.5}}}
    assert drift.beyond(calibration, Drift(calibration=0.2)) == {
        "what": "calibration",
        "limit": 0.2,
        "ratios": {"all sites": 1.5, "b": 0.5},
    }
    assert drift.beyond(calibration, Drift(calibration=0.6)) is None
    assert drift.beyond(calibration, Drift()) is None


# --- kill -9 ----------------------------------------------------------------------------------------------------------

VISIT = """
# Statistics if they are not agreed, then a profile if one is due; dies where the third word says.
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_drift_run import carried
from fedrounds.ledger import Ledger

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

commit = Ledger.commit
if sys.argv[2] == "before":
    Ledger.commit = lambda self, after, visit: die() if visit.ask == "profile" else commit(self, after, visit)
carried(Path(sys.argv[1]), die_after=die if sys.argv[2] == "after" else None)
"""


def carried(folder: Path, die_after=None):
    """What the flow does up to the profile, without Prefect; gives whether a profile was due, the asks so far, and the standing."""
    from fedrounds.core.round import Asking

    read = folders.read(folder)
    place = folders.state_of(folder, read.study.name)
    folders.prepare(place, fresh=False)
    with opened(read, place) as run:
        for ward in run.wards.values():
            ward.load()
        run.admit({name: Verdict(name, True, 0) for name in run.wards})
        asks = [] if run.state.statistics else ["statistics"]
        due = drift.due(run)
        for ask in asks + (["profile"] if due else []):
            asking = run.open(ask)
            while isinstance(asking, Asking):
                requests = asking.requests
                asking = run.aggregate(asking, [run.wards[site].answer(requests[site]) for site in asking.sites])
        if die_after:
            die_after()
        return due, [entry.ask for entry in run.ledger.visits()], drift.standing(run)


def killed(python, folder: Path, where: str) -> None:
    done = python(VISIT, folder, where, Path(__file__).parent, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_before_and_after_the_profile_is_committed_nothing_is_doubled_and_nothing_lost(tmp_path, python):
    folder = toy(tmp_path / "toy")
    killed(python, folder, "before")
    killed(python, folder, "after")
    due, asks, standing = carried(folder)
    assert (due, asks) == (False, ["statistics", "profile"])
    assert standing["worst"] is None
    shift(folder, "north", 18)
    killed(python, folder, "after")
    due, asks, standing = carried(folder)
    assert (due, asks) == (False, ["statistics", "profile", "profile"])
    assert standing["held"]  # the run that comes next holds, though the one that found it died
    assert (standing["worst"]["site"], standing["worst"]["what"], standing["reference"]) == ("north", "age", 2)
