"""The acceptance of schedules: a real Prefect server, a real worker, real files that grow, go stale and break a rule, kill -9 in the middle.

The tests tell one story and run in order. `benchmarks/soak.py` kills more often.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedrounds.core.errors import DriftHold, GateHalt, ServiceError, StateError, StudyBusy
from fedrounds.ledger import Ledger
from fedrounds.tasks.deployment import POOL
from fedrounds.tasks.serve import Served

FEDROUNDS = Path(sys.executable).with_name("fedrounds")
PATIENCE_S = 180  # on a busy machine Prefect's server has been seen to wait a minute for its own SQLite file
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def beside(name: str, file: str):
    """A test file of this folder as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(file))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kills = beside("kills", "test_kill.py")  # a study, its kills and its examination
sight = beside("sight", "test_browser.py")  # a browser, and what it shows


def until(there: Callable[[], Any], within_s: float = PATIENCE_S, every_s: float = 0.25) -> Any:
    """What `there` gives as soon as it gives something. Each look at a server takes it a hundredth of a second of the processor."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := there():
            return found
        time.sleep(every_s)
    raise AssertionError(f"nothing came within {within_s} s")


class Hook:
    """A webhook on loopback that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        heard = self.heard

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self):
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/told"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, state: str) -> list[dict[str, Any]]:
        return [told for told in self.heard if told["state"] == state]


class House:
    """A server and a worker as `fedrounds deploy --serve` brings them, and the studies that are deployed there.

    Args:
        program: starts `fedrounds …`, as the fixture does.
    """

    def __init__(self, place: Path, cache: Path | None, program: Callable[..., Any]) -> None:
        if cache is not None:  # an empty database of Prefect, so that its migrations are not run once more
            (place / ".cache").parent.mkdir(parents=True)
            (place / ".cache").symlink_to(cache)
        quick = {
            "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
        }
        quick["PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"] = "1"
        self.cache, self.program = cache, program
        self.served = Served(place, ours=quick)
        self.known = {"PREFECT_API_URL": self.served.api_url, **self.served.secrets}
        token = base64.b64encode(self.served.password.encode()).decode()
        self.api = httpx.Client(
            base_url=self.served.api_url,
            headers={"Authorization": f"Basic {token}"},
            trust_env=False,
            timeout=PATIENCE_S / 2,
        )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the server's API; like Prefect's client, again where its database was busy for a moment (503)."""
        answer = until(lambda: (got := self.api.request(method, path, json=body)).status_code != 503 and [got])[0]
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def ask(self, path: str, **body: Any) -> Any:
        return self.call("POST", path, body)

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def deploy(self, folder: Path, *words: str) -> dict[str, Any]:
        """`fedrounds deploy`, as a user with this server in PREFECT_API_URL runs it; again where its database was busy for longer."""

        def deployed() -> Any:
            done = self.program("deploy", folder, "--json", *words, timeout=60, **self.known)
            return None if "503 Service Unavailable" in done.stderr else done

        done = until(deployed)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        said = json.loads(done.stdout)
        if "id" in said:  # start ticks in one process
            command = {"job_variables": {"command": self.served.command}}
            self.call("PATCH", f"/deployments/{said['id']}", command)
        return said

    def trigger(self, deployment: str) -> str:
        """A tick now; gives its id."""
        return self.ask(f"/deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"})["id"]

    def run(self, id_: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{id_}")

    def ended(self, id_: str) -> dict[str, Any]:
        """The flow run, when it has come to its end."""
        return until(lambda: (found := self.run(id_))["state_type"] in FINAL and found)

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        return self.ask("/flow_runs/filter", deployments={"id": {"any_": [deployment]}})

    def artifact(self, run: str, key: str) -> str:
        """The newest markdown artifact of that key which the run left."""
        found = self.ask(
            "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}, sort="CREATED_DESC"
        )
        return found[0]["data"]


def process(flow_run: str) -> int:
    """The pid of a tick's own process, 0 while there is none."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            mine = f"PREFECT__FLOW_RUN_ID={flow_run}".encode() in environ.read_bytes()
            if mine and b"prefect.engine" in environ.with_name("cmdline").read_bytes():
                return int(environ.parent.name)
        except OSError:
            continue
    return 0


