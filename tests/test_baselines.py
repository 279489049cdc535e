"""What a federated model is compared with: each cell of the matrix against textbook loops and scikit-learn, what policies leave out, and
the command with what it writes."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import test_simple_studies as simple
import test_survival_study as survival
from hidden_study import study as hidden
from sklearn.decomposition import PCA
from sklearn.metrics import log_loss, r2_score, roc_auc_score
from sklearn.naive_bayes import GaussianNB
from statsmodels.duration.hazard_regression import PHReg

from fedrounds.cli.main import main
from fedrounds.core import baselines
from fedrounds.core.answer import Policy
from fedrounds.core.baselines import Setting, matrix
from fedrounds.core.errors import StudyError
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort, Rows, encode
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger
from fedrounds.reports import matrix as drawn
from fedrounds.tasks.baselines import compare
from fedrounds.tasks.matrix import require

RATE, EPOCHS, ROUNDS, L2 = 0.5, 2, 4, 0.01
SIZES = {"east": 120, "north": 80, "west": 200}
FREE = Policy(minimum_patients=1, finest_bins=10_000, merge_scores=False)
FEDAVG = {"preset": "fedavg", "local": {"rate": RATE, "epochs": EPOCHS, "batch": "all"}}


def study(**more) -> Study:
    words = {
        "name": "compared",
        "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
        "features": [{"type": "number", "name": name} for name in ("a", "b", "c")],
        "validation": {"bins": 10_000},
        "model": {"kind": "logistic", "l2": L2},
        "algorithm": FEDAVG,
    }
    return Study.model_validate(words | more)


LINEAR = {
    "target": {"kind": "regression", "column": "y"},
    "model": {"kind": "linear", "l2": 0.0},
    "algorithm": "exact",
}


def rows(numbers: bool = False) -> dict[str, Rows]:
    """A quarter of each hospital's patients only judge."""
    found = {}
    for number, (site, n) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        X = np.column_stack([rng.normal(0.3 * number, 1.0, (n, 3)), np.ones(n)])
        score = X @ np.array([1.0, -1.0, 0.5, 0.4 * number - 0.4]) + rng.normal(size=n)
        y = score if numbers else (score > 0).astype(float)
        k = 3 * n // 4
        found[site] = Rows(X[:k], y[:k], X[k:], y[k:])
    return found


def setting(of: Study, data: dict[str, Rows], rounds: int = ROUNDS, **policies: Policy) -> Setting:
    plan = build(of)
    return Setting(plan, data, plan.no_statistics(), rounds, dict.fromkeys(data, FREE) | policies)


def trained(of: Setting) -> np.ndarray:
    """The study's own model."""
    start = of.plan.start(of.statistics)
    return list(simulate(of.plan, of.rows, of.rounds, state=start))[-1].state.theta


def cells(found: baselines.Matrix) -> dict[tuple[str, str], baselines.Line]:
    return {(line.kind, line.site): line for line in found.lines}


# --- each cell against another computation ----------------------------------------------------------------------------


def descended(theta: np.ndarray, parts: list[Rows]) -> np.ndarray:
    """Two steps down the mean log-loss of these rows with a ridge that spares the intercept."""
    X, y = np.concatenate([part.X for part in parts]), np.concatenate([part.y for part in parts])
    for _ in range(EPOCHS):
        ridge = L2 * np.array([1.0, 1.0, 1.0, 0.0]) * theta
        theta = theta - RATE * (X.T @ (1 / (1 + np.exp(-X @ theta)) - y) / len(y) + ridge)
    return theta


def averaged(parts: list[Rows]) -> np.ndarray:
    theta = np.zeros(4)
    for _ in range(ROUNDS):
        weights = [len(part.y) for part in parts]
        theta = np.average([descended(theta, [part]) for part in parts], axis=0, weights=weights)
    return theta


