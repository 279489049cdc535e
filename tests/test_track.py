"""MLflow is a projection of the ledger: its shape, its models, and that writing it twice changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow import MlflowClient

from fedrounds import sources
from fedrounds.core.plan import build
from fedrounds.core.preprocess import clean
from fedrounds.core.preprocess import encode as encode_rows
from fedrounds.core.study import Number
from fedrounds.ledger import Ledger
from fedrounds.reports.page import html
from fedrounds.tasks import folder as folders
from fedrounds.tasks.report import evidence
from fedrounds.tasks.track import Projection

FIRST, MORE = 3, 2  # rounds of the first run, and of the one after it
LAST = FIRST + MORE


@pytest.fixture(scope="module")
def tracked(toy_study, tmp_path_factory, program, prefect_beside):
    """A study that ran twice; between the runs somebody moved the alias in the UI."""
    folder = toy_study.copy(tmp_path_factory.mktemp("tracked") / "toy")
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    client.set_registered_model_alias("toy", "champion", "1")
    ran = program("run", folder, "--more", MORE, "--json", **prefect_beside)
    assert (ran.returncode, ran.stderr) == (0, "")
    with Ledger.open(folder / "mlruns" / "toy" / "ledger.db") as ledger:
        experiment = client.get_experiment_by_name("toy")
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        by_about = {run.data.tags["fedrounds.about"]: run for run in runs}
        assert len(by_about) == len(runs)
        versions = {int(v.tags["fedrounds.round"]): v for v in client.search_model_versions("name = 'toy'")}
        yield SimpleNamespace(
            folder=folder, client=client, ledger=ledger, runs=by_about, versions=versions, said=json.loads(ran.stdout)
        )


def steps(tracked, about: str, metric: str) -> list[int]:
    return [point.step for point in tracked.client.get_metric_history(tracked.runs[about].info.run_id, metric)]


def test_the_lineage_is_a_run_with_one_point_a_round_over_both_commands(tracked):
    for metric in ("log_loss", "auc", "brier", "accuracy"):
        assert steps(tracked, "lineage", metric) == list(range(LAST + 1))
    assert steps(tracked, "lineage", "training_loss") == list(range(LAST))
    scored = [entry.record for entry in tracked.ledger.visits() if entry.record["scored"] is not None]
    expected = {record["scored"]: record["metrics"]["auc"] for record in reversed(scored)}
    history = tracked.client.get_metric_history(tracked.runs["lineage"].info.run_id, "auc")
    assert {point.step: point.value for point in history} == expected


def test_every_round_and_every_site_is_a_finished_child(tracked):
    rounds = {f"round {number}" for number in range(1, LAST + 1)}
    sites = {"site east", "site north", "site south", "site west"}
    assert tracked.runs.keys() == rounds | sites | {"lineage"}
    lineage = tracked.runs["lineage"].info.run_id
    for about, run in tracked.runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("mlflow.parentRunId") == (None if about == "lineage" else lineage)
        assert run.data.tags["fedrounds.lineage"] == tracked.ledger.lineage().lineage
    for site in sites:
        assert steps(tracked, site, "log_loss") == list(range(LAST + 1))
        assert steps(tracked, site, "training_loss") == list(range(LAST))
    for number in range(1, LAST + 1):
        assert steps(tracked, f"round {number}", "auc") == [number]
        files = {file.path for file in tracked.client.list_artifacts(tracked.runs[f"round {number}"].info.run_id)}
        assert {"model", "parameters.npz"} <= files


def test_every_round_is_a_version_that_says_where_it_comes_from(tracked):
    assert tracked.versions.keys() == set(range(1, LAST + 1))
    suite = folders.read(tracked.folder).suite.hash
    decisions = {decision.round: decision for decision in tracked.ledger.promotions()}
    for entry in tracked.ledger.visits():
        if entry.ask == "train":
            version = tracked.versions[entry.round]
            assert version.run_id == tracked.runs[f"round {entry.round}"].info.run_id
            assert version.tags == {
                "fedrounds.lineage": tracked.ledger.lineage().lineage,
                "fedrounds.round": str(entry.round),
                "fedrounds.study_digest": tracked.ledger.lineage().digest,
                "fedrounds.suite_hash": suite,
                "fedrounds.model_digest": entry.model,
                "fedrounds.log_index": str(tracked.ledger.logged("visit", entry.visit)[0]),
                "fedrounds.log_checkpoint": tracked.ledger.logged("visit", entry.visit)[1],
                "fedrounds.decision": "promoted" if decisions[entry.round].promoted else "kept",
                "fedrounds.reason": decisions[entry.round].reason,
            }


def test_every_decision_is_on_the_rounds_run_as_tags_and_as_a_document(tracked):
    scored = {entry.record["scored"]: entry.record for entry in tracked.ledger.visits() if entry.record["decision"]}
    assert scored.keys() == set(range(1, LAST + 1))
    for number, record in scored.items():
        run = tracked.runs[f"round {number}"]
        found = json.loads(
            (tracked.folder / run.info.artifact_uri.removeprefix("file://") / "decision.json").read_text()
        )
        outcome = record["decision"]["outcome"]
        assert found == {"round": number, **record["decision"], "now": outcome, "acts": []}
        assert run.data.tags["fedrounds.decision"] == outcome
        assert run.data.tags["fedrounds.reason"] == record["decision"]["reason"] == found["reason"]
        assert (found["paired"] is None) == (number == 1)


def test_an_alias_moved_by_hand_is_put_back_and_reported(tracked):
    promoted = [decision.round for decision in tracked.ledger.promotions() if decision.promoted]
    aliases = tracked.client.get_registered_model("toy").aliases
    assert aliases == {"champion": tracked.versions[promoted[-1]].version}
    (report,) = tracked.ledger.noted("reports")
    assert report.startswith("the alias 'champion' of 'toy' was moved by hand: found on version 1, put back on version")


PREDICT = """
import sys, warnings; warnings.simplefilter("ignore")
class WithoutTorch:  # as where it is not installed: skops would have it imported for nothing
    def find_spec(name, path, target=None):
        if name == "torch": raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, WithoutTorch)
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/toy@champion")
rows = pd.read_json(sys.argv[2], orient="split", dtype=False)
rows[rows.select_dtypes("number").columns] = rows.select_dtypes("number").astype(float)  # MLflow takes no int64 for a double
np.save(sys.argv[3], model.predict(rows))
"""


def test_the_champion_predicts_on_raw_rows_in_a_process_without_us(tracked, tmp_path):
    import pandas as pd

    read = folders.read(tracked.folder)
    plan, study = build(read.study), read.study
    table = sources.load(read.sites["north"].source, read.data, "north")
    cohort = clean(table, study, "north")
    rows = pd.DataFrame({feature.name: table.columns[feature.name] for feature in study.features})
    for feature in study.features:
        if isinstance(feature, Number):
            rows[feature.name] = pd.to_numeric(rows[feature.name], errors="coerce")
    rows = rows[[label in ("yes", "no") for label in table.columns["readmitted"]]].replace("", None)
    rows.to_json(tmp_path / "rows.json", orient="split", double_precision=15)
    uri = f"sqlite:///{tracked.folder / 'mlruns' / 'mlflow.db'}"
    subprocess.run(
        [sys.executable, "-c", PREDICT, uri, tmp_path / "rows.json", tmp_path / "p.npy"], check=True, cwd=tmp_path
    )
    found = np.load(tmp_path / "p.npy")
    round_ = [decision.round for decision in tracked.ledger.promotions() if decision.promoted][-1]
    visit = next(e.visit for e in tracked.ledger.visits() if (e.ask, e.round) == ("train", round_))
    state = tracked.ledger.state(visit)
    encoded = encode_rows(cohort, study, state.statistics, plan.ones)
    expected = np.empty(cohort.patients)
    expected[~cohort.valid] = plan.family.predict(state.theta, encoded.X)
    expected[cohort.valid] = plan.family.predict(state.theta, encoded.X_valid)
    assert len(found) == len(expected) > 250
    np.testing.assert_allclose(found[:, 1], expected, rtol=0, atol=1e-12)


def test_models_are_stored_without_pickle_and_with_made_up_rows(tracked):
    model = tracked.folder / "mlruns" / "artifacts" / tracked.versions[1].run_id / "artifacts" / "model"
    names = {file.name for file in model.iterdir()}
    assert {"MLmodel", "model.skops", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib"))]
    example = json.loads((model / "input_example.json").read_text())
    assert [row[0] for row in example["data"]] == [41.0, 64.0, 87.0]  # evenly over the dictionary's range of ages


# --- what people read -------------------------------------------------------------------------------------------------


def artifacts(tracked, about: str):
    return tracked.folder / "mlruns" / "artifacts" / tracked.runs[about].info.run_id / "artifacts"


def test_the_lineages_note_leads_to_its_report_and_the_report_is_the_ledgers(tracked):
    run, place = tracked.runs["lineage"], artifacts(tracked, "lineage")
    address = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report.html"
    assert run.data.tags["mlflow.note.content"].startswith(f"**[Open the report]({address})**")
    assert (place / "report.html").read_text() == html(evidence(tracked.ledger))
    champion = [decision.round for decision in tracked.ledger.promotions() if decision.promoted][-1]
    card = (artifacts(tracked, f"round {champion}") / "model_card.md").read_text()
    assert (place / "model_card.md").read_text() == card
    assert card.startswith(f"# Model card: Will this patient be readmitted within 30 days?, round {champion}\n")


def test_every_version_is_described_and_every_champion_has_a_card(tracked):
    for decision in tracked.ledger.promotions():
        said = tracked.versions[decision.round].description
        assert said.startswith(f"Round {decision.round}: log-loss ")
        assert decision.reason[1:] in said
        assert said.endswith("it must not guide the care of a patient.")
        assert (artifacts(tracked, f"round {decision.round}") / "model_card.md").exists() == decision.promoted


# --- again ------------------------------------------------------------------------------------------------------------

CHANGES = "last_updated"  # when MLflow last looked at a thing is no fact about it


def everything(folder) -> dict[str, object]:
    """All of MLflow: each table's rows, and the hash of each artifact."""
    found: dict[str, object] = {}
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        for (table,) in store.execute("select name from sqlite_master where type = 'table'").fetchall():
            cursor = store.execute(f"select * from {table}")
            keep = [i for i, column in enumerate(cursor.description) if not column[0].startswith(CHANGES)]
            found[table] = sorted(repr([row[i] for i in keep]) for row in cursor)
    for file in sorted((folder / "mlruns" / "artifacts").rglob("*")):
        if file.is_file():
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def projected(folder) -> Projection:
    projection = Projection(Ledger.open(folder / "mlruns" / "toy" / "ledger.db"), folder / "mlruns")
    projection.project()
    projection.tell()
    projection.end(folder / "mlruns" / "toy" / "plots")
    projection.ledger.close()
    return projection


