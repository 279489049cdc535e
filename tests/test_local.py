"""What a site does in a round: each rule beside a textbook loop, where it ends, and what a site remembers when rounds fail and replies are lost."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from lives import Killed, live
from pydantic import ValidationError
from scipy.optimize import minimize

from fedrounds.cli.init import init
from fedrounds.core import local
from fedrounds.core.errors import QuorumError, StateError, StudyError
from fedrounds.core.models.huber import huber
from fedrounds.core.models.linear import linear
from fedrounds.core.models.logistic import logistic
from fedrounds.core.models.svm import svm
from fedrounds.core.pace import walk as walked
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.tasks import folder as folders
from fedrounds.tasks.memory import Memory, remembering
from fedrounds.tasks.ward import Ward

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(50, 3)), RNG.normal(size=50)
GRADIENT = linear(3, intercept=False).gradient
REMEMBER = ("scaffold", "feddyn")
RATE, STEPS, ALPHA = 0.1, 5, 0.5


def study(algorithm, width=3, **words):
    """Plain numbers as they are, every row in training; sites that differ."""
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


def preset(name, **more):
    """Full-batch steps, five a round."""
    more = {"alpha": ALPHA, **more} if name == "feddyn" else more
    return {"preset": name, "local": {"rate": RATE, "steps": STEPS, "batch": "all", **more}}


def sites(seed=0, sizes=(10, 25, 60, 15)):
    """Four hospitals whose patients differ in every way: other columns vary, other coefficients hold."""
    rng = np.random.default_rng(seed)
    data = {}
    for name, n in zip(("east", "north", "south", "west"), sizes, strict=True):
        A = rng.normal(size=(n, 3)) * rng.uniform(0.8, 1.5, 3)
        y = A @ rng.normal(scale=2.0, size=3) + rng.normal(scale=0.1, size=n)
        data[name] = Rows(A, y, A[:0], y[:0])
    return data


def pooled(data):
    A, y = np.concatenate([rows.X for rows in data.values()]), np.concatenate([rows.y for rows in data.values()])
    return np.linalg.lstsq(A, y, rcond=None)[0]


def last(of, data, rounds, **options):
    """The model after so many rounds."""
    *_, closed = simulate(build(of), data, rounds, **options)
    return closed.state.theta


def slope(rows, w):
    """Gradient of half the mean squared error."""
    return rows.X.T @ (rows.X @ w - rows.y) / len(rows.y)


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(found).max() > 1e-3


# --- plain rules beside their papers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_the_textbooks(nesterov):
    w = ahead = np.ones(3)
    v = np.zeros(3)
    for _ in range(7):
        if nesterov:  # Sutskever et al. 2013, equations 3 and 4: the gradient is taken at w + beta v
            v = 0.9 * v - 0.05 * GRADIENT(w + 0.9 * v, X, Y)
            w = w + v
            ahead = w + 0.9 * v
        else:
            v = 0.9 * v + GRADIENT(w, X, Y)
            w = ahead = w - 0.05 * v
    found, taken = walked(local.heavy_ball(0.05, 0.9, nesterov), GRADIENT, np.ones(3), X, Y, RNG, 7, "all")
    same(found, ahead)
    assert taken == 7


def test_steps_are_so_many_batches_however_many_rows_there_are():
    expected = np.ones(3)
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.permutation(50) for _ in range(2)])
    cuts = [rows[:20], rows[20:40], rows[40:50], rows[50:70], rows[70:90]]
    for part in cuts:
        expected = expected - 0.1 * GRADIENT(expected, X[part], Y[part])
    found, taken = walked(local.descent(0.1), GRADIENT, np.ones(3), X, Y, np.random.default_rng(1), 1, 20, steps=5)
    same(found, expected)
    assert taken == 5


@pytest.mark.parametrize(("words", "factor"), [
    ({"kind": "power", "by": 0.5}, lambda r: 0.5**r),
    ({"kind": "inverse", "by": 3.0}, lambda r: 1 / (1 + 3.0 * r)),
])  # fmt: skip
def test_the_rate_falls_from_round_to_round(words, factor):
    data, w = sites(), np.zeros(3)
    n = sum(len(rows.y) for rows in data.values())
    for number in range(4):
        ends = {}
        for name, rows in data.items():
            ends[name] = w
            for _ in range(STEPS):
                ends[name] = ends[name] - RATE * factor(number) * slope(rows, ends[name])
        w = w + sum(len(data[name].y) / n * (end - w) for name, end in ends.items())
    same(last(study(preset("fedavg", decay=words)), data, 4), w)


def test_a_site_stops_where_its_training_loss_rises_with_the_model_before():
    seen = []

    def loss(theta):
        seen.append(theta.copy())
        return (5.0, 4.0, 3.0, 3.5, 1.0)[len(seen) - 1]

    found, taken = walked(local.descent(0.1), GRADIENT, np.ones(3), X, Y, np.random.default_rng(1), 5, 20, loss=loss)
    assert (len(seen), taken) == (4, 9)  # epochs of three batches; the fourth was for nothing
    assert found.tobytes() == seen[2].tobytes()


def test_the_first_epoch_counts_even_if_the_loss_is_no_number_after_it():
    found, taken = walked(local.descent(0.1), GRADIENT, np.ones(3), X, Y, RNG, 5, "all", loss=lambda _: np.nan)
    assert taken == 1
    assert (found != 1.0).all()


def test_too_large_a_rate_does_no_harm_where_sites_stop_early():
    wild = {"preset": "fedavg", "local": {"rate": 0.9, "epochs": 30, "batch": "all"}}
    data = sites()
    careful = {"preset": "fedavg", "local": {**wild["local"], "early_stop": True}}
    assert np.abs(last(study(careful), data, 3)).max() < 50 < np.abs(last(study(wild), data, 3)).max()


def test_epochs_and_steps_are_not_both_stated():
    with pytest.raises(ValidationError, match="expected `epochs` or `steps`, found both"):
        local.Sgd(kind="sgd", epochs=2, steps=3)


def test_new_words_that_are_left_out_change_no_digest():
    plain = study({"preset": "fedavg", "local": {"rate": 0.1}})
    assert set(plain.model_dump()["algorithm"]["local"]) == {"kind", "rate", "epochs", "batch"}
    stated = study({"preset": "fedavg", "local": {"rate": 0.1, "early_stop": False, "steps": None}})
    assert stated.digest == plain.digest
    other = study({"preset": "fedavg", "local": {"rate": 0.1, "steps": 3}})
    assert Study.model_validate(other.model_dump(mode="json")).digest == other.digest != plain.digest


# --- rules whose update is not all, beside their papers ----------------------------------------------------------------


def shares(data):
    n = sum(len(rows.y) for rows in data.values())
    return {name: len(rows.y) / n for name, rows in data.items()}


def test_scaffold_is_algorithm_1_with_option_ii():
    data, x, c = sites(), np.zeros(3), np.zeros(3)
    own, p = {name: np.zeros(3) for name in data}, shares(data)
    for _ in range(6):
        ends = {}
        for name, rows in data.items():
            y = x
            for _ in range(STEPS):
                y = y - RATE * (slope(rows, y) - own[name] + c)
            ends[name] = y
        own = {name: own[name] - c + (x - ends[name]) / (STEPS * RATE) for name in data}
        x, c = sum(p[name] * ends[name] for name in data), sum(p[name] * own[name] for name in data)
    same(last(study(preset("scaffold")), data, 6), x)


def test_feddyn_is_algorithm_1():
    data, theta, h = sites(), np.zeros(3), np.zeros(3)
    own, p = {name: np.zeros(3) for name in data}, shares(data)
    for _ in range(6):
        ends = {}
        for name, rows in data.items():
            w = theta
            for _ in range(STEPS):
                w = w - RATE * (slope(rows, w) - own[name] + ALPHA * (w - theta))
            ends[name] = w
        own = {name: own[name] - ALPHA * (ends[name] - theta) for name in data}
        h = h - ALPHA * sum(p[name] * (ends[name] - theta) for name in data)
        theta = sum(p[name] * ends[name] for name in data) - h / ALPHA
    same(last(study(preset("feddyn")), data, 6), theta)


def test_fednova_is_equation_11():
    """Batches of 10, two epochs: 2, 6, 12 and 4 steps at sites of 10, 25, 60 and 15 rows."""
    data, x, p = sites(), np.zeros(3), shares(sites())

    def rng_of(number, site):
        return np.random.default_rng([number, len(site), ord(site[0])])

    for number in range(1, 5):
        d, tau = {}, {}
        for name, rows in data.items():
            rng, y, taken = rng_of(number, name), x, 0
            for _ in range(2):
                order = rng.permutation(len(rows.y))
                for part in np.split(order, range(10, len(order), 10)):
                    y = y - RATE * rows.X[part].T @ (rows.X[part] @ y - rows.y[part]) / len(part)
                    taken += 1
            d[name], tau[name] = (x - y) / taken, taken
        assert list(tau.values()) == [2, 6, 12, 4]
        x = x - sum(p[k] * tau[k] for k in data) * sum(p[k] * d[k] for k in data)
    algorithm = {"preset": "fednova", "local": {"rate": RATE, "epochs": 2, "batch": 10}}
    same(last(study(algorithm), data, 4, rng_of=rng_of), x)


# --- where they end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMEMBER)
def test_it_reaches_the_pooled_optimum_where_fedavg_with_local_steps_does_not(name):
    """Distance to pooled least squares after 300 rounds: FedAvg 0.11, as after 100; with a memory 2e-15."""
    data = sites()
    best = pooled(data)
    drifted = last(study(preset("fedavg")), data, 300)
    assert np.abs(drifted - best).max() > 0.05
    assert np.abs(last(study(preset(name)), data, 300) - best).max() < 1e-9


def test_fednova_does_not_lean_to_the_site_that_takes_more_steps():
    """Sites of equal weight whose optima are 0 and 1, one of 1 step and one of 8, by tiny steps: the middle is .5, FedAvg ends near 8/9."""
    ones = np.ones((80, 1))
    few, many = Rows(ones[:10], np.zeros(10), ones[:0], ones[:0, 0]), Rows(ones, np.ones(80), ones[:0], ones[:0, 0])
    ends = {}
    for name in ("fedavg", "fednova"):
        algorithm = {"preset": name, "local": {"rate": 0.005, "batch": 10}}
        of = study(algorithm, 1, weights="uniform")
        ends[name] = float(last(of, {"few": few, "many": many}, 600)[0])
    assert ends["fedavg"] == pytest.approx(8 / 9, abs=0.01)
    assert ends["fednova"] == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize("name", REMEMBER)
@pytest.mark.parametrize("chance", [0.2, 0.5])
def test_sites_that_drop_out_leave_the_end_where_it_is(name, chance):
    data, rng = sites(), np.random.default_rng(8)
    gone = {number: {site for site in data if rng.random() < chance} for number in range(1, 602)}

    def lost(request, site):
        return site in gone[request.round] - {min(data)}  # somebody is always heard

    *_, closed = simulate(build(study(preset(name))), data, 600, lost=lost)
    assert np.abs(closed.state.theta - pooled(data)).max() < 1e-9
    assert sum(map(len, gone.values())) > 2000 * chance


@pytest.mark.parametrize("name", [*REMEMBER, "fednova"])
def test_the_order_of_sites_changes_no_bit(name):
    data, of = sites(), study({"preset": name, "local": {"batch": 10}})
    ends = {last(of, {site: data[site] for site in order}, 3).tobytes() for order in permutations(data)}
    assert len(ends) == 1


@pytest.mark.parametrize("codec", ["float32", "rotated8"])
@pytest.mark.parametrize("name", [*REMEMBER, "fednova"])
def test_narrow_messages_are_the_same_as_bytes_and_end_near_the_wide_ones(name, codec):
    data = sites()
    narrow = study(preset(name), protocol={"codec": codec})
    ends = [last(narrow, data, 60, wire=wire) for wire in (False, True)]
    assert ends[0].tobytes() == ends[1].tobytes()
    wide = last(study(preset(name)), data, 60)
    assert np.abs(ends[0] - wide).max() < (1e-5 if codec == "float32" else 0.05)


def test_the_mean_control_is_over_the_sites_that_ever_took_part():
    heard = {"a": (1.0, {"control": np.array([4.0])}), "b": (3.0, {"control": np.array([8.0])})}
    kept = local.controls({}, {"a": heard["a"]})
    assert local.mean_control({}, 1).tolist() == [0.0]
    assert local.mean_control(kept, 1).tolist() == [4.0]
    kept = local.controls(kept, {"b": heard["b"]})
    assert local.mean_control(kept, 1).tolist() == [7.0]
    kept = local.controls(
        kept, {"a": (5.0, {"control": np.array([0.0])})}
    )  # other rows and another control: in the place of the last
    assert local.mean_control(kept, 1).tolist() == [3.0]


# --- what they do not go with -----------------------------------------------------------------------------------------


RANGED = {"features": [{"type": "number", "name": "x0", "range": [-9, 9]}], "weights": "uniform"}
DP = {"dp": {"unit": "patient", "epsilon": 3.0, "patients": 50, "rounds": 5}}


@pytest.mark.parametrize(("algorithm", "words", "said"), [
    (preset("scaffold"), {"privacy": {"protect": {"kind": "masked"}}}, "the coordinator must know each site's own, which masks hide"),
    (preset("feddyn"), {"privacy": {"protect": {"kind": "ckks", "key_holder": "east"}}}, "which masks hide"),
    ({**preset("scaffold"), "combine": {"kind": "median"}}, {"weights": "uniform"}, "expected combine 'weighted_mean', found 'median'"),
    ({"preset": "fedavg", "local": {"steps": 3}}, {"privacy": DP}, "leave out the local rule's steps, decay and early_stop"),
    ("scaffold", {"privacy": DP}, "expected local rule 'sgd', found 'scaffold'"),
    ({"preset": "scaffold", "local": {"kind": "sgd"}}, {}, "preset 'scaffold' means local 'scaffold', found 'sgd'"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_reason(algorithm, words, said):
    with pytest.raises(ValidationError, match=said):
        study(algorithm, 1, **RANGED | words)


# --- what a site remembers --------------------------------------------------------------------------------------------


def test_what_a_round_leaves_counts_from_the_next_and_not_when_the_round_is_asked_again(tmp_path):
    state = {number: {"control": np.array([float(number)])} for number in range(1, 6)}
    memory = Memory(tmp_path / "memories" / "east.memory")
    assert memory.before(1) == {}
    for number in (1, 2, 2, 3):  # round 2 failed once
        begun = memory.before(number)
        assert begun.get("control", 0) == (number - 1)
        memory.keep(number, state[number])
    again = Memory(tmp_path / "memories" / "east.memory")  # after a kill
    assert [again.before(number)["control"][0] for number in (3, 4, 9)] == [2, 3, 3]
    assert [file.name for file in (tmp_path / "memories").iterdir()] == ["east.memory"]


def test_a_rule_that_remembers_nothing_leaves_no_file(tmp_path):
    memory = Memory(tmp_path / "memories" / "east.memory")
    memory.keep(1, {})
    assert not memory
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_memory_is_named_and_what_to_do(tmp_path):
    (tmp_path / "east.memory").write_bytes(b"FEDR and more")
    with pytest.raises(StateError, match=r"what site 'east' remembers .* --fresh"):
        Memory(tmp_path / "east.memory")


def test_a_cluster_is_refused_before_anything_is_asked():
    run = SimpleNamespace(folder=SimpleNamespace(study=study("scaffold")), carrier="process", on_dask=True)
    with pytest.raises(StudyError, match="a worker that dies would lose what its sites remember; leave --runner out"):
        remembering(run)


@pytest.mark.parametrize("name", REMEMBER)
def test_hospitals_apart_end_where_one_process_does_though_rounds_fail_and_agents_die(apart, name):
    study = apart(protocol={'preset = "fedavg"': f'preset = "{name}"'})
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        study.visit(run, "train")
        for _ in range(2):  # one answers, the quorum of two is missed: what it then remembered is for nothing
            asking = run.open("train")
            with pytest.raises(QuorumError):
                run.aggregate(asking, study.ask(run, asking, sites=("north",)))
            study.hospital("north", anew=True)
        study.visit(run, "train")
        study.hospital("south", anew=True)
        while run.state.round < 3:
            study.visit(run, "train")
        study.visit(run, "score")
        assert any(key.startswith("local.control.") for key in run.state.memory)
    assert study.seen == study.reference()


@pytest.mark.parametrize("name", REMEMBER)
def test_a_run_that_dies_between_any_two_answers_goes_on_bit_for_bit(tmp_path, capfd, name):
    """Each life ends later in a round: after no answer, one, …, all four before they are folded; and one right after a round is closed."""
    init(tmp_path / "toy", as_json=True)
    words = tmp_path / "toy" / "study.toml"
    words.write_text(words.read_text().replace('preset = "fedavg"', f'preset = "{name}"'))
    read = folders.read(tmp_path / "toy")
    place = folders.state_of(tmp_path / "toy", "toy", tmp_path / "state")
    folders.prepare(place, fresh=False)
    visits = ["statistics", *["train"] * 6, "score"]
    for answers in (2, 7, 4, 5, 9, 3):
        with pytest.raises(Killed):
            live(read, place, visits, answers)
    found = live(read, place, visits, 1000)
    plan = build(read.study)
    wards = {site: Ward(file, plan, read.data) for site, file in read.sites.items()}
    cohorts = {site: ward.cohort for site, ward in wards.items() if ward.load()}
    *_, closed = simulate(plan, cohorts, 6)
    assert found.theta.tobytes() == closed.state.theta.tobytes()
    assert found.memory.keys() == closed.state.memory.keys()
    assert all(found.memory[key].tobytes() == array.tobytes() for key, array in closed.state.memory.items())


# --- models with other losses -----------------------------------------------------------------------------------------


def optimum(loss, size):
    return minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-12, "maxiter": 5000}).x


def data_of(n=200):
    rng = np.random.default_rng(5)
    A = np.column_stack([rng.normal(size=(n, 3)), np.ones(n)])
    return A, A @ [1.0, -0.5, 0.0, 0.3] + rng.standard_t(2, size=n)


def test_huber_regression_is_the_optimum_of_hubers_loss():
    A, y = data_of()

    def loss(w):
        r = np.abs(A @ w - y)
        return np.where(r <= 0.7, r**2 / 2, 0.7 * (r - 0.35)).mean()

    of = study(
        {"preset": "fedavg", "local": {"rate": 0.5, "epochs": 50, "batch": "all"}}, model={"kind": "huber", "bend": 0.7}
    )
    parts = {f"s{k}": Rows(A[k::4], y[k::4], A[:0], y[:0]) for k in range(4)}
    found = last(study(preset("scaffold", rate=0.5), model={"kind": "huber", "bend": 0.7}), parts, 400)
    same(found, last(of, {"only": Rows(A, y, A[:0], y[:0])}, 40) + 0.0)
    np.testing.assert_allclose(found, optimum(loss, 4), atol=1e-6)
    assert huber(3, 0.7).estimator(found).predict(A[:, :3]) == pytest.approx(A @ found, abs=1e-12)


def test_the_support_vector_machine_is_scikit_learns_with_a_free_intercept():
    A, y = data_of()
    y = (y > 0.2).astype(float)
    l2 = 0.05

    def loss(w):
        return (np.maximum(1 - (2 * y - 1) * (A @ w), 0) ** 2).mean() + l2 / 2 * w[:3] @ w[:3]

    of = study(
        preset("scaffold", rate=0.2),
        target={"kind": "binary", "column": "y", "positive_above": 0.5},
        model={"kind": "svm", "l2": l2},
    )
    parts = {f"s{k}": Rows(A[k::4], y[k::4], A[:0], y[:0]) for k in range(4)}
    found = last(of, parts, 600)
    np.testing.assert_allclose(found, optimum(loss, 4), atol=1e-6)
    from sklearn.svm import LinearSVC

    theirs = LinearSVC(C=1 / (l2 * len(y)), intercept_scaling=1e4, tol=1e-10, max_iter=200_000).fit(A[:, :3], y)
    np.testing.assert_allclose(found[:3], theirs.coef_[0], atol=1e-3)
    family = svm(3)
    score = family.predict(found, A)
    assert score == pytest.approx(1 / (1 + np.exp(-2 * A @ found)), abs=1e-12)
    assert family.estimator(found).predict_proba(A[:, :3])[:, 1] == pytest.approx(score, abs=1e-12)
    assert family.layout == logistic(3).layout


@pytest.mark.parametrize(("family", "loss"), [
    (svm(3), lambda f, y: np.maximum(1 - (2 * y - 1) * f, 0) ** 2),
    (huber(3, 0.7), lambda f, y: np.where(np.abs(f - y) <= 0.7, (f - y) ** 2 / 2, 0.7 * (np.abs(f - y) - 0.35))),
])  # fmt: skip
def test_a_gradient_is_the_slope_of_its_loss(family, loss):
    A, y = data_of(40)
    y = (y > 0).astype(float)
    theta = np.array([0.3, -0.2, 0.5, 0.1])
    step = 1e-6 * np.eye(4)
    numeric = [(loss(A @ (theta + d), y).mean() - loss(A @ (theta - d), y).mean()) / 2e-6 for d in step]
    np.testing.assert_allclose(family.gradient(theta, A, y), numeric, atol=1e-8)
