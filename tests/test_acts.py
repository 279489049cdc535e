"""People's acts: in the ledger, on the command line, in MLflow; a ledger of the first release becomes one of the second."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedrounds.cli.main import main
from fedrounds.cli.run import done
from fedrounds.core.errors import StateError
from fedrounds.core.operations import Operations
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Decision, Ledger, Verdict, Visit, schema
from fedrounds.ledger.migrations import version_2
from fedrounds.tasks import folder as folders
from fedrounds.tasks.mailboxes import read_key
from fedrounds.tasks.run import opened

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)
VERSION_1 = """
CREATE TABLE fedrounds_ledger (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
CREATE TABLE study (id INTEGER NOT NULL, name VARCHAR NOT NULL, digest VARCHAR NOT NULL, lineage VARCHAR NOT NULL, created DOUBLE NOT NULL,
    protocol JSON NOT NULL, PRIMARY KEY (id));
CREATE TABLE operations (version INTEGER NOT NULL, from_round INTEGER NOT NULL, operations JSON NOT NULL, PRIMARY KEY (version));
CREATE TABLE failures (visit INTEGER NOT NULL, attempt INTEGER NOT NULL, round INTEGER NOT NULL, ask VARCHAR NOT NULL, reason TEXT NOT NULL,
    started DOUBLE NOT NULL, failed DOUBLE NOT NULL, PRIMARY KEY (visit, attempt));
CREATE TABLE lease (id INTEGER NOT NULL, owner VARCHAR NOT NULL, pid INTEGER NOT NULL, host VARCHAR NOT NULL, born VARCHAR NOT NULL,
    taken DOUBLE NOT NULL, expires DOUBLE NOT NULL, PRIMARY KEY (id));
CREATE TABLE notes ("key" VARCHAR NOT NULL, value JSON NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE visits (visit INTEGER NOT NULL, round INTEGER NOT NULL, ask VARCHAR NOT NULL, base VARCHAR NOT NULL, model VARCHAR NOT NULL,
    suite_hash VARCHAR NOT NULL, operations_version INTEGER NOT NULL, started DOUBLE NOT NULL, committed DOUBLE NOT NULL, record JSON NOT NULL,
    checksum VARCHAR NOT NULL, state BLOB NOT NULL, PRIMARY KEY (visit), FOREIGN KEY(operations_version) REFERENCES operations (version));
CREATE TABLE projected (visit INTEGER NOT NULL, at DOUBLE NOT NULL, PRIMARY KEY (visit), FOREIGN KEY(visit) REFERENCES visits (visit));
CREATE TABLE verdicts (visit INTEGER NOT NULL, site VARCHAR NOT NULL, passed BOOLEAN NOT NULL, verdict JSON NOT NULL, PRIMARY KEY (visit, site),
    FOREIGN KEY(visit) REFERENCES visits (visit));
CREATE TABLE promotions (visit INTEGER NOT NULL, round INTEGER NOT NULL, promoted BOOLEAN NOT NULL, reason TEXT NOT NULL, model VARCHAR NOT NULL,
    PRIMARY KEY (visit, round), FOREIGN KEY(visit) REFERENCES visits (visit));
INSERT INTO fedrounds_ledger VALUES (1, 1);
"""


def visit(number, *decisions):
    state = RunState(STUDY.digest, number, 0, np.full(3, number / 3), {}, {})
    base = replace(state, theta=np.full(3, (number - 1) / 3)).model_digest
    return Visit(number, "train", base, state, {"loss": 1.0}, "suite", 1, 100.0, promotions=decisions)


@pytest.fixture
def ledger(tmp_path):
    """Three rounds: the first was promoted, the second waits."""
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        filled(ledger)
        yield ledger


def filled(ledger):
    ledger.begin(STUDY)
    ledger.note_operations(Operations(rounds=3), 1)
    ledger.commit(0, visit(1))
    ledger.commit(1, visit(2, Decision(1, True, "first", "a")))
    ledger.commit(2, visit(3, Decision(2, False, "passed", "b", pending=True)))


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_an_act_comes_back_as_it_was_recorded_and_moves_the_champion(tmp_path, ledger):
    assert (ledger.standing().champion, ledger.standing().challenger) == (1, 2)
    ledger.acquire()
    first = ledger.act("promote", 2, "seen by the board", "ada")
    back = ledger.act("rollback", 1, "complaints", "bob")
    ledger.release()
    assert (first.number, first.visit, first.act, first.round, first.model) == (1, 3, "promote", 2, "b")
    assert (back.number, back.visit, back.model, back.reason, back.by) == (2, 3, "a", "complaints", "bob")
    with Ledger.open(tmp_path / "ledger.db") as other:
        assert other.acts() == [first, back]
        assert (other.standing().champions, other.standing().challenger) == ((1,), None)


def test_an_act_needs_the_lease(ledger):
    with pytest.raises(StateError, match="expected this process to have the lease"):
        ledger.act("promote", 2, "", "ada")
    assert ledger.acts() == []


def test_a_round_that_was_not_trained_has_no_visit(ledger):
    assert [ledger.closed(round) for round in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(StateError, match=r"expected round 4 in the ledger .*, found none: see `fedrounds status`"):
        ledger.closed(4)


def test_the_gates_of_a_round_are_those_in_force_when_it_was_trained(ledger):
    from fedrounds.tasks.acts import ungated

    record = {"sites": {"east": {}, "west": {}}, "excluded": {"north": "failed"}, "refused": {}}
    passed, not_passed = Verdict(True, {}), Verdict(False, {})
    given = {"east": passed, "north": not_passed, "west": not_passed, "gone": not_passed}
    ledger.commit(
        3, replace(visit(4), record=record, verdicts=given)
    )  # west took part with a warning, gone left the roster
    ledger.commit(4, replace(visit(5), record={**record, "excluded": {}}, verdicts={"west": passed, "north": passed}))
    assert [ungated(ledger, round) for round in (0, 4, 5)] == [[], ["north", "west"], []]


def version_1(path):
    """A ledger as the first release made it, with two rounds."""
    with Ledger.open(path.with_name("new.db")) as ledger:
        filled(ledger)
    with closing(sqlite3.connect(path)) as old, old:
        old.executescript(VERSION_1)
        old.execute("ATTACH ? AS new", (str(path.with_name("new.db")),))
        for table in ("study", "operations", "visits"):
            old.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        old.execute("INSERT INTO promotions VALUES (2, 1, 1, 'first', 'a'), (3, 2, 0, 'kept', 'b')")


def tables(path):
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        return {name: [row[1:4] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}


def test_a_ledger_of_version_1_is_brought_up_to_date_in_place_and_loses_nothing(tmp_path):
    path = tmp_path / "ledger.db"
    version_1(path)
    with Ledger.open(path) as ledger, Ledger.open(tmp_path / "new.db") as new:
        assert ledger.promotions() == [Decision(1, True, "first", "a", 2), Decision(2, False, "kept", "b", 3)]
        assert ledger.head().state.model_digest == new.head().state.model_digest
        assert ledger.visits() == new.visits()
        ledger.acquire()
        ledger.act("promote", 2, "better on reflection", "ada")
        ledger.commit(3, visit(4, Decision(3, False, "passed", "c", pending=True)))
        assert (ledger.standing().champion, ledger.standing().challenger) == (2, 3)
    assert tables(path) == tables(tmp_path / "new.db")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM fedrounds_ledger").fetchall() == [(schema.VERSION,)]


def test_an_upgrade_that_is_cut_short_leaves_version_1_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    version_1(path)
    before = tables(path)

    def pulled(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(version_2.op, "create_table", pulled)  # the new column is there by then
        with pytest.raises(KeyboardInterrupt):
            Ledger.open(path)
    assert tables(path) == before
    Ledger.open(path).close()
    assert tables(path) != before


# --- on the command line and in MLflow --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waiting(toy_study, program, tmp_path_factory, prefect_beside):
    """A study whose champion somebody rolled back to round 1 (and was killed before MLflow heard of it), and which then ran a round
    further under a rule that lets a person have the last word."""
    folder = toy_study.copy(tmp_path_factory.mktemp("waiting") / "toy")
    with ledger_of(folder) as ledger:
        champions = ledger.standing().champions
        assert champions[0] == 1
        assert len(champions) > 1
        ledger.acquire()
        ledger.act("rollback", 1, "two hospitals complained", "bob")
        ledger.release()
    assert aliases(folder) == {"champion": champions[-1]}
    operations = folder / "operations.toml"
    text = operations.read_text().replace("confidence = 0.95", "confidence = 0")
    operations.write_text(text.replace('approval = "none"', 'approval = "required"'))
    ran = program("run", folder, "--more", 1, "--json", **prefect_beside)
    assert (ran.returncode, ran.stderr) == (0, "")
    return SimpleNamespace(folder=folder, before=champions[-1], said=json.loads(ran.stdout))


def ledger_of(folder):
    own = folder / "mlruns" / "toy"
    return Ledger.open(own / "ledger.db", read_key(own / "log.key"))


def store(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")


def aliases(folder):
    """Alias -> version, which is the round in a store of one lineage."""
    found = store(folder).get_registered_model("toy").aliases
    return {alias: int(version) for alias, version in found.items()}


def shown(folder, round):
    """What MLflow says of a round: the version's tags, the run's, the document, the description."""
    (version,) = (
        v for v in store(folder).search_model_versions("name = 'toy'") if v.tags["fedrounds.round"] == str(round)
    )
    run = store(folder).get_run(version.run_id)
    document = json.loads(
        (folder / "mlruns" / "artifacts" / version.run_id / "artifacts" / "decision.json").read_text()
    )
    keys = ("fedrounds.decision", "fedrounds.reason")
    assert [version.tags[key] for key in keys] == [run.data.tags[key] for key in keys]
    return version.tags["fedrounds.decision"], version.tags["fedrounds.reason"], document, version.description


def test_an_act_that_mlflow_had_not_heard_of_is_there_after_the_next_run_and_was_no_hand_of_a_stranger(waiting):
    assert waiting.said["reports"] == []
    assert (waiting.said["champion"], waiting.said["challenger"]) == (1, 4)
    assert aliases(waiting.folder) == {"champion": 1, "challenger": 4}
    decision, reason, document, description = shown(waiting.folder, 1)
    assert (decision, reason) == ("promoted", "rolled back to round 1 by bob: two hospitals complained")
    assert [(act["act"], act["round"], act["by"]) for act in document["acts"]] == [("rollback", 1, "bob")]
    assert "Rolled back to round 1 by bob: two hospitals complained." in description
    assert shown(waiting.folder, waiting.before)[0] == "rolled back"


def test_the_next_run_compares_with_the_champion_that_people_chose(waiting):
    with ledger_of(waiting.folder) as ledger:
        head = ledger.head()
        assert head.state.champion.theta.tolist() == ledger.state(ledger.closed(1)).theta.tolist()
        assert [entry.record["champion"] for entry in ledger.visits()[-2:]] == [1, 1]
        decision = ledger.deciding(4).record["decision"]
    assert (decision["outcome"], decision["promote"]) == ("pending", False)
    assert decision["paired"]["n"] == sum(site["n"] for site in decision["sites"].values())
    assert shown(waiting.folder, 4)[:2] == ("pending", decision["reason"])
    assert waiting.said["decision"] == decision


def test_the_status_shows_who_is_champion_who_waits_and_who_acted_last(waiting, capfd):
    assert main(["status", str(waiting.folder)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "champion: round 1 — rolled back to round 1 by bob: two hospitals complained" in lines
    assert [line for line in lines if line.startswith("challenger: round 4 — waits for approval: the loss fell by")]
    assert [
        line for line in lines if line.startswith("last act: rolled back to round 1 by bob: two hospitals complained (")
    ]


BAD = {
    "a round that was not scored": ("promote --round 9", "expected a round that was scored (1 to 4), found 9 in "),
    "a champion before the first": ("rollback --reason x", "expected an earlier champion to go back to in "),
    "a round of no number": ("promote --round 0", "expected a number of rounds above 0, found '0'"),
    "both at once": ("promote --round 4 --reject", "argument --reject: not allowed with argument --round"),
    "no reason": ("rollback", "the following arguments are required: --reason"),
    "an empty reason": ("rollback --reason ' '", "expected a reason, found an empty text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(case, waiting, capfd):
    import shlex

    words, said = BAD[case]
    command, *options = shlex.split(words)
    assert main([command, str(waiting.folder), *options]) in (2, 15)
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    with ledger_of(waiting.folder) as ledger:
        assert len(ledger.acts()) == 1


def test_nobody_acts_while_a_runner_is_at_work(waiting, capfd):
    with ledger_of(waiting.folder) as runner:
        runner.acquire()
        assert main(["promote", str(waiting.folder)]) == 15
        runner.release()
    assert "expected no other runner on this study, found one at work" in capfd.readouterr().err


def test_a_study_that_has_not_run_has_nothing_to_promote(new_study, capfd):
    assert main(["promote", str(new_study)]) == 15
    assert "expected a study that has run in" in capfd.readouterr().err


ASKED = """
# The flow `approve` on a Prefect server: suspended by a deployment and turned down by one answer, then nothing is left to ask; in another
# folder paused by hand and approved. Each is answered through the API alone.
import asyncio, json, os, sys
from pathlib import Path
from fedrounds.cli.run import surroundings
from fedrounds.tasks.forked import alone
from fedrounds.tasks.prefect_server import PrefectServer, settings

home, templates, suspended, paused = sys.argv[1:]
server = PrefectServer(home, Path(home) / "log", services=True, ui=False, templates=templates, begin=False)
server.begin(fork=alone())
here = surroundings(settings(home, server.api_url))
here.__enter__()
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from fedrounds.flows.approve import approve

server.wait()
out = {}


async def by_deployment(client):
    flow = await client.create_flow(approve)
    deployment = await client.create_deployment(flow, "approve", parameters={"folder": suspended})
    run = await client.create_flow_run_from_deployment(deployment)

    async def execute():
        found = await client.read_flow_run(run.id)
        return await run_flow_async(approve, found, parameters=found.parameters, return_type="state")

    try:
        await execute()
    except Pause:  # its process is gone from here on
        out["suspended"] = (await client.read_flow_run(run.id)).state.name
    keys = (await client.read_flow_run(run.id)).state.state_details.run_input_keyset
    out["shown"] = await client.read_flow_run_input(run.id, keys["description"])
    out["unsigned"] = (await client.resume_flow_run(run.id, run_input={"approve": True})).details.reason
    await client.resume_flow_run(run.id, run_input={"approve": False, "by": "bob", "reason": "not yet"})
    out["rejected"] = (await execute()).message
    out["nothing"] = (await approve(suspended, return_state=True)).message


async def by_hand(client):
    asked = asyncio.create_task(approve(paused, poll_s=1, return_state=True))
    waiting = FlowRunFilter(state={"type": {"any_": ["PAUSED"]}})
    while not (found := await client.read_flow_runs(flow_run_filter=waiting)) and not asked.done():
        await asyncio.sleep(0.1)
    answer = {"approve": True, "by": "ada"}
    # Prefect shows a run as paused a moment before it has stored the form: until then it turns answers down
    while (await client.resume_flow_run(found[0].id, run_input=answer)).status != SetStateStatus.ACCEPT:
        await asyncio.sleep(0.1)
    out["promoted"] = (await asked).message


async def main():
    async with get_client() as client:
        await by_deployment(client)
        await by_hand(client)


asyncio.run(main())
server.stop()
print(json.dumps(out))
"""


def test_a_person_answers_in_prefect(waiting, toy_study, templates, tmp_path, python):
    other = replace(toy_study, folder=waiting.folder).copy(tmp_path / "toy")
    third = replace(toy_study, folder=waiting.folder).copy(tmp_path / "third" / "toy")
    ran = python(ASKED, tmp_path / "prefect", templates, other, third, timeout=120)
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert out["suspended"] == "Suspended"
    assert "### toy: the version of round 4" in out["shown"]
    assert "| worst hospital's mean difference, at most | 0.05 |" in out["shown"]
    assert "'by' is a required property" in out["unsigned"]
    assert out["rejected"].startswith("round 4 rejected by bob: not yet (")
    assert out["nothing"] == "no version waits for approval"
    assert out["promoted"].startswith("round 4 promoted by ada (")
    assert aliases(other) == {"champion": 1}
    assert shown(other, 4)[:2] == ("rejected", "rejected by bob: not yet")
    assert aliases(third) == {"champion": 4}
    assert shown(third, 4)[:2] == ("promoted", "promoted by ada")


def test_the_command_promotes_goes_back_and_says_so_everywhere(waiting, program, capfd):
    folder = waiting.folder
    ended = program("promote", folder, "--reason", "seen by the board", "--by", "ada")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "toy: round 4 promoted by ada: seen by the board; the champion is round 4.\n"
    assert aliases(folder) == {"champion": 4}
    decision, reason, document, description = shown(folder, 4)
    assert (decision, reason) == ("promoted", "promoted by ada: seen by the board")
    assert (document["outcome"], document["now"]) == ("pending", "promoted")
    assert "Promoted by ada: seen by the board." in description
    with ledger_of(folder) as ledger:
        assert main(["promote", str(folder)]) == 15  # nothing waits any more
        assert "expected a version that waits for approval in" in capfd.readouterr().err
        read = folders.read(folder)
        with opened(read, folders.state_of(folder, "toy")) as run:  # what the next run goes on from
            assert run.state.champion.round == 4
            assert run.state.champion.theta.tolist() == ledger.state(ledger.closed(4)).theta.tolist()
        store(folder).set_registered_model_alias("toy", "champion", "2")  # meanwhile somebody moves the alias by hand
        assert main(["rollback", str(folder), "--reason", "complaints", "--by", "eve", "--json"]) == 0
        said = json.loads(capfd.readouterr().out)
        assert (said["act"]["act"], said["act"]["round"], said["champion"], said["challenger"]) == (
            "rollback",
            1,
            1,
            None,
        )
        (report,) = said["reports"]
        assert report.startswith(
            "the alias 'champion' of 'toy' was moved by hand: found on version 2, put back on version 4"
        )
        assert [act.act for act in ledger.acts()] == ["rollback", "promote", "rollback"]
    assert aliases(folder) == {"champion": 1}
    assert shown(folder, 4)[0] == "rolled back"
    assert [act["by"] for act in shown(folder, 1)[2]["acts"]] == ["bob", "eve"]
    lineage = store(folder).search_runs([store(folder).get_experiment_by_name("toy").experiment_id])
    notes = [run.data.tags["mlflow.note.content"] for run in lineage if run.data.tags["fedrounds.about"] == "lineage"]
    assert "Champion: **round 1**." in notes[0]
    assert "Round 1 is champion: rolled back to round 1 by eve: complaints." in notes[0]


def test_an_approval_of_a_version_that_waits_no_more_is_refused(waiting):
    from fedrounds.tasks import acts

    place = folders.state_of(waiting.folder, "toy")
    for answer in (acts.promote, acts.reject):
        with pytest.raises(
            StateError, match=r"expected round 4 to wait for approval in .*, found none: it was decided"
        ):
            answer(place, reason="", by="ada", waiting=4)


def test_acts_written_to_mlflow_twice_change_nothing(waiting):
    from fedrounds.tasks.track import Projection

    before = aliases(waiting.folder), [shown(waiting.folder, round) for round in (1, 2, 3, 4)]
    with ledger_of(waiting.folder) as ledger:
        read, place = folders.read(waiting.folder), folders.state_of(waiting.folder, "toy")
        assert done(read, place)
        ledger.mark_acts_projected(1)  # as if the projector had been killed just before it noted that it was done
        assert not done(read, place)  # so that `fedrounds run` has that to do
        projection = Projection(ledger, waiting.folder / "mlruns")
        assert projection.project() == 0
        assert projection.reports == []
        assert ledger.unprojected_acts() == []
        assert done(read, place)
        store(waiting.folder).set_registered_model_alias("toy", "challenger", "3")  # by hand, and nobody waits
        again = Projection(ledger, waiting.folder / "mlruns")
        again.project()
    assert again.reports == [
        "the alias 'challenger' of 'toy' was moved by hand: found on version 3, taken away, as the ledger says"
    ]
    assert (aliases(waiting.folder), [shown(waiting.folder, round) for round in (1, 2, 3, 4)]) == before