def forget(folder, after: int = 0) -> None:
    """As if the projector had been killed just before it noted that it was done."""
    with closing(sqlite3.connect(folder / "mlruns" / "toy" / "ledger.db")) as ledger:
        ledger.execute("delete from projected where visit > ?", (after,))
        ledger.commit()


@pytest.mark.parametrize("after", [0, 4])
def test_projecting_a_second_time_changes_nothing(tracked, after):
    before = everything(tracked.folder)
    forget(tracked.folder, after)
    assert projected(tracked.folder).reports == []
    assert everything(tracked.folder) == before
    assert tracked.ledger.unprojected() == []


def test_a_run_that_was_killed_before_it_was_ended_is_ended(tracked):
    before = everything(tracked.folder)
    run = tracked.runs["round 2"].info.run_id
    tracked.client.update_run(run, status="RUNNING")
    forget(tracked.folder)
    projected(tracked.folder)
    assert tracked.client.get_run(run).info.status == "FINISHED"
    assert everything(tracked.folder) == before


def test_a_deleted_alias_is_put_back_and_reported(tracked):
    wanted = tracked.client.get_registered_model("toy").aliases["champion"]
    tracked.client.delete_registered_model_alias("toy", "champion")
    (report,) = projected(tracked.folder).reports
    assert report.endswith(f"found on no version, put back on version {wanted}, as the ledger says")
    assert tracked.client.get_registered_model("toy").aliases == {"champion": wanted}
    assert projected(tracked.folder).reports == []


