"""A start from a registered version: exact on paper, looked up once, held to what was registered."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import sqlite3

import numpy as np
import pytest
from conftest import ROUNDS, fedrounds
from pydantic import ValidationError

from fedrounds.core.errors import StudyError
from fedrounds.core.origin import Origin, begun
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort
from fedrounds.core.simulate import simulate
from fedrounds.core.state import dump
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger
from fedrounds.tasks.ward import Ward

BEFORE = {
    "name": "old",
    "target": {"kind": "binary", "column": "ill", "positive_above": 0},
    "features": [{"type": "number", "name": name, "range": [-9, 9]} for name in ("a", "b")],
    "model": {"kind": "logistic", "l2": 0.01},
    "algorithm": {"preset": "fedavg", "local": {"rate": 0.5, "epochs": 2, "batch": "all"}},
}
AFTER = BEFORE | {"name": "new", "start": {"from": "models:/old@champion"}}


def study(words, **more):
    return Study.model_validate(words | more)


def cohorts():
    """Two sites with gaps, so that imputing matters."""
    found = {}
    for site, seed, rows in (("east", 1, 60), ("west", 2, 90)):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(rows, 2)) + seed
        target = (values.sum(1) + rng.normal(size=rows) > 3).astype(float)
        values[rng.random((rows, 2)) < 0.1] = np.nan
        found[site] = Cohort(site, values, target, np.arange(rows) % 4 == 0, {})
    return found


def origin(of, state, version=7):
    return Origin(version, state.round, of, state.theta, state.statistics)


def test_three_rounds_and_then_two_from_there_are_the_five_in_one_bit_for_bit():
    old, new = build(study(BEFORE)), build(study(AFTER))
    whole = [closed.state for closed in simulate(old, cohorts(), 5)]
    state = begun(new, origin(old.study, whole[3]))
    assert (state.round, whole[3].round) == (0, 3)
    *_, last = simulate(new, cohorts(), 2, state=state)
    assert last.state.theta.tobytes() == whole[5].theta.tobytes()
    assert {name: array.tobytes() for name, array in last.state.statistics.items()} == {
        name: array.tobytes() for name, array in whole[0].statistics.items()
    }


def test_the_first_round_scores_the_version_that_it_starts_from():
    old, new = build(study(BEFORE)), build(study(AFTER))
    *_, last = simulate(old, cohorts(), 3)
    first, *_ = simulate(new, cohorts(), 1, state=begun(new, origin(old.study, last.state)))
    assert first.scored == 0
    for site, (sums, histogram) in last.scores.items():
        assert [part.tobytes() for part in first.scores[site]] == [sums.tobytes(), histogram.tobytes()]


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("features", {"features": [*BEFORE["features"], {"type": "number", "name": "c"}]}),
        ("features", {"features": [BEFORE["features"][0] | {"missing": [-1]}, BEFORE["features"][1]]}),
        ("target", {"target": BEFORE["target"] | {"positive_above": 1}}),
        ("preprocess", {"preprocess": {"standardise": "none"}}),
        ("offset", {"offset": "exposure"}),
        ("model", {"model": {"kind": "svm"}}),
        ("shape of the model", {"model": {"kind": "mlp", "hidden": [3]}}),
    ],
)
def test_a_version_of_another_question_is_refused_by_what_differs(what, changed):
    words = BEFORE | ({"model": {"kind": "mlp", "hidden": [4]}} if "shape" in what else {})
    old, new = study(words, **changed), build(study(AFTER | {"model": words["model"]}))
    state = build(old).start(build(old).no_statistics())
    with pytest.raises(StudyError, match=f"found another {what} in version 7 of 'old'"):
        begun(new, origin(old, state))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"algorithm": "exact"}, "an exact fit ends at one model wherever it starts"),
        ({"privacy": {"protect": {"kind": "masked"}}}, "updates under masks are scaled by the patients that round 0 counts"),
        (
            {"privacy": {"dp": {"unit": "patient", "epsilon": 3, "delta": 1e-4, "clip": 1, "rounds": 3, "patients": 99}}},
            "a version to start from may know patients that no noise hides",
        ),
        ({"start": {"from": "models:/old"}}, "should match pattern"),
        ({"start": {"from": "models:/../old@x"}}, "should match pattern"),
        ({"start": {}}, "Field required"),
    ],
)  # fmt: skip
def test_a_start_that_would_break_a_promise_is_refused(changed, said):
    with pytest.raises(ValidationError, match=said):
        study(AFTER, **changed)


def test_a_study_without_a_start_keeps_its_digest_and_one_with_it_can_be_read_again():
    assert study(BEFORE).digest == study(BEFORE, start=None).digest != study(AFTER, name="old").digest
    assert "start" in study(AFTER).model_dump(mode="json")
    assert Study.model_validate(study(AFTER).model_dump(mode="json")) == study(AFTER)


def test_hospitals_apart_go_on_from_a_version_as_one_process_does(apart):
    made = apart(protocol={"seed = ": 'start = { from = "models:/old/7" }\nseed = '})
    plan = made.plan
    old = build(Study.model_validate(made.read.study.model_dump(mode="json", exclude={"start"}) | {"name": "old"}))
    wards = {site: Ward(file, plan, made.read.data) for site, file in made.read.sites.items()}
    rows = {site: ward.cohort for site, ward in wards.items() if ward.load()}
    *_, last = simulate(old, rows, 2)
    state = begun(plan, origin(old.study, last.state))
    with Ledger.open(made.place.ledger) as ledger:  # as a look at MLflow would have left it
        ledger.note("start", {"study": plan.digest, "state": base64.b64encode(dump(state)).decode()})
    with made.run() as run:
        made.gate(run)
        for ask in ("train", "train", "score"):
            made.visit(run, ask)
        ended = run.state
    *_, expected = simulate(plan, rows, 2, state=state)
    assert ended.model_digest == expected.state.model_digest


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(toy_study, tmp_path_factory):
    """A toy study that has run, and another beside it that is to start from its champion; how to run it."""
    root = tmp_path_factory.mktemp("start")
    old = toy_study.copy(root / "toy")
    (old / "mlruns").rename(root / "mlruns")
    with contextlib.closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as store, store:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
        ):
            query = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            store.execute(query, (str(old / "mlruns"), str(root / "mlruns")))
    new = root / "later"
    shutil.copytree(old, new)
    for file, before, after in (
        ("study.toml", 'name = "toy"', 'name = "later"\nstart = { from = "models:/toy@champion" }'),
        ("operations.toml", f"rounds = {ROUNDS} ", "rounds = 1 "),
    ):
        words = (new / file).read_text()
        assert before in words
        (new / file).write_text(words.replace(before, after))
    return root


def test_a_version_that_is_not_there_or_was_changed_is_refused_and_nothing_begins(place, prefect_beside):
    words = (place / "later" / "study.toml").read_text()
    (place / "later" / "study.toml").write_text(words.replace("@champion", "/99"))
    done = fedrounds("run", place / "later", "--state", place / "mlruns", **prefect_beside)
    assert done.returncode != 0
    assert "expected a version to start from at models:/toy/99 in MLflow, found none" in done.stderr
    (place / "later" / "study.toml").write_text(words)
    for file in (place / "mlruns" / "artifacts").glob("*/artifacts/parameters.npz"):
        shutil.copy(file, file.with_suffix(".kept"))
        with np.load(file) as parts:
            np.savez(file, **{name: part + 1e-12 for name, part in parts.items()})
    done = fedrounds("run", place / "later", "--state", place / "mlruns", **prefect_beside)
    assert done.returncode != 0
    assert "as they were registered" in done.stderr
    for file in (place / "mlruns" / "artifacts").glob("*/artifacts/parameters.kept"):
        file.replace(file.with_suffix(".npz"))
    with Ledger.open(place / "mlruns" / "later" / "ledger.db") as ledger:
        assert (ledger.lineage(), ledger.head(), ledger.noted("start")) == (None, None, None)


def test_a_study_goes_on_from_the_champion_of_another_and_tells_what_each_site_gained(place, prefect_beside):
    with Ledger.open(place / "mlruns" / "toy" / "ledger.db") as ledger:
        champion = ledger.standing().champion
        state = ledger.state(ledger.closed(champion))
        ended = {visit.record["scored"]: visit.record for visit in ledger.visits()}[champion]
    done = fedrounds("run", place / "later", "--state", place / "mlruns", **prefect_beside)
    assert done.returncode == 0, done.stderr
    with Ledger.open(place / "mlruns" / "later" / "ledger.db") as ledger:
        visits, kept = ledger.visits(), ledger.noted("start")
    assert [visit.ask for visit in visits] == ["train", "score"]  # no round 0: the statistics came with the version
    assert (kept["name"], kept["round"], kept["model"]) == ("toy", champion, state.model_digest)
    assert visits[0].record["metrics"] == ended["metrics"]  # the version, on the same patients
    pages = [file.read_text() for file in (place / "mlruns" / "artifacts").rglob("report.html")]
    (page,) = (page for page in pages if "Starts from" in page)
    assert f"version {kept['version']} of &#x27;toy&#x27; (its round {champion})" in page
    for site in visits[1].record["sites"]:
        gain = visits[1].record["sites"][site]["metrics"]["auc"] - visits[0].record["sites"][site]["metrics"]["auc"]
        assert f">{gain:+.3f}<".replace("-", "−") in page
    assert "model it started from" in page
    told = fedrounds("explain", place / "later", "--state", place / "mlruns", "--json")
    brought = json.loads(told.stdout)["contribution"]
    assert brought["same"] is True  # its rounds are put together from the version on
    before, after = (visits[at].record["metrics"]["log_loss"] for at in (0, 1))
    assert brought["whole"] == pytest.approx(before - after, rel=1e-9)


def test_an_alias_that_moves_later_changes_nothing(place, prefect_beside):
    with contextlib.closing(sqlite3.connect(place / "mlruns" / "mlflow.db")) as store, store:
        store.execute("DELETE FROM registered_model_aliases WHERE name = 'toy'")
    with Ledger.open(place / "mlruns" / "later" / "ledger.db") as ledger:
        before = json.dumps(ledger.noted("start"))
    done = fedrounds("run", place / "later", "--state", place / "mlruns", "--more", "1", **prefect_beside)
    assert done.returncode == 0, done.stderr
    with Ledger.open(place / "mlruns" / "later" / "ledger.db") as ledger:
        assert json.dumps(ledger.noted("start")) == before
        assert ledger.head().state.round == 2