def scheduled(folder: Path, rounds: int, cache: Path | None = None, **schedule: Any) -> Path:
    """A toy study with a schedule; with `cache`, in a workspace where Prefect and MLflow have run before."""
    kills.initiated(folder, cache)
    if cache is not None:
        shutil.copy(cache / "mlflow.db", folder / "mlruns")
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"rounds": rounds, **schedule}.items()]
    with (folder / "operations.toml").open("a") as file:
        file.write("\n[schedule]\n" + "\n".join(lines) + "\n")
    return folder


class Patient(kills.Patient):
    """A study whose ticks are killed. Its flow runs are on the house's server."""

    house: House
    deployment: str

    def kill(self, rng: random.Random, phase: str) -> None:
        """A tick, killed -9 at an instant that the seed draws; the worker shows it as crashed."""
        after_s = rng.uniform(0, {"start": 3.0, "rounds": 0.1, "end": 0.8}[phase])
        visit = {"start": 0, "rounds": min(self.visits() + rng.randint(1, 3), kills.VISITS), "end": kills.VISITS}[phase]
        tick = self.house.trigger(self.deployment)
        pid = until(lambda: process(tick), every_s=0.02)
        until(lambda: self.visits() >= visit or not process(tick), every_s=0.005)
        time.sleep(after_s)
        ended = not process(tick)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        self.kills.append(f"{phase} + {after_s:.3f} s: {'ended before' if ended else f'after {self.visits()} visits'}")
        assert self.house.ended(tick)["state_name"] == ("Completed" if ended else "Crashed")
        until(lambda: not any(b"fedrounds.tasks" in line for line in self._commands()), within_s=10)
        self.lineages |= {run for (run,) in self._lineages()}
        assert len(self.lineages) <= 1

    def finish(self) -> dict[str, Any]:
        """A tick that nobody kills."""
        done = self.house.ended(self.house.trigger(self.deployment))
        assert done["state_name"] in ("Completed", "Skipped"), done["state"][
            "message"
        ]  # skipped where one ended before its kill
        self.lineages |= {run for (run,) in self._lineages()}
        return done

    def _lineages(self) -> list[tuple]:
        if not (self.state.parent / "mlflow.db").exists():
            return []
        try:
            return self._ask(
                "../mlflow.db", "select run_uuid from tags where key = 'fedrounds.about' and value = 'lineage'"
            )
        except sqlite3.OperationalError:  # it has no tables yet
            return []

    def _commands(self) -> list[bytes]:
        """The commands of processes that have the study's ledger or folder in them."""
        found = []
        for alive in self._alive():
            try:
                found.append(Path(f"/proc/{alive}/cmdline").read_bytes())
            except OSError:
                continue
        return found

    def _examine_prefect(self) -> None:
        names = Counter(
            run["state_name"] for run in self.house.runs(self.deployment) if run["state_type"] != "SCHEDULED"
        )
        crashed = sum("ended before" not in kill for kill in self.kills)
        assert (names["Crashed"], names["Completed"]) == (crashed, 1)
        assert names.keys() <= {"Crashed", "Completed", "Skipped"}


# --- the story --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hook():
    hook = Hook()
    yield hook
    hook.server.shutdown()


@pytest.fixture(scope="module")
def house(tmp_path_factory, templates, program):
    house = House(tmp_path_factory.mktemp("house") / "mlruns", templates, program)
    house.served.server.wait()
    yield house
    house.served.stop()


@pytest.fixture(scope="module")
def by_cron(house, tmp_path_factory):
    """A study that the calendar alone starts: deployed first, so that its minute passes while the others work."""
    folder = scheduled(tmp_path_factory.mktemp("cron") / "by-the-minute", 1, cron="* * * * *", timezone="Europe/Zurich")
    operations = folder / "operations.toml"  # without a gate, whose start would slow those who work meanwhile
    operations.write_text(operations.read_text().replace("suite =", "# suite ="))
    return folder, house.deploy(folder)


