"""A model of its own at each site: each kind beside a textbook loop, the global model untouched, what leaves of it, and that it outlives kills."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import hidden_study
import numpy as np
import pytest
from conftest import fedrounds
from lives import Killed, live
from pydantic import ValidationError

from fedrounds.cli.init import init
from fedrounds.core.algorithm import Folded
from fedrounds.core.answer import Policy
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.evaluate import metrics, score, total
from fedrounds.core.groups import merged
from fedrounds.core.masked import TOGETHER
from fedrounds.core.messages import Request
from fedrounds.core.personal import told
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.disclosure import merge_scores, withhold
from fedrounds.core.privacy.settings import Privacy
from fedrounds.core.round import open_round
from fedrounds.core.simulate import OPEN, simulate
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger
from fedrounds.tasks import folder as folders
from fedrounds.tasks.memory import begins, remembering
from fedrounds.tasks.ward import Ward

HERE = Path(__file__).parents[1]
HEART = HERE.parent / "shared" / "data" / "heart_disease_uci"
RATE, STEPS, PULL = 0.1, 5, 0.7
TUNED = {"kind": "fine_tune", "rate": 0.02, "epochs": 3, "batch": "all"}


def study(algorithm, width=3, **words):
    """Plain numbers as they are."""
    return Study.model_validate(
        {
            "name": "toy",
            "target": {"kind": "regression", "column": "y"},
            "features": [{"type": "number", "name": f"x{j}"} for j in range(width)],
            "preprocess": {"standardise": "none"},
            "validation": {"fraction": 0.0},
            "model": {"kind": "linear", "intercept": False},
            "algorithm": algorithm,
        }
        | words
    )


def ditto(pull=PULL, **more):
    """Full-batch steps, five a round."""
    return {"preset": "ditto", "local": {"rate": RATE, "steps": STEPS, "batch": "all", "pull": pull, **more}}


def fedavg(**parts):
    return {"preset": "fedavg", "local": {"rate": RATE, "steps": STEPS, "batch": "all"}, **parts}


def sites(seed=0, sizes=(10, 25, 60, 15)):
    """Four hospitals whose patients differ in every way, twelve of whom judge."""
    rng = np.random.default_rng(seed)
    data = {}
    for name, n in zip(("east", "north", "south", "west"), sizes, strict=True):
        A = rng.normal(size=(n + 12, 3)) * rng.uniform(0.8, 1.5, 3)
        y = A @ rng.normal(scale=2.0, size=3) + rng.normal(scale=0.1, size=n + 12)
        data[name] = Rows(A[:n], y[:n], A[n:], y[n:])
    return data


def slope(rows, w):
    """Gradient of half the mean squared error."""
    return rows.X.T @ (rows.X @ w - rows.y) / len(rows.y)


def error(rows, w):
    return float(((rows.X_valid @ w - rows.y_valid) ** 2).sum())


def rounds_of(algorithm, rounds, data=None, **options):
    return list(simulate(build(study(algorithm)), data or sites(), rounds, **options))


def shares(data):
    n = sum(len(rows.y) for rows in data.values())
    return {name: len(rows.y) / n for name, rows in data.items()}


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(found).max() > 1e-3


def seeds(number, site):
    return np.random.default_rng([number, len(site), ord(site[0])])


# --- each kind beside its paper ---------------------------------------------------------------------------------------


def test_ditto_is_algorithm_1():
    """The scores at each visit are those of the models that the round before left, at the closing visit too."""
    data, w, p = sites(), np.zeros(3), shares(sites())
    own = dict.fromkeys(data, w)
    for closed in rounds_of(ditto(), 6):
        assert closed.scores.keys() == closed.personal.keys() == data.keys()
        for name, rows in data.items():
            same(closed.scores[name][0][1], error(rows, w))
            same(closed.personal[name][0][1], error(rows, own[name]))
            assert closed.personal[name][0][0] == 12
        ends = {}
        for name, rows in data.items():
            ends[name], v = w, own[name]
            for _ in range(STEPS):
                ends[name] = ends[name] - RATE * slope(rows, ends[name])
                v = v - RATE * (slope(rows, v) + PULL * (v - w))
            own[name] = v
        before, w = w, sum(p[name] * ends[name] for name in data)
    same(closed.state.theta, before)  # the closing visit trains nothing


def test_fine_tuning_is_so_many_epochs_from_the_global_model():
    data = sites()
    for closed, shared in zip(rounds_of(fedavg(personal=TUNED), 4), rounds_of(fedavg(), 4), strict=True):
        for name, rows in data.items():
            w = theta(shared, data)
            for _ in range(3):
                w = w - 0.02 * slope(rows, w)
            same(closed.personal[name][0][1], error(rows, w))


def theta(closed, data):
    """The model that a visit scored, by an independent loop of as many rounds."""
    w, p = np.zeros(3), shares(data)
    for _ in range(closed.scored):
        ends = {}
        for name, rows in data.items():
            ends[name] = w
            for _ in range(STEPS):
                ends[name] = ends[name] - RATE * slope(rows, ends[name])
        w = sum(p[name] * ends[name] for name in data)
    return w


def test_ditto_ends_where_each_sites_tied_objective_is_least():
    """At argmin of half the mean squared error + pull/2 |v - theta|², in closed form; for pull 0 that is the site's own least squares."""
    data = sites()
    for pull in (0.0, 0.5, 4.0):
        closed = rounds_of(ditto(pull), 400)[-1]
        for name, rows in data.items():
            A = rows.X.T @ rows.X / len(rows.y) + pull * np.eye(3)
            v = np.linalg.solve(A, rows.X.T @ rows.y / len(rows.y) + pull * closed.state.theta)
            assert closed.personal[name][0][1] == pytest.approx(error(rows, v), rel=1e-9)


