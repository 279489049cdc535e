"""A whole run under differential privacy with a champion, by the command line: real Prefect, MLflow, gate and ledger."""

from __future__ import annotations

import json
import sqlite3

import pytest


def test_a_run_tells_what_it_spent_and_keeps_scores_at_the_sites(tmp_path, program, warm, prefect_beside):
    study = tmp_path / "private"
    assert program("init", study).returncode == 0
    warm(study / "mlruns")
    text = (study / "study.toml").read_text()
    for old, new in (('weights = "patients"', 'weights = "uniform"'), (", epochs = 2, batch = 32", "")):
        assert old in text
        text = text.replace(old, new)
    (study / "study.toml").write_text(
        text
        + '\n[privacy]\ndp = { unit = "patient", epsilon = 3.0, patients = 200, rounds = 2, scores = { every = 1, share = 0.3 } }\n'
    )
    operations = study / "operations.toml"
    operations.write_text(
        operations.read_text().replace("rounds = 10 ", "rounds = 2 ").replace('suite = "readmission"', "")
    )
    assert program("run", study, **prefect_beside).returncode == 0
    assert program("report", study).returncode == 0
    told = program("site", "budget", study, "--json")
    assert told.returncode == 0
    held = json.loads(told.stdout)
    assert {(row["dataset"], row["releases"]) for row in held["spent"]} == {
        (site, 4) for site in ("east", "north", "south", "west")
    }
    assert all(2.99 < row["epsilon"] <= 3.0 for row in held["spent"])
    stood = json.loads(program("status", study, "--json").stdout)
    assert stood["champion"] in (1, 2), "version 1 is the first, and 2 was held against it"
    mlflow = sqlite3.connect(next(tmp_path.rglob("mlflow.db")))
    told = dict(mlflow.execute("SELECT step, max(value) FROM metrics WHERE key = 'privacy_epsilon' GROUP BY step"))
    assert sorted(told) == [0, 1, 2]
    assert told[2] == pytest.approx(held["spent"][0]["epsilon"])
    aliases = dict(mlflow.execute("SELECT alias, version FROM registered_model_aliases"))
    reasons = [
        value
        for (value,) in mlflow.execute(
            "SELECT value FROM model_version_tags WHERE key = 'fedrounds.reason' ORDER BY version"
        )
    ]
    assert aliases["champion"] == stood["champion"]
    assert reasons[0] == "promoted: it is the first model"
    assert "noise included) " in reasons[1] or "noise included), " in reasons[1]
    named = {key for (key,) in mlflow.execute("SELECT DISTINCT key FROM metrics")}
    mlflow.close()
    assert not {
        key for key in named if key.startswith(("validation", "auc", "log_loss", "training_loss", "training_patients"))
    }
    page = next(tmp_path.rglob("report.html")).read_text()
    assert "ε = 3 at δ = 0.0005 was spent of each hospital" in page
    assert "noised comparisons with the champion" in page
    assert "There is no differential privacy" not in page