def repeated(visits: list[list[Rows]]) -> np.ndarray:
    theta = np.zeros(4)
    for _ in range(ROUNDS):
        for visit in visits:
            theta = descended(theta, visit)
    return theta


def test_every_cell_is_what_textbook_loops_and_scikit_learn_say():
    data = rows()
    of = setting(study(), data)
    found = cells(matrix(of, trained(of)))
    every = list(data.values())
    own = {site: repeated([[part]]) for site, part in data.items()}
    expected = {
        ("federated", ""): [averaged(every)],
        ("pooled", ""): [repeated([every])],
        ("ensemble", ""): list(own.values()),
        ("cyclic", ""): [repeated([[part] for part in every])],
        **{("local", site): [theta] for site, theta in own.items()},
        **{("without", site): [averaged([data[name] for name in data if name != site])] for site in data},
    }
    assert list(found) == list(expected)
    for key, thetas in expected.items():
        line = found[key]
        predicted = {
            site: np.mean([1 / (1 + np.exp(-part.X_valid @ theta)) for theta in thetas], axis=0)
            for site, part in data.items()
        }
        for site, part in data.items():
            area = roc_auc_score(part.y_valid, predicted[site])
            assert abs(line.cells[site].metric - area) <= line.cells[site].error + 1e-12 < 2e-3
            assert line.cells[site].loss == pytest.approx(log_loss(part.y_valid, predicted[site]), rel=1e-12)
        y = np.concatenate([part.y_valid for part in every])
        together = np.concatenate([predicted[site] for site in data])
        assert abs(line.everywhere.metric - roc_auc_score(y, together)) <= line.everywhere.error + 1e-12 < 2e-3
        assert line.everywhere.loss == pytest.approx(log_loss(y, together), rel=1e-12)
        assert line.remark == ""


def test_every_cell_of_an_exact_study_is_that_of_least_squares_and_none_is_carried_on():
    data = rows(numbers=True)
    of = setting(study(**LINEAR), data, rounds=1)
    found = cells(matrix(of, trained(of)))

    def fitted(sites):
        X, y = (np.concatenate([getattr(data[site], name) for site in sites]) for name in ("X", "y"))
        return np.linalg.lstsq(X, y, rcond=None)[0]

    own = {site: fitted([site]) for site in data}
    expected = {
        ("federated", ""): fitted(data),
        ("pooled", ""): fitted(data),
        ("ensemble", ""): np.mean(list(own.values()), axis=0),  # the mean of linear predictions
        **{("local", site): theta for site, theta in own.items()},
        **{("without", site): fitted([name for name in data if name != site]) for site in data},
    }
    for key, theta in expected.items():
        for site, part in data.items():
            cell, predicted = found[key].cells[site], part.X_valid @ theta
            assert cell.metric == pytest.approx(r2_score(part.y_valid, predicted), rel=1e-9)
            assert cell.loss == pytest.approx(np.mean((part.y_valid - predicted) ** 2), rel=1e-9)
            assert cell.error == 0
    assert found["cyclic", ""].cells == {}
    assert found["cyclic", ""].everywhere is None
    assert "does not go on from the model" in found["cyclic", ""].remark


def encoded(plan, cohorts, closed) -> Setting:
    data = {site: encode(cohort, plan.study, closed.state.statistics, plan.ones) for site, cohort in cohorts.items()}
    return Setting(plan, data, closed.state.statistics, 1, dict.fromkeys(data, FREE))


@pytest.mark.parametrize("name", simple.MODELS)
def test_models_of_every_kind_are_compared_and_a_site_of_one_patient_has_no_model_to_bring(name):
    plan, cohorts, closed = simple.run(name)
    cohorts["south"] = replace(cohorts["south"], valid=np.zeros(1, bool))  # it trains, and judges nothing
    of = encoded(plan, cohorts, closed[-1])
    found = cells(matrix(of, closed[-1].state.theta))
    judging = {"east", "north", "west"}
    none = {("cyclic", ""), ("local", "south")}  # an exact fit is not carried on; one patient fits nothing
    none |= {("local", "north")} if name in ("naive Bayes of three", "k-means") else set()  # it has too few of a kind
    none |= {("ensemble", "")} if plan.task == "none" else set()
    assert {key for key, line in found.items() if line.everywhere is None} == none
    for key, line in found.items():
        assert set(line.cells) == (set() if key in none else judging)
        assert all(cell.metric is not None and np.isfinite(cell.loss) for cell in line.cells.values())
        assert bool(line.remark) == (key in none or key[0] == "ensemble")