def test_an_alias_that_waits_for_a_killed_projector_is_no_report(tracked):
    wanted = tracked.client.get_registered_model("toy").aliases["champion"]
    promotions = [decision for decision in tracked.ledger.promotions() if decision.promoted]
    earlier, last = promotions[-2:]
    tracked.client.set_registered_model_alias("toy", "champion", tracked.versions[earlier.round].version)
    forget(tracked.folder, after=last.visit - 1)
    assert projected(tracked.folder).reports == []
    assert tracked.client.get_registered_model("toy").aliases == {"champion": wanted}


def test_a_visit_that_closes_while_the_projector_looks_is_not_taken_for_written(tracked, tmp_path):
    shutil.copy(tracked.folder / "mlruns" / "toy" / "ledger.db", tmp_path / "ledger.db")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        ledger.execute("delete from projected")
        ledger.commit()
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        decisions, waiting = ledger.promotions(), ledger.unprojected()
        assert max(decision.visit for decision in decisions if decision.promoted) > 2  # so that it matters
        looks = [2]  # at the first look two visits had closed, at later ones all

        def closed(visits):
            last = looks.pop() if looks else LAST + 9
            return [visit for visit in visits if getattr(visit, "visit", visit) <= last]

        ledger.promotions, ledger.unprojected = lambda: closed(decisions), lambda: closed(waiting)
        projection = Projection(ledger, tmp_path)
        assert projection.project() == 2  # what had closed when it began
        assert projection.project() == len(waiting)  # what closed meanwhile was not taken for written
        assert projection.reports == []
        rounds = [decision.round for decision in decisions if decision.promoted]
        found = projection.client.get_registered_model("toy").aliases
        assert found == {"champion": projection.versions[rounds[-1]]}
