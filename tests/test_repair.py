"""`fedrounds repair`: MLflow's store, lost or half lost, is the same as before once the ledger has told it again."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import sqlite3
import zipfile
from contextlib import closing

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

NOTHING = {"runs": 0, "versions": 0, "files": 0, "tags": 0, "aliases": 0, "undeleted": 0}


@pytest.fixture(scope="module")
def acted(toy_study, program, tmp_path_factory):
    """A study whose champion somebody rolled back."""
    folder = toy_study.copy(tmp_path_factory.mktemp("acted") / "toy")
    done = program("rollback", folder, "--to", 1, "--reason", "two hospitals complained", "--by", "ada")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(acted, tmp_path):
    """A copy that may be broken."""
    shutil.copytree(acted, tmp_path / "toy")
    with closing(sqlite3.connect(tmp_path / "toy" / "mlruns" / "mlflow.db")) as store, store:
        for table, columns in {
            "experiments": ("artifact_location",),
            "runs": ("artifact_uri",),
            "model_versions": ("source", "storage_location"),
        }.items():
            for column in columns:
                store.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(acted), str(tmp_path / "toy"))
                )
    return tmp_path / "toy"


looks = itertools.count()


def client_of(folder):
    return MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")


def held(folder):
    """All that MLflow holds of the study, with runs called by what they are about instead of by their ids."""
    seen = (
        folder.parent / f"seen-{next(looks)}.db"
    )  # MLflow keeps a store of the same address open, also when its file is gone
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store, closing(sqlite3.connect(seen)) as copy:
        store.backup(copy)
    client = MlflowClient(f"sqlite:///{seen}")
    experiment = client.get_experiment_by_name("toy")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=1000)
    names = {run.info.run_id: run.data.tags["fedrounds.about"] for run in runs}
    assert len(set(names.values())) == len(names)

    def named(text):
        for run, name in names.items():
            text = text.replace(run, f"<{name}>")
        return re.sub(r"#/experiments/\d+", "#/experiments/<toy>", text)

    found = {"experiment": (experiment.lifecycle_stage, dict(experiment.tags), experiment.artifact_location)}
    for run in runs:
        about, info = names[run.info.run_id], run.info
        points = [
            (point.key, point.step, point.value, point.timestamp)
            for key in run.data.metrics
            for point in client.get_metric_history(info.run_id, key)
        ]
        found[about] = {
            "info": (info.run_name, info.status, info.start_time, info.end_time, info.lifecycle_stage),
            "tags": {key: named(value) for key, value in run.data.tags.items()},
            "params": run.data.params,
            "points": sorted(points),
            "files": files(folder / "mlruns" / "artifacts" / info.run_id / "artifacts", named),
        }
        assert len(set(points)) == len(points)
    model = client.get_registered_model("toy")
    found["model"] = (model.description, dict(model.tags), dict(model.aliases))
    for version in client.search_model_versions("name = 'toy'"):
        found[f"version {version.version}"] = (
            version.description,
            dict(version.tags),
            named(version.source),
            names[version.run_id],
        )
    return found


def files(folder, named):
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            if file.name == "MLmodel":  # it says when it was written, and under which random id
                content = re.sub(r"(model_uuid|utc_time_created): .*", "", named(content.decode())).encode()
            if file.suffix in (
                ".npz",
                ".skops",
            ):  # archives say when they were packed; skops calls objects by their place in memory
                with zipfile.ZipFile(file) as archive:
                    packed = [archive.read(name) for name in archive.namelist()]
                content = b"".join(sorted(re.sub(rb'"(__id__|file)": ("[^"]*"|\d+)', b"", it) for it in packed))
            found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def repaired(program, folder):
    done = program("repair", folder, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said.pop("study"), said.pop("visits")) == ("toy", 5)
    return said


def test_a_lost_store_comes_back_as_it_was(folder, program):
    before = held(folder)
    assert before["model"][2] == {"champion": 1}
    for lost in ("mlflow.db", "artifacts", ".cache"):
        place = folder / "mlruns" / lost
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert repaired(program, folder) == {**NOTHING, "runs": 8, "versions": 3, "aliases": 1}
    after = held(folder)
    assert after.keys() == before.keys()
    for what, said in before.items():
        for part, value in said.items() if isinstance(said, dict) else [("all", said)]:
            assert (what, part, after[what][part] if isinstance(said, dict) else after[what]) == (what, part, value)
    plots = folder / "mlruns" / "toy" / "plots"
    drawn = {file.name for file in plots.iterdir()}
    shutil.rmtree(plots)
    assert repaired(program, folder) == NOTHING
    assert {file.name for file in plots.iterdir()} == drawn == {"calibration.png", "rounds.png", "sites.png"}
    done = program("repair", folder)
    assert done.stdout == "toy: MLflow holds what the ledger's 5 visits say; nothing was missing.\n"


def test_an_intact_store_is_left_as_it_is_with_what_people_wrote_in_it(folder, program):
    client = client_of(folder)
    run = client.search_runs(
        [client.get_experiment_by_name("toy").experiment_id], "tags.`fedrounds.about` = 'round 2'"
    )[0]
    client.set_tag(run.info.run_id, "mlflow.note.content", "Ada: look at the calibration")
    client.set_tag(run.info.run_id, "ours", "kept")
    before = held(folder)
    assert repaired(program, folder) == NOTHING
    assert held(folder) == before


def test_what_was_half_lost_comes_back(folder, program):
    before, client = held(folder), client_of(folder)
    experiment = client.get_experiment_by_name("toy").experiment_id
    runs = {
        run.data.tags["fedrounds.about"]: run.info.run_id for run in client.search_runs([experiment], max_results=1000)
    }
    artifacts = folder / "mlruns" / "artifacts"
    shutil.rmtree(artifacts / runs["round 1"])
    (artifacts / runs["round 2"] / "artifacts" / "parameters.npz").unlink()
    (artifacts / runs["lineage"] / "artifacts" / "report.html").unlink()
    client.delete_run(runs["round 3"])
    client.delete_run(runs["site north"])
    client.delete_tag(runs["round 1"], "fedrounds.model_digest")
    client.delete_model_version_tag("toy", "2", "fedrounds.suite_hash")
    client.set_registered_model_alias("toy", "champion", "3")
    client.set_registered_model_alias("toy", "challenger", "2")
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store, store:
        store.execute("DELETE FROM metrics WHERE key = 'auc'")
    assert held(folder) != before
    assert repaired(program, folder) == {**NOTHING, "files": 2, "tags": 2, "aliases": 2, "undeleted": 2}
    assert held(folder) == before


def test_versions_whose_runs_are_gone_are_registered_anew_and_the_champion_follows(folder, program):
    client = client_of(folder)
    before = held(folder)
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store, store:
        (gone,) = store.execute("SELECT run_id FROM model_versions WHERE version = 1").fetchone()
        for table in ("metrics", "latest_metrics", "tags", "params", "runs"):
            column = "run_uuid"
            store.execute(f"DELETE FROM {table} WHERE {column} = ?", (gone,))
    client.delete_model_version("toy", "3")
    assert repaired(program, folder) == {**NOTHING, "runs": 1, "versions": 2, "aliases": 1}
    versions = {v.tags["fedrounds.round"]: v for v in client.search_model_versions("name = 'toy'")}
    assert versions.keys() == {"1", "2", "3"}
    assert client.get_registered_model("toy").aliases == {"champion": versions["1"].version}
    for about in ("lineage", "round 1", "round 2", "round 3", "site north"):
        assert held(folder)[about] == before[about]


def test_a_deleted_experiment_is_taken_back(folder, program):
    before, client = held(folder), client_of(folder)
    client.delete_experiment(client.get_experiment_by_name("toy").experiment_id)
    assert repaired(program, folder)["undeleted"] >= 1
    assert held(folder) == before


def test_a_run_after_the_store_was_lost_writes_it_anew_and_says_so(folder, program, prefect_beside):
    before = held(folder)
    (folder / "mlruns" / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlruns" / "artifacts")
    done = program("run", folder, "--more", 1, "--json", **prefect_beside)
    assert (done.returncode, done.stderr) == (0, "")
    (report,) = json.loads(done.stdout)["reports"]
    assert report == "MLflow's store had lost the runs of 'toy': they were written anew from the ledger"
    after = held(folder)
    assert after.keys() == before.keys() | {"round 4", "version 4"}
    for about in ("round 1", "round 2"):
        assert after[about]["points"] == before[about]["points"]


def test_a_study_that_never_ran_has_nothing_to_repair(new_study, program):
    done = program("repair", new_study)
    assert done.returncode == 15
    assert "expected a study that has run" in done.stderr