@pytest.fixture(scope="module")
def weekly(house, by_cron, hook, tmp_path_factory):
    folder = scheduled(tmp_path_factory.mktemp("weekly") / "weekly", 2, house.cache, interval="7d", notify=[hook.url])
    return folder, house.deploy(folder)


def append(folder: Path, site: str, row: str, rows: int) -> None:
    """New patients at a site, each with a number of its own."""
    file = folder / "data" / f"{site}.csv"
    there = file.read_text().count("\n")
    with file.open("a") as table:
        table.writelines(f"{site}{there + number},{row}\n" for number in range(rows))


def test_deploying_says_what_comes_next_and_who_hears_of_it(house, by_cron, weekly):
    folder, said = weekly
    assert (said["name"], said["created"], said["paused"]) == ("study/weekly", True, False)
    assert said["notifications"] == ["weekly · missed", "weekly · failed", "weekly · held"]
    assert datetime.fromisoformat(said["next"]) > datetime.now(UTC)
    deployment = house.get(f"/deployments/{said['id']}")
    assert deployment["parameters"] == {"folder": str(folder), "data": str(folder), "state": str(folder / "mlruns")}
    assert deployment["pull_steps"] == []
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert house.get(f"/work_pools/{POOL}")["type"] == "process"


def test_a_tick_that_nobody_starts_is_told_as_missed(house, weekly, hook):
    tick = house.trigger(weekly[1]["id"])
    told = until(lambda: hook.of("Late"))
    assert [(it["study"], it["flow_run"]) for it in told] == [("weekly", tick)]
    house.served.work(POOL, poll_s=1)  # the worker comes, and does what was missed
    done = house.ended(tick)
    assert (done["state_name"], done["state"]["message"]) == (
        "Completed",
        "round 0 → 2, new data at east, north, south, west",
    )
    with Ledger.open(weekly[0] / "mlruns" / "weekly" / "ledger.db") as ledger:
        assert [(entry.ask, entry.round) for entry in ledger.visits()] == [
            ("statistics", 0), ("train", 1), ("train", 2), ("score", 2),
        ]  # fmt: skip
        assert ledger.unprojected() == []
    assert "| outcome | **Completed** |" in house.artifact(tick, "tick-weekly")
    assert "| rounds | round 0 → 2 |" in house.artifact(tick, "tick-weekly")


def test_a_site_that_breaks_a_rule_sits_out_and_the_others_go_on(house, weekly):
    folder, said = weekly
    append(folder, "east", "64,f,142,0.84,never,yes,yes", 12)  # new patients
    append(folder, "north", "200,f,142,0.84,never,yes,yes", 12)  # of an impossible age
    done = house.ended(house.trigger(said["id"]))
    assert done["state_name"] == "Completed"
    assert done["state"]["message"] == "round 2 → 4, new data at east, north; north sat out"
    fault = "expect_column_values_to_be_between · age: 12 of 312"
    assert f"- north: failed 1 of 17 checks — {fault} — **sat out**" in house.artifact(done["id"], "tick-weekly")
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        tags = [
            json.loads(value) for (value,) in store.execute("select value from tags where key = 'fedrounds.excluded'")
        ]
    assert tags
    assert all(list(tag) == ["north"] and fault in tag["north"] for tag in tags)


def test_a_tick_without_new_data_is_skipped_and_says_so(house, weekly):
    done = house.ended(house.trigger(weekly[1]["id"]))  # what sat out sits out still, and is nothing new
    assert (done["state_type"], done["state_name"]) == ("COMPLETED", "Skipped")
    assert done["state"]["message"] == "no site has new data since the last trained round"
    assert "| rounds | no round trained |" in house.artifact(done["id"], "tick-weekly")