def test_the_own_classifier_of_one_hospital_is_scored_at_another_as_scikit_learn_scores_it():
    sizes = {"east": 180, "north": 90, "west": 140}
    plan, cohorts, closed = simple.run("naive Bayes of two", sizes=sizes)
    of = encoded(plan, cohorts, closed[-1])
    found = cells(matrix(of, closed[-1].state.theta))
    at = of.rows["west"]
    width = len(plan.columns)
    own = {site: GaussianNB().fit(part.X[:, :width], part.y) for site, part in of.rows.items()}
    predicted = {site: model.predict_proba(at.X_valid[:, :width])[:, 1] for site, model in own.items()}
    for site, theirs in predicted.items():
        assert found["local", site].cells["west"].loss == pytest.approx(log_loss(at.y_valid, theirs), rel=1e-7)
    mean = np.mean(list(predicted.values()), axis=0)
    assert found["ensemble", ""].cells["west"].loss == pytest.approx(log_loss(at.y_valid, mean), rel=1e-7)
    cell = found["ensemble", ""].cells["west"]
    assert abs(cell.metric - roc_auc_score(at.y_valid, mean)) <= cell.error


def test_the_components_of_one_hospital_explain_at_another_what_scikit_learns_do():
    plan, cohorts, closed = simple.run("components", sizes={"east": 180, "north": 90, "west": 140})
    of = encoded(plan, cohorts, closed[-1])
    found = cells(matrix(of, closed[-1].state.theta))
    X, width = of.rows["west"].X_valid, len(plan.columns)
    for site, part in of.rows.items():
        own = PCA(2).fit(part.X[:, :width])
        left = ((X[:, :width] - own.inverse_transform(own.transform(X[:, :width]))) ** 2).sum(1)
        assert found["local", site].cells["west"].loss == pytest.approx(left.mean(), rel=1e-6)
        whole = ((X[:, :width] - own.mean_) ** 2).sum()
        assert found["local", site].cells["west"].metric == pytest.approx(1 - left.sum() / whole, rel=1e-6)


def test_the_survival_model_of_one_hospital_orders_anothers_patients_as_statsmodels_does():
    plan = build(survival.study_of())
    cohorts = survival.cohorts(plan.study)
    closed = list(simulate(plan, cohorts, 1))[-1]
    of = encoded(plan, cohorts, closed)
    found = cells(matrix(of, closed.state.theta))
    at = of.rows["north"]
    theirs = {}
    for site, part in of.rows.items():
        fit = PHReg(np.abs(part.y), part.X[:, :4], status=part.y > 0, ties="efron").fit(disp=0, gtol=1e-12)
        theirs[site] = at.X_valid[:, :4] @ fit.params
    scores = theirs | {"": np.mean(list(theirs.values()), axis=0)}
    for site, score in scores.items():
        order = pairs = 0.0
        for first, y in zip(score, at.y_valid, strict=True):
            if y > 0:
                later = (np.abs(at.y_valid) > y) | ((np.abs(at.y_valid) == y) & (at.y_valid < 0))
                pairs += later.sum()
                order += (first > score[later]).sum() + 0.5 * (first == score[later]).sum()
        cell = found["local" if site else "ensemble", site].cells["north"]
        assert abs(cell.metric - order / pairs) <= cell.error + 1e-9
        assert cell.error < 0.03
    strata = build(survival.study_of(model={"kind": "cox", "at_risk": 3, "strata": "site"}))
    told = baselines.pooled(replace(of, plan=strata))
    assert "no hospitals to be strata" in told.remark