def test_where_hospitals_differ_each_gains_and_the_tighter_the_tie_the_less():
    gained = []
    for pull in (0.1, 1.0, 8.0):
        closed = rounds_of(ditto(pull), 60)[-1]
        pairs = {name: (closed.personal[name], closed.scores[name]) for name in closed.scores}
        found = {name: told(*(metrics("regression", *sums) for sums in pair)) for name, pair in pairs.items()}
        assert min(site["personal_gain_mse"] for site in found.values()) > 0
        assert all(site.keys() == KEYS for site in found.values())
        gained.append(sum(site["personal_gain_mse"] for site in found.values()))
    assert gained == sorted(gained, reverse=True)


KEYS = {f"personal_{gain}{name}" for name in ("mse", "rmse", "r2") for gain in ("", "gain_")}


# --- the global model is what it is without ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["float64", "rotated8"])
@pytest.mark.parametrize("more", [{}, {"decay": {"kind": "inverse", "by": 0.3}}, {"early_stop": True, "epochs": 4}])
@pytest.mark.parametrize("kind", ["ditto", "fine_tune"])
def test_the_global_model_is_that_of_its_base_rule_bit_for_bit(kind, more, codec):
    local = {"rate": 0.05, "epochs": 2, "batch": 10} | more
    tuned = {"personal": {**TUNED, "batch": 10}} if kind == "fine_tune" else {}
    words = {"protocol": {"codec": codec}}
    own = study({"preset": "fedavg" if tuned else "ditto", "local": local, **tuned}, **words)
    base = build(study({"preset": "fedavg", "local": local}, **words))
    wire = codec == "rotated8"  # the rotation is seeded by the study, of which there are two
    pairs = zip(simulate(build(own), sites(), 4, rng_of=seeds), simulate(base, sites(), 4, rng_of=seeds), strict=True)
    for with_own, without in pairs:
        assert wire or with_own.state.theta.tobytes() == without.state.theta.tobytes()
        np.testing.assert_allclose(with_own.state.theta, without.state.theta, atol=0.05)
        assert with_own.state.memory == without.state.memory == {}
        assert not without.personal


@pytest.mark.parametrize("algorithm", [ditto(), fedavg(personal={**TUNED, "batch": 10})])
def test_neither_the_order_of_sites_nor_bytes_change_a_bit(algorithm):
    data, found = sites(), set()
    for order in list(permutations(data))[::5]:
        ordered = {site: data[site] for site in order}
        closed = rounds_of(algorithm, 2, ordered, wire=order[0] == "north")[-1]
        told = [(site, *(part.tobytes() for part in closed.personal[site])) for site in sorted(data)]
        found.add((closed.state.theta.tobytes(), tuple(told)))
    assert len(found) == 1