def test_a_tick_that_fails_ends_in_one_line_and_a_webhook_hears_it(house, weekly, hook):
    folder, said = weekly
    operations = folder / "operations.toml"
    before = operations.read_text()
    operations.write_text(before.replace('policy = "exclude"', 'policy = "halt"'))
    done = house.ended(house.trigger(said["id"]))
    line = done["state"]["message"]
    assert (done["state_type"], done["state_name"]) == ("FAILED", "Failed")
    assert line.startswith("expected every site to pass the gate (policy halt), found 'north': failed 1 of 17 checks")
    assert "Traceback" not in line
    (told,) = until(lambda: hook.of("Failed"))
    assert told["text"] == f"Fedrounds, weekly: {done['name']} is Failed — {line}"
    assert told["flow_run"] == done["id"]
    operations.write_text(before)


def test_the_calendar_starts_a_tick_by_itself_and_can_be_paused_and_taken_away(house, by_cron):
    folder, said = by_cron
    done = until(lambda: [run for run in house.runs(said["id"]) if run["state_name"] == "Completed"], every_s=1)[-1]
    assert done["auto_scheduled"]
    assert done["state"]["message"] == "round 0 → 1, new data at east, north, south, west"
    due = datetime.fromisoformat(done["expected_start_time"])
    assert (due.second, due.microsecond) == (0, 0)
    paused = house.deploy(folder, "--pause")
    assert (paused["id"], paused["created"], paused["paused"], paused["next"]) == (said["id"], False, True, None)
    assert house.deploy(folder)["paused"]  # deploying again does not wake it
    assert not house.deploy(folder, "--resume")["paused"]
    assert house.deploy(folder, "--remove") == {"name": "study/by-the-minute", "removed": True}
    assert house.api.get(f"/deployments/{said['id']}").status_code == 404


def test_drift_holds_ticks_until_somebody_accepts_it_and_a_champion_can_be_rolled_back(house, hook, program, tmp_path):
    folder = scheduled(tmp_path / "drifting", 1, house.cache, interval="7d", notify=[hook.url])
    with (folder / "operations.toml").open("a") as file:
        file.write("\n[drift]\nhold = 0.25\n")
    said = house.deploy(folder)
    assert house.ended(house.trigger(said["id"]))["state"]["message"].startswith("round 0 → 1, new data at east")
    append(folder, "east", "100,f,142,0.84,never,yes,yes", 300)  # allowed by the gate, and nothing like those before
    held = [house.ended(house.trigger(said["id"])) for _ in range(2)]  # it is no less held for being known
    for run in held:
        assert (run["state_type"], run["state_name"]) == ("FAILED", "Held")
        assert run["state"]["message"].startswith(
            "expected new data like those of visit 2 (PSI of at most 0.25), found "
        )
        assert "at 'east' at" in run["state"]["message"]
        assert "| rounds | no round trained |" in house.artifact(run["id"], "tick-drifting")
    told = until(lambda: len(found := [it for it in hook.of("Held") if it["study"] == "drifting"]) == 2 and found)
    assert [it["message"] for it in told] == [run["state"]["message"] for run in held]
    accepted = program("run", folder, "--accept-drift", **house.known)
    assert (accepted.returncode, accepted.stderr) == (0, "")
    with Ledger.open(folder / "mlruns" / "drifting" / "ledger.db") as ledger:
        assert ledger.progress().round == kills.ROUNDS
        assert [failure.reason for failure in ledger.failures()] == [run["state"]["message"] for run in held]
        before = ledger.standing().champions[-2]
    back = program("rollback", folder, "--reason", "the board wants to look again", "--by", "ada")
    assert (back.returncode, back.stderr) == (0, "")
    query = "select v.value from registered_model_aliases a join model_version_tags v on v.name = a.name and v.version = a.version"
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        (found,) = store.execute(f"{query} where a.alias = 'champion' and v.key = 'fedrounds.round'").fetchone()
    assert int(found) == before