# --- who takes part ---------------------------------------------------------------------------------------------------


def test_a_site_that_shows_no_scores_is_a_dash_in_every_line_and_in_the_sum_but_trains():
    data = rows()
    open_, shut = setting(study(), data), setting(study(), data, west=FREE.model_copy(update={"local_metrics": False}))
    theta = trained(open_)
    free, found = cells(matrix(open_, theta)), cells(matrix(shut, theta))
    for key, line in found.items():
        assert line.cells == {site: cell for site, cell in free[key].cells.items() if site != "west"}
        assert line.everywhere.loss != free[key].everywhere.loss
        judged = {site: len(data[site].y_valid) for site in line.cells}
        mean = sum(line.cells[site].loss * n for site, n in judged.items()) / sum(judged.values())
        assert line.everywhere.loss == pytest.approx(mean, rel=1e-12)


def test_a_site_below_its_minimum_cohort_trains_no_model_and_is_scored_by_none():
    data = rows()
    few = setting(study(), data, north=FREE.model_copy(update={"minimum_patients": 61}))
    rest = setting(study(), {site: part for site, part in data.items() if site != "north"})
    theta = trained(rest)
    found = matrix(few, theta)
    assert dict(found.refused) == {
        "north": "its training patients are below the site's minimum cohort of 61",
    }
    assert found.lines == matrix(rest, theta).lines


def test_where_every_site_refuses_there_is_no_comparison():
    data = rows()
    closed = Policy(families=("linear",))
    found = matrix(setting(study(), data, **dict.fromkeys(data, closed)), np.zeros(4))
    assert list(found.refused) == list(data)
    assert [(line.kind, line.cells, line.everywhere) for line in found.lines] == [("federated", {}, None)]


def test_a_rule_for_many_sites_says_why_there_is_no_model_of_the_others():
    data = rows() | {"south": rows()["east"], "centre": rows()["west"]}
    krum = FEDAVG | {"preset": "krum", "combine": {"attackers": 1}}
    of = setting(study(algorithm=krum, weights="uniform"), data)
    found = cells(matrix(of, trained(of)))
    assert found["without", "east"].cells == {}
    assert "expected 5 updates or more for Krum" in found["without", "east"].remark
    plain = setting(study(weights="uniform"), data)
    assert found["local", "east"] == cells(matrix(plain, trained(plain)))["local", "east"]  # alone there is one update


def test_stated_weights_name_hospitals_and_no_pool():
    data = rows()
    of = setting(study(weights={"east": 1.0, "north": 2.0, "west": 0.5}), data)
    found, plain = cells(matrix(of, trained(of))), cells(matrix(setting(study(), data), trained(of)))
    for key in [("pooled", ""), ("local", "east"), ("cyclic", "")]:  # one site, whatever its weight
        for site in data:
            assert found[key].cells[site].loss == pytest.approx(plain[key].cells[site].loss, rel=1e-12)
    assert found["without", "east"].cells != plain["without", "east"].cells


def test_one_hospital_alone_has_no_others():
    data = {"east": rows()["east"]}
    of = setting(study(), data)
    found = cells(matrix(of, trained(of)))
    assert found["without", "east"].remark == "no other hospital is left to learn from"
    assert found["local", "east"].cells == found["pooled", ""].cells == found["federated", ""].cells


def test_a_carried_model_takes_no_step_of_the_server_and_no_memory_along():
    data = rows()
    fedadam = {"preset": "fedadam", "local": FEDAVG["local"], "server": {"rate": 0.05}}
    momentum = FEDAVG["local"] | {"kind": "scaffold"}
    plain = baselines.cyclic(setting(study(), data)).state.theta
    for algorithm in (fedadam, {"preset": "scaffold", "local": momentum}):
        carried = baselines.cyclic(setting(study(algorithm=algorithm), data)).state.theta
        np.testing.assert_allclose(carried, plain, rtol=1e-12)