def test_a_hospital_that_was_away_goes_on_from_its_own_model():
    data = sites()
    away = {2, 3}
    found = []
    for order in (away, set()):
        plan, state, memory = build(study(ditto())), None, {}
        state = plan.start(plan.no_statistics())
        for number in range(1, 5):
            request = open_round(replace(state, round=number - 1), plan, "train", data).request
            if number not in order:
                memory, sums = plan.algorithms["train"].answer(request.arrays, memory, data["east"], seeds(1, "east"))
        found.append((memory["personal"], sums["personal"]))
    twice = rounds_of(ditto(), 0)  # nothing is trained: the own model is the one that came in
    assert twice[-1].personal["east"][0].tobytes() == twice[-1].scores["east"][0].tobytes()
    (rested, _), (steady, _) = found
    v = np.zeros(3)
    for _ in range(2 * STEPS):
        v = v - RATE * (slope(data["east"], v) + PULL * v)
    same(rested, v)
    for _ in range(2 * STEPS):
        v = v - RATE * (slope(data["east"], v) + PULL * v)
    same(steady, v)


# --- what leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "protect"), [
    ("ditto", {"bits": 64}),
    ({"preset": "fedavg", "personal": TUNED}, {"bits": 64}),
    ("ditto", {"kind": "ckks", "key_holder": "north"}),
])  # fmt: skip
def test_under_masks_only_the_own_models_scores_of_all_together_are_known(algorithm, protect):
    of = hidden_study.study(algorithm=algorithm, **protect)
    plan, open_, data = build(of), build(of.model_copy(update={"privacy": Privacy()})), hidden_study.cohorts(of)
    start = replace(open_.start(None), theta=plan.start(None).theta)
    hidden = list(simulate(plan, data, 2))
    shown = list(simulate(open_, data, 2, state=start, rng_of=plan.rng))
    for one, other in zip(hidden[1:], shown[1:], strict=True):
        assert one.personal.keys() == {TOGETHER}
        for found, expected in zip(one.personal[TOGETHER], total(other.personal), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert hidden[-1].personal[TOGETHER][0].tolist() != hidden[-1].scores[TOGETHER][0].tolist()


def test_of_groups_the_own_models_are_known_as_of_all_together():
    closed = rounds_of(ditto(), 1)[-1]
    found = merged(Folded(closed.state, closed.scores, personal=closed.personal)).personal
    assert found.keys() == {TOGETHER}
    assert found[TOGETHER][0].tolist() == total(closed.personal)[0].tolist()


def test_small_counts_of_the_own_models_scores_stay_as_those_of_the_other_do():
    rng = np.random.default_rng(4)
    chance, y = rng.random(30), (rng.random(30) < 0.5).astype(float)
    sums, histogram = score("binary", chance, -np.log(chance), y, 50)
    sent = {"scores": sums, "histogram": histogram, "personal": sums, "personal.histogram": histogram}
    thin = withhold(sent, 10, fine=False)
    assert thin["personal.histogram"].tolist() == merge_scores(histogram, 10).tolist() != histogram.tolist()
    for kept in (withhold(sent, 31), withhold(sent, 10, scores=False)):
        assert {name: kept[name].any() for name in sent} == dict.fromkeys(sent, False)


@pytest.mark.parametrize("ask", ["train", "score"])
@pytest.mark.parametrize(
    ("algorithm", "trained"), [(ditto(), {"delta", "train"}), (fedavg(personal=TUNED), {"delta", "train"})]
)
def test_a_reply_holds_scores_of_the_own_model_and_nothing_else_of_it(algorithm, trained, ask):
    plan = build(study(algorithm))
    shapes = plan.algorithms[ask].shapes(0)
    assert shapes.keys() == {"scores", "histogram", "personal", "personal.histogram"} | (
        trained if ask == "train" else set()
    )
    assert shapes["personal"] == shapes["scores"] == (4,)
    assert plan.algorithms[ask].takes(0).keys() == build(study(fedavg())).algorithms[ask].takes(0).keys()


def test_scores_of_other_rows_than_the_global_models_are_refused():
    plan = build(study(ditto()))
    state = plan.start(plan.no_statistics())
    _, sums = plan.algorithms["score"].answer(
        open_round(state, plan, "score", ["east"]).request.arrays, {}, sites()["east"], seeds(1, "east")
    )
    with pytest.raises(UpdateRejected, match="found its own scored on others"):
        plan.algorithms["score"].fold(state, [("east", {**sums, "personal": sums["personal"] + 1})])


# --- what they do not go with -----------------------------------------------------------------------------------------

RANGED = {"features": [{"type": "number", "name": "x0", "range": [-9, 9]}], "weights": "uniform"}
PATIENT = {"unit": "patient", "epsilon": 3.0, "patients": 50, "rounds": 5}


@pytest.mark.parametrize(("algorithm", "words", "said"), [
    ("ditto", {"privacy": {"dp": PATIENT}}, "scores of a site's own model are not"),
    ({"preset": "fedavg", "personal": TUNED}, {"privacy": {"dp": PATIENT}}, "scores of a site's own model are not"),
    ({"preset": "exact", "personal": TUNED}, {}, "an exact fit solves for one model of all patients"),
    ({"preset": "exact", "local": {"kind": "ditto"}}, {}, "an exact fit solves for one model of all patients"),
    ({"preset": "ditto", "personal": TUNED}, {}, "a site under 'ditto' has a model of its own already"),
    ({"preset": "fedavg", "personal": {"kind": "ditto"}}, {}, "expected tags: 'fine_tune', 'layers'"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(algorithm, words, said):
    with pytest.raises(ValidationError, match=said):
        study(algorithm, 1, **RANGED | words)


def test_own_models_are_tied_to_a_median_as_they_are_to_a_mean():
    data, w = sites(), np.zeros(3)
    own = dict.fromkeys(data, w)
    of = study({**ditto(), "combine": {"kind": "median"}}, weights="uniform")
    for closed in simulate(build(of), data, 3):
        ends = {}
        for name, rows in data.items():
            same(closed.personal[name][0][1], error(rows, own[name]))
            ends[name], v = w, own[name]
            for _ in range(STEPS):
                ends[name] = ends[name] - RATE * slope(rows, ends[name])
                v = v - RATE * (slope(rows, v) + PULL * (v - w))
            own[name] = v
        before, w = w, np.median(list(ends.values()), axis=0)
    same(closed.state.theta, before)


def test_a_cluster_is_refused_before_anything_is_asked():
    run = SimpleNamespace(folder=SimpleNamespace(study=study("ditto")), carrier="process", on_dask=True)
    with pytest.raises(StudyError, match="a worker that dies would lose what its sites remember; leave --runner out"):
        remembering(run)


def test_words_that_are_left_out_change_no_digest():
    plain, stated = study("fedavg"), study({"preset": "fedavg", "personal": None})
    assert "personal" not in plain.model_dump()["algorithm"]
    assert plain.digest == stated.digest
    tuned = study({"preset": "fedavg", "personal": TUNED})
    assert Study.model_validate(tuned.model_dump(mode="json")).digest == tuned.digest != plain.digest


# --- what a site remembers --------------------------------------------------------------------------------------------


def test_scores_of_a_closed_round_find_what_it_left():
    asked = {ask: Request("s", 3, 0, ask, "", {}) for ask in ("train", "score")}
    assert (begins(asked["train"]), begins(asked["score"])) == (3, 4)


def kept(closed, plan):
    """What is recorded of each site's own model, but what hangs on the histogram: apart, hospitals merge its cells."""
    found = {
        site: told(*(metrics(plan.task, *it[site]) for it in (closed.personal, closed.scores)))
        for site in closed.personal
    }
    return {site: exactly(its) for site, its in found.items()}


def exactly(told):
    return {name: value for name, value in told.items() if "auc" not in name}


def recorded(record):
    return {site: exactly(its["personal"]) for site, its in record["sites"].items() if "personal" in its}


def reference(read, rounds):
    """What is recorded of the own models at each visit of a run that nobody disturbs."""
    plan = build(read.study)
    wards = {site: Ward(file, plan, read.data) for site, file in read.sites.items()}
    cohorts = {site: ward.cohort for site, ward in wards.items() if ward.load()}
    return [(closed.state, kept(closed, plan), closed) for closed in simulate(plan, cohorts, rounds)]


def test_hospitals_apart_score_the_models_that_one_process_does_though_rounds_fail_and_agents_die(apart):
    made = apart(protocol={'preset = "fedavg"': 'preset = "ditto"'})
    with made.run() as run:
        made.gate(run)
        made.visit(run, "statistics")
        made.visit(run, "train")
        for _ in range(2):  # one answers, the quorum of two is missed: what it then trained is for nothing
            asking = run.open("train")
            with pytest.raises(QuorumError):
                run.aggregate(asking, made.ask(run, asking, sites=("north",)))
            made.hospital("north", anew=True)
        made.visit(run, "train")
        made.hospital("south", anew=True)
        while run.state.round < 3:
            made.visit(run, "train")
        made.visit(run, "score")
        assert run.state.memory == {}
    with Ledger.open(made.place.ledger) as ledger:
        found = [recorded(visit.record) for visit in ledger.visits()]
    assert found == [its for _, its, _ in reference(made.read, 3)]
    assert any(site["personal_gain_log_loss"] != 0 for site in found[-1].values())


def test_hospitals_apart_and_masked_tell_the_gain_of_all_as_one_process_does(apart):
    made = apart(protocol={'preset = "fedavg"': 'preset = "ditto"'}, masked='{ kind = "masked", bits = 64 }')
    with made.run() as run:
        made.gate(run)
        for ask in ("statistics", "train", "train", "score"):
            made.visit(run, ask)
    with Ledger.open(made.place.ledger) as ledger:
        records = [visit.record for visit in ledger.visits()]
    expected = [
        told(*(metrics("binary", *it[TOGETHER]) for it in (closed.personal, closed.scores)), of_many=True)
        for _, _, closed in reference(made.read, 2)[1:]
    ]
    assert [record["personal"] for record in records[1:]] == expected
    assert expected[-1]["personal_gain_log_loss"] != 0
    assert not any("personal" in site for record in records for site in record["sites"].values())


# --- what they are worth ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart data are not here ({HEART})")
def test_the_gains_are_those_of_the_page():
    local = {"rate": 0.1, "epochs": 2, "batch": 32}
    tuned = {"preset": "fedavg", "local": local, "personal": {"kind": "fine_tune", "rate": 0.1, "epochs": 10}}
    read, found = folders.read(HERE / "studies" / "heart", HEART), {}
    for algorithm in (*({"preset": "ditto", "local": {**local, "pull": pull}} for pull in (0.1, 1.0)), tuned):
        of = Study.model_validate(read.study.model_dump(mode="json") | {"algorithm": algorithm})
        *_, (_, _, closed) = reference(replace(read, study=of), 30)
        for site in closed.scores:
            shared, own = (it[site][0][1] / it[site][0][0] for it in (closed.scores, closed.personal))
            found.setdefault(site, [shared]).append(own)
    page = (HERE / "docs" / "local.md").read_text().partition("| hospital | fedavg |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()[2:]]
    assert [row[0] for row in rows] == sorted(found)
    for site, *said in rows:
        np.testing.assert_allclose([float(value) for value in said], found[site], atol=0.006)
    assert found["switzerland"][1] < found["switzerland"][0] - 0.25


@pytest.fixture(scope="module")
def survivor(tmp_path_factory):
    """A study of ditto that died six times between two answers, and then ended: its folder, its place and what it ended with."""
    folder = tmp_path_factory.mktemp("survivor") / "toy"
    init(folder, as_json=True)
    words = folder / "study.toml"
    words.write_text(words.read_text().replace('preset = "fedavg"', 'preset = "ditto"'))
    read = folders.read(folder)
    place = folders.state_of(folder, "toy", folder.parent / "state")
    folders.prepare(place, fresh=False)
    visits = ["statistics", *["train"] * 6, "score"]
    for answers in (2, 7, 4, 5, 9, 3, 6):
        with pytest.raises(Killed):
            live(read, place, visits, answers, ("train", "score"))
    return SimpleNamespace(
        folder=folder, read=read, place=place, state=live(read, place, visits, 1000, ("train", "score"))
    )


def test_a_run_that_dies_between_any_two_answers_keeps_each_sites_model_bit_for_bit(survivor):
    expected = reference(survivor.read, 6)
    assert survivor.state.theta.tobytes() == expected[-1][0].theta.tobytes()
    assert {file.stem for file in survivor.place.memories.glob("*.memory")} == set(survivor.read.sites)
    with Ledger.open(survivor.place.ledger) as ledger:
        assert [recorded(visit.record) for visit in ledger.visits()] == [its for _, its, _ in expected]


def test_gains_are_told_by_the_table_the_report_and_mlflow(tmp_path, warm, prefect_beside):
    folder = tmp_path / "toy"
    init(folder, as_json=True)
    warm(folder / "mlruns")
    for file, old, new in (
        ("study.toml", 'preset = "fedavg"', 'preset = "ditto"'),
        ("operations.toml", "rounds = 10 ", "rounds = 2 "),
    ):
        words = (folder / file).read_text()
        assert old in words
        (folder / file).write_text(words.replace(old, new))
    done = fedrounds("run", folder, **prefect_beside)
    assert done.returncode == 0, done.stderr
    assert "AUC personal" in " ".join(done.stdout.split())
    with Ledger.open(folder / "mlruns" / "toy" / "ledger.db") as ledger:
        visits, champion = ledger.visits(), ledger.standing().champion
    shown = next(visit.record for visit in visits if visit.record["scored"] == champion)  # by the report
    last, page = visits[-1].record, next((folder / "mlruns" / "artifacts").rglob("report.html")).read_text()
    with contextlib.closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        about = dict(store.execute("select value, run_uuid from tags where key = 'fedrounds.about'"))
        points = {
            (run, key, step): value
            for run, key, step, value in store.execute("select run_uuid, key, step, value from metrics")
        }
    assert about.keys() >= {"lineage", "round 2"}
    for site, record in last["sites"].items():
        own, run = record["personal"], about[f"site {site}"]
        assert {name: points[run, name, 2] for name in own} == own
        assert own["personal_gain_auc"] == own["personal_auc"] - points[run, "auc", 2]
        assert own["personal_gain_log_loss"] == points[run, "log_loss", 2] - own["personal_log_loss"] != 0
        steps = [step for of, key, step in points if (of, key) == (run, "personal_gain_log_loss")]
        assert sorted(steps) == [0, 1, 2]
        gain = shown["sites"][site]["personal"]["personal_gain_auc"]
        assert f">{gain:+.3f}<".replace("-", "−") in page
        assert f"{own['personal_auc']:.3f}" in next(line for line in done.stdout.splitlines() if line.startswith(site))
    for run in ("lineage", "round 2"):
        assert points[about[run], "personal_gain_brier", 2] == last["personal"]["personal_gain_brier"] != 0
        assert (about[run], "personal_auc", 2) not in points  # four models' scores are not to be ranked together
    assert "AUC personal" in page
    assert "is a model that each hospital trains for itself" in page


def test_a_hospital_that_shows_no_scores_shows_none_of_its_own_model():
    quiet = Policy(minimum_patients=1, finest_bins=10_000, merge_scores=False, local_metrics=False)
    closed = list(simulate(build(study(ditto())), sites(), 1, policy=quiet))[-1]
    assert not any(part.any() for sums in closed.personal.values() for part in sums)
    shown = list(simulate(build(study(ditto())), sites(), 1, policy=OPEN))[-1]
    assert shown.state.theta.tobytes() == closed.state.theta.tobytes()


# --- layers of a site's own -------------------------------------------------------------------------------------------


def layered(*layers, **parts):
    return fedavg(personal={"kind": "layers", "layers": list(layers)}, **parts)


NETWORK = {"model": {"kind": "mlp", "hidden": [4]}}


@pytest.mark.parametrize("layers", [("hidden_1",), ("output",)])
def test_layers_of_a_sites_own_are_a_textbook_loop(layers):
    plan, data = build(study(layered(*layers), **NETWORK)), sites()
    size, family = plan.family.layout.size, plan.family
    cut = plan.family.layout.shapes["hidden_1"]
    first = cut[0] * cut[1]  # hidden_1 with its biases, then the output with its own
    mine = np.arange(size) < first if layers == ("hidden_1",) else np.arange(size) >= first
    theta = plan.start().theta
    own = dict.fromkeys(data, theta[mine])
    rows = {site: np.column_stack([part.X, np.ones(len(part.y))]) for site, part in data.items()}
    judged = {site: np.column_stack([part.X_valid, np.ones(12)]) for site, part in data.items()}
    data = {site: replace(part, X=rows[site], X_valid=judged[site]) for site, part in data.items()}
    for closed in simulate(plan, data, 3):
        for site, part in data.items():  # scored before it trains
            before = theta.copy()
            before[mine] = own[site]
            losses = family.losses(family.predict(before, judged[site]), part.y_valid)
            assert closed.personal[site][0][1] == pytest.approx(losses.sum(), rel=1e-12)
        if closed.ask != "train":
            break
        trained = {}
        for site, part in data.items():
            v = theta.copy()
            v[mine] = own[site]
            for _ in range(STEPS):
                v = v - RATE * family.gradient(v, rows[site], part.y)
            trained[site], own[site] = v, v[mine]
        n = {site: len(part.y) for site, part in data.items()}
        theta = sum(n[site] * trained[site] for site in data) / sum(n.values())
        np.testing.assert_allclose(closed.state.theta, theta, rtol=1e-12, atol=1e-13)
    assert closed.ask == "score"


@pytest.mark.parametrize(
    ("algorithm", "more", "said"),
    [
        (layered("hidden_1"), {}, "layers of a site's own need a model that has layers"),
        (layered("hidden_2"), NETWORK, "expected `layers` of algorithm.personal to be some of hidden_1, output, found hidden_2"),
        (layered("hidden_1", "output"), NETWORK, "to be some of hidden_1, output, found all"),
        (layered("hidden_1", combine={"kind": "median"}), NETWORK | {"weights": "uniform"}, "so expected combine 'weighted_mean', found 'median'"),
        (layered("hidden_1") | {"preset": "fednova"}, NETWORK, "'fednova' reckons by how far a site went"),
        (layered("hidden_1") | {"preset": "scaffold"}, NETWORK, "'scaffold' reckons by how far a site went"),
        (layered("hidden_1") | {"preset": "ditto"}, NETWORK, "has a model of its own already"),
    ],
)  # fmt: skip
def test_layers_that_could_not_be_a_sites_own_are_refused(algorithm, more, said):
    with pytest.raises(ValidationError, match=said):
        study(algorithm, **more)


def test_hospitals_apart_keep_layers_of_their_own_as_one_process_does_though_rounds_fail_and_agents_die(apart):
    words = {
        'preset = "fedavg"': 'preset = "fedavg"\npersonal = { kind = "layers", layers = ["hidden_1"] }',
        'kind = "logistic"': 'kind = "mlp"\nhidden = [3]',
    }
    made = apart(protocol=words)
    with made.run() as run:
        made.gate(run)
        made.visit(run, "statistics")
        made.visit(run, "train")
        asking = run.open("train")
        with pytest.raises(QuorumError):  # what north then trained is for nothing
            run.aggregate(asking, made.ask(run, asking, sites=("north",)))
        made.hospital("north", anew=True)
        made.visit(run, "train")
        made.hospital("south", anew=True)
        made.visit(run, "score")
    with Ledger.open(made.place.ledger) as ledger:
        found = [recorded(visit.record) for visit in ledger.visits()]
    assert found == [its for _, its, _ in reference(made.read, 2)]
    assert any(site["personal_gain_log_loss"] != 0 for site in found[-1].values())


def test_a_cluster_that_would_lose_layers_of_a_sites_own_is_refused_as_ditto_is():
    assert study(layered("hidden_1"), **NETWORK).averaging.remembers
    assert study(ditto()).averaging.remembers
    assert not study(fedavg(personal=TUNED)).averaging.remembers


def test_who_reads_is_told_whether_a_sites_own_model_stays_there():
    for algorithm in (ditto(), fedavg(personal=TUNED)):
        assert study(algorithm).averaging.stays == "that never leaves it"
    assert study(layered("output"), **NETWORK).averaging.stays == "whose own layers (output) leave in its updates"