def in_both(browser, url: str, name: str, *texts: str) -> None:
    """A page of Prefect's that shows the texts, in the dark theme that was chosen; then in light, without loading it anew."""
    classes, at_once = "document.documentElement.classList", "<style>* { transition: none !important }</style>"
    sight.visit(browser, url, f"{name}-dark", *texts)
    assert browser.execute_script(f"return {classes}.contains('dark')")
    browser.execute_script(f"document.head.insertAdjacentHTML('beforeend', '{at_once}'); {classes}.remove('dark')")
    sight.picture(browser, f"{name}-light")


def test_a_browser_shows_what_became_of_every_tick(house, weekly, tmp_path):
    folder, said = weekly
    sat_out = next(run for run in house.runs(said["id"]) if run["state"]["message"].endswith("; north sat out"))
    (artifact,) = house.ask(
        "/artifacts/filter", artifacts={"flow_run_id": {"any_": [sat_out["id"]]}, "key": {"any_": ["tick-weekly"]}}
    )
    ui = house.served.api_url.removesuffix("/api")
    fault, ticks = "age: 12 of 312", ("weekly · ", "Completed", "Skipped", "Failed")
    with sight.opened(tmp_path / "chromium") as browser:
        browser.get(ui)
        password = base64.b64encode(house.served.password.encode()).decode()
        browser.execute_script("localStorage.setItem('prefect-password', arguments[0])", password)
        browser.execute_script("localStorage.setItem('color-scheme', '\"dark\"')")
        page = f"{ui}/artifacts/artifact/{artifact['id']}"
        check = f"expect_column_values_to_be_between · {fault}"
        in_both(browser, page, "schedule-tick", "weekly: completed", "round 2 → 4", check, "sat out")
        in_both(browser, f"{ui}/runs", "schedule-runs", "weekly · ", "drifting · ", "Held")
        in_both(browser, said["ticks"], "schedule-ticks", "4 runs", *ticks)
        in_both(browser, said["page"], "schedule-calendar", "weekly", "calendar", "Scheduled for")
        serving = sight.start_ui(folder, folder / "mlruns", "--mlflow-port", "0", "--prefect-port", "0")
        try:
            pages = json.loads(serving.stdout.readline())
            browser.get(pages["mlflow"])
            for theme, dark in (("dark", "true"), ("light", "false")):
                browser.execute_script("localStorage.setItem('_mlflow_dark_mode_toggle_enabled', arguments[0])", dark)
                sight.visit(browser, pages["mlflow"], f"schedule-mlflow-{theme}", "round 4", "site north")
                browser.find_element("link text", "round 4").click()
                sight.wait(browser, f"'{fault}'", lambda it: fault in sight.shown(it))
                sight.picture(browser, f"schedule-round-{theme}")
        finally:
            sight.stop(serving)


def test_errors_of_ours_end_a_tick_in_the_state_that_people_know():
    from fedrounds.flows.scheduled import outcome_of

    found = {
        type(error): outcome_of(error)[:2]
        for error in (DriftHold("a"), StudyBusy("b"), GateHalt("c"), ServiceError("d"))
    }
    assert {kind.__name__: (name, state.value) for kind, (name, state) in found.items()} == {
        "DriftHold": ("Held", "FAILED"),
        "StudyBusy": ("Skipped", "COMPLETED"),
        "GateHalt": ("Failed", "FAILED"),
        "ServiceError": ("Failed", "FAILED"),
    }


def test_a_tick_beside_a_run_by_hand_steps_back(house, weekly):
    with Ledger.open(weekly[0] / "mlruns" / "weekly" / "ledger.db") as ledger:
        ledger.acquire()
        done = house.ended(house.trigger(weekly[1]["id"]))
    assert done["state_name"] == "Skipped"
    assert done["state"]["message"].startswith(
        f"expected no other runner on this study, found one at work (pid {os.getpid()} on "
    )