def test_a_network_starts_from_the_studys_own_first_model_whatever_combines():
    data, network = rows(), {"kind": "mlp", "hidden": [3]}
    median = {"preset": "fedmedian", "local": FEDAVG["local"]}
    fedavg, other = (study(model=network, weights="uniform", algorithm=algorithm) for algorithm in (FEDAVG, median))
    of = setting(other, data, rounds=1)
    start = of.plan.start().theta
    for model in (baselines.local(of, "east"), baselines.pooled(of), baselines.cyclic(of)):
        assert model.plan.digest == of.plan.digest
        assert np.array_equal(model.plan.start().theta, start)
    assert not np.array_equal(build(fedavg).start().theta, start)


# --- a run's own table ------------------------------------------------------------------------------------------------


def test_a_hospital_that_cannot_fit_a_model_alone_is_a_dash_and_the_run_goes_on(tmp_path):
    of = study(**LINEAR)
    plan = build(of)
    wards = {}
    for site, part in rows(numbers=True).items():
        values = np.concatenate([part.X, part.X_valid])[:, :3].copy()
        if site == "north":
            values[:, 1] = values[:, 0]  # one column twice
        valid = np.arange(len(values)) >= len(part.y)
        cohort = Cohort(site, values, np.concatenate([part.y, part.y_valid]), valid, {})
        wards[site] = SimpleNamespace(cohort=cohort, policy=FREE, fingerprint=site)
    state = list(simulate(plan, {site: ward.cohort for site, ward in wards.items()}, 1))[-1].state
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.begin(of)
        run = SimpleNamespace(
            wards=wards, last={"sites": wards}, state=state, plan=plan, ledger=ledger, folder=SimpleNamespace(study=of)
        )
        compare(run)
        found = ledger.noted("baselines")
    assert list(found["local"]) == ["east", "west"]
    assert list(found["pooled"]) == ["east", "north", "west"]
    assert found["patients"] == SIZES


# --- the command ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page's text, its headings, and that what opens is closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.text, self.ids = [], [], set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.ids |= {dict(attrs)["id"]} if "id" in dict(attrs) else set()
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def asked(toy_study, tmp_path_factory, program):
    """A study that has run, and what the command says of it."""
    folder = toy_study.copy(tmp_path_factory.mktemp("baselines") / "toy")
    done = program("baselines", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def ledger_of(folder):
    return Ledger.open(folder / "mlruns" / "toy" / "ledger.db")


def artifacts(folder):
    (found,) = (folder / "mlruns" / "artifacts").glob("*/artifacts/baselines")
    return found


def test_the_matrix_holds_what_the_run_itself_has_scored(asked):
    folder, said = asked
    with ledger_of(folder) as ledger:
        note, known, last = ledger.noted("matrix"), ledger.noted("baselines"), ledger.progress()
    assert {key: note[key] for key in note if key != "token"} == {key: said[key] for key in said if key != "study"}
    lines = {(line["kind"], line["site"]): line for line in note["lines"]}
    sites = ["east", "north", "south", "west"]
    assert (note["round"], note["metric"], note["loss"], note["sites"]) == (3, "auc", "log_loss", sites)
    assert len(lines) == 4 + 2 * len(sites)
    for site in sites:
        for cell, told in (
            (lines["federated", ""]["cells"][site], last.record["sites"][site]["metrics"]),
            (lines["pooled", ""]["cells"][site], known["pooled"][site]),
            (lines["local", site]["cells"][site], known["local"][site]),
        ):
            assert cell == {"metric": told["auc"], "loss": told["log_loss"], "error": told["auc_error"]}
    assert lines["federated", ""]["everywhere"]["metric"] == last.record["metrics"]["auc"]
    assert lines["pooled", ""]["everywhere"]["metric"] == known["pooled_all"]["auc"]


def test_what_lies_beside_the_lineage_opens_and_says_the_same(asked):
    folder, said = asked
    with (artifacts(folder) / "matrix.csv").open() as file:
        table = list(csv.DictReader(file))
    found = {(row["model"], row["of"], row["scored_at"]): row for row in table}
    assert len(found) == len(table) == len(said["lines"]) * 5
    for line in said["lines"]:
        for site, cell in (*line["cells"].items(), ("", line["everywhere"])):
            row = found[line["kind"], line["site"], site]
            assert [float(row[key]) for key in ("auc", "auc_error", "log_loss")] == [
                cell[key] for key in ("metric", "error", "loss")
            ]
    picture = ET.parse(artifacts(folder) / "matrix.svg").getroot()
    looks = [mark.get("class") for mark in picture.iter() if mark.tag.endswith("rect")]
    assert sum(look.startswith("cell ") for look in looks) == len(said["lines"]) * 5
    assert looks.count("home") == 8
    assert f"{said['lines'][0]['cells']['east']['metric']:.3f}" in "".join(picture.itertext())
    page = Page((artifacts(folder) / "matrix.html").read_text())
    assert "AUC of every model at every hospital, after 3 rounds" in page.text
    assert "log-loss of every model at every hospital, after 3 rounds" in page.text


def test_mlflow_lists_the_files_and_the_report_has_the_section(asked):
    from mlflow import MlflowClient

    folder, _ = asked
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    (run,) = client.search_runs(["1"], "tags.`fedrounds.about` = 'lineage'")
    names = [file.path for file in client.list_artifacts(run.info.run_id, "baselines")]
    assert names == [f"baselines/matrix.{kind}" for kind in ("csv", "html", "svg")]
    report = Page((artifacts(folder).parent / "report.html").read_text())
    assert "matrix-heading" in report.ids
    assert "federated without west" in report.text


def test_asked_again_it_trains_nothing_and_writes_again_what_was_lost(asked, toy_study, tmp_path, capfd):
    folder = toy_study.copy(tmp_path / "toy")
    shutil.copy(asked[0] / "mlruns" / "toy" / "ledger.db", folder / "mlruns" / "toy" / "ledger.db")
    with ledger_of(folder) as ledger:
        note = ledger.noted("matrix")
        note["lines"][0]["remark"] = "kept"
        ledger.note("matrix", note)
    assert main(["baselines", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "federated: kept" in out
    assert (artifacts(folder) / "matrix.csv").is_file()
    starts = [line.split("  ")[0] for line in out.splitlines()]
    assert starts[:5] == ["AUC", "federated", "one pool of all rows", "mean of own models", "from hospital to hospital"]
    assert starts[9:13] == [f"federated without {site}" for site in ("east", "north", "south", "west")]


def test_repair_writes_the_files_again_from_the_note(asked, program):
    folder, _ = asked
    before = {file.name: file.read_bytes() for file in artifacts(folder).iterdir()}
    shutil.rmtree(artifacts(folder))
    assert program("repair", folder).returncode == 0
    assert {file.name: file.read_bytes() for file in artifacts(folder).iterdir()} == before


def refused(capfd, folder, code: int, words: str) -> None:
    capfd.readouterr()
    assert main(["baselines", str(folder)]) == code
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


def test_a_study_that_has_not_run_is_refused(new_study, capfd):
    refused(capfd, new_study, 15, "expected a study that has run")
    assert not (new_study / "mlruns" / "toy").exists()


def test_other_data_another_protocol_and_another_runner_are_refused(toy_study, tmp_path, capfd):
    folder = toy_study.copy(tmp_path / "toy")
    with ledger_of(folder) as ledger:
        ledger.acquire()
        refused(capfd, folder, 15, "another")
        ledger.release()
        assert ledger.noted("matrix") is None
    data = folder / "data" / "west.csv"
    kept = data.read_text()
    data.write_text("\n".join(kept.splitlines()[:-1]) + "\n")
    refused(capfd, folder, 15, "expected the data that the study last ran on")
    data.write_text(kept)
    file = folder / "study.toml"
    file.write_text(file.read_text().replace("\nseed = ", "\nseed = 1"))
    refused(capfd, folder, 15, "put study.toml back")


def test_a_study_that_was_begun_anew_meanwhile_gets_no_note_of_the_one_before(toy_study, tmp_path, capfd, monkeypatch):
    folder = toy_study.copy(tmp_path / "toy")

    def meanwhile(*_):
        with closing(sqlite3.connect(folder / "mlruns" / "toy" / "ledger.db")) as database, database:
            database.execute("UPDATE study SET lineage = 'another'")
        return {}

    monkeypatch.setattr("fedrounds.tasks.matrix._found", meanwhile)
    refused(capfd, folder, 15, "found it begun anew meanwhile")
    with ledger_of(folder) as ledger:
        assert ledger.noted("matrix") is None


def test_rows_elsewhere_and_too_many_hospitals_are_refused(toy_study, tmp_path, capfd, monkeypatch):
    folder = toy_study.copy(tmp_path / "toy")
    with monkeypatch.context() as patched:
        patched.setattr("fedrounds.tasks.matrix.COMPARED", 3)
        refused(capfd, folder, 15, "expected at most 3 sites")
    with closing(sqlite3.connect(folder / "mlruns" / "toy" / "ledger.db")) as database, database:
        database.execute("UPDATE visits SET record = json_set(record, '$.carrier', 'dask')")
    refused(capfd, folder, 10, "found rows elsewhere (dask)")


def test_a_coordinators_folder_is_refused(tmp_path, capfd):
    (tmp_path / "coordinator.toml").write_text("")
    refused(capfd, tmp_path, 10, "only a simulation may hold all rows")


def test_hidden_sums_and_noise_are_refused_with_the_reason():
    with pytest.raises(StudyError, match="found one that hides its sums"):
        require(hidden())
    noised = study(
        features=[{"type": "number", "name": "a", "range": [0, 1]}],
        algorithm="fedavg",
        weights="uniform",
        privacy={"dp": {"unit": "patient", "epsilon": 3.0, "patients": 200, "rounds": 5}},
    )
    with pytest.raises(StudyError, match="found one that is differentially private"):
        require(noised)
    require(study())


# --- the drawing ------------------------------------------------------------------------------------------------------


def note_of(sites: int) -> dict:
    names = [f"a hospital of a long name {number:02d} <&>" for number in range(sites)]
    line = {"everywhere": None, "remark": ""}
    cell = {"metric": 0.7, "loss": 0.5, "error": 0.0}
    lines = [
        {"kind": "federated", "site": "", "name": "federated", "cells": dict.fromkeys(names, cell), **line},
        *({"kind": "local", "site": name, "name": f"own model of {name}", "cells": {}, **line, "remark": "none <b>"} for name in names),
    ]  # fmt: skip
    return {"round": 1, "metric": "auc", "loss": "log_loss", "sites": names, "lines": lines, "refused": {}}


@pytest.mark.parametrize("sites", [0, 1, 64])
def test_many_hospitals_with_long_names_are_drawn_apart_and_escaped(sites):
    note = note_of(sites)
    picture = ET.fromstring(drawn.picture(note))
    boxes = [mark for mark in picture.iter() if mark.get("class", "").startswith("cell ")]
    assert len(boxes) == (1 + sites) * (sites + 1)
    first = [(float(box.get("x")), float(box.get("width"))) for box in boxes[: sites + 1]]
    assert all(x + wide <= after for (x, wide), (after, _) in pairwise(first))
    assert first[-1][0] + first[-1][1] <= float(picture.get("width"))
    page = Page(drawn.page(note, "a <b>title</b>"))
    assert "b" not in page.open
    assert "a <b>title</b>" in page.text
    assert drawn.as_csv(note).count("\n") == 1 + (1 + sites) ** 2