def test_two_ticks_killed_in_mid_run_change_nothing(house, weekly, tmp_path):
    patient = Patient(scheduled(tmp_path / "killed", kills.ROUNDS, cron="0 3 * * 1"))
    patient.house, patient.deployment = house, house.deploy(patient.folder)["id"]
    rng = random.Random(20261)
    patient.kill(rng, "rounds")
    patient.kill(rng, "end")
    done = patient.finish()
    assert done["state"]["message"].endswith(", the last run did not reach its end: it goes on")
    patient.examine()
    assert not any("ended before" in kill for kill in patient.kills), patient.kills


def test_deploying_again_changes_what_is_there_and_doubles_nothing(house, weekly, hook):
    folder, said = weekly
    operations = folder / "operations.toml"
    operations.write_text(operations.read_text().replace('interval = "7d"', 'cron = "0 3 * * 1"'))
    again = house.deploy(folder)
    assert (again["id"], again["created"], again["calendar"]) == (said["id"], False, "cron 0 3 * * 1, UTC")
    (calendar,) = house.get(f"/deployments/{said['id']}")["schedules"]
    assert calendar["schedule"]["cron"] == "0 3 * * 1"
    automations = [it["name"] for it in house.ask("/automations/filter") if it["name"].startswith("weekly")]
    assert sorted(automations) == ["weekly · failed", "weekly · held", "weekly · missed"]
    blocks = house.get("/block_types/slug/webhook/block_documents")
    assert len([block for block in blocks if block["name"].startswith("fedrounds-weekly-")]) == 1
    operations.write_text(operations.read_text().replace(json.dumps([hook.url]), "[]"))
    assert house.deploy(folder)["notifications"] == []
    assert [it for it in house.ask("/automations/filter") if it["name"].startswith("weekly")] == []


# --- one machine ------------------------------------------------------------------------------------------------------


def test_without_a_server_one_line_says_how_to_get_one(program, tmp_path):
    folder = scheduled(tmp_path / "toy", 1, interval="6h")
    said = program("deploy", folder)
    assert (said.returncode, said.stdout) == (16, "")
    assert said.stderr.startswith("fedrounds: expected a Prefect server's address in PREFECT_API_URL, found none")
    assert said.stderr.count("\n") == 1
    assert "--serve" in said.stderr


def test_without_a_schedule_or_a_webhooks_variable_one_line_says_what_is_missing(house, program, tmp_path):
    folder = kills.initiated(tmp_path / "bare").folder
    said = program("deploy", folder, **house.known)
    assert said.returncode == 10
    assert said.stderr.startswith("fedrounds: expected a [schedule] in ")
    folder = scheduled(tmp_path / "secret", 1, interval="6h", notify_env="FEDROUNDS_WEBHOOK")
    said = program("deploy", folder, **house.known)
    assert said.returncode == 10
    assert said.stderr.startswith("fedrounds: expected a webhook's address in the variable FEDROUNDS_WEBHOOK")


def test_one_process_serves_a_workspace(house):
    with pytest.raises(StateError, match=r"expected to serve the workspace .*, found another process that does"):
        Served(house.served.home.parent)


def test_serving_brings_a_server_and_a_worker_and_leaves_nothing_behind(tmp_path, warm):
    folder = scheduled(tmp_path / "toy", 1, interval="6h")
    warm(folder / "mlruns")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    command = [FEDROUNDS, "deploy", str(folder), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept) as serving:
        lines = [serving.stdout.readline() for _ in range(6)]
        assert lines[0].startswith("study/toy created: every 6h, UTC; next tick ")
        password = folder / "mlruns" / ".prefect" / "password"
        assert password.stat().st_mode & 0o077 == 0
        assert password.read_text() in lines[4]
        url = lines[2].strip().removeprefix("its calendar: ").partition("/deployments/")[0]
        assert httpx.get(f"{url}/api/health", trust_env=False).status_code == 200
        assert httpx.post(f"{url}/api/deployments/filter", json={}, trust_env=False).status_code == 401
        patient = kills.Patient(folder)
        try:
            until(lambda: patient.helper(serving.pid, "fedrounds.tasks.worker"), within_s=10)
        finally:  # else a failure would wait for it for ever
            serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=30)
    assert (serving.returncode, said) == (0, "")
    patient.bury()
