"""Boosted trees by federated histograms: a textbook loop beside them, the same bits however rows are spread, and scikit-learn's accuracy."""

from __future__ import annotations

from typing import Any

import flamby_heart
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from test_heart_exact import HEART
from threadpoolctl import threadpool_limits

from fedrounds.core import quantiles
from fedrounds.core.errors import NoFit, QuorumError, StudyError
from fedrounds.core.export import pipeline
from fedrounds.core.messages import pack, unpack
from fedrounds.core.models.boosting import Boosting, Growth
from fedrounds.core.models.branches import STEP, slopes
from fedrounds.core.models.trees import Forest
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows, clean, encode
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table
from fedrounds.tasks.lean import skops_io
from fedrounds.tasks.track import TRUSTED

TASKS = ("regression", "binary", "multiclass")
TARGETS: dict[str, dict[str, Any]] = {
    "regression": {"kind": "regression", "column": "y"},
    "binary": {"kind": "binary", "column": "y", "positive": [1], "negative": [0]},
    "multiclass": {"kind": "multiclass", "column": "y", "classes": [0, 1, 2]},
}


def study_of(task: str, columns: int = 3, /, model: dict[str, Any] | None = None, **more: Any) -> Study:
    return Study.model_validate(
        {
            "name": "toy",
            "target": TARGETS[task],
            "features": [{"type": "number", "name": f"x{j}", "range": [-20, 20]} for j in range(columns)],
            "model": {"kind": "boosting", "trees": 3, "most": 5, "depth": 3, "min_rows": 4, **(model or {})},
            "algorithm": "exact",
        }
        | more
    )


def made_up(task: str, rows: int = 300, columns: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole numbers and ones, and a target that two columns make."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-4, 5, (rows, columns)).astype(float)
    score = X[:, 0] * X[:, 1] / 4 + np.abs(X[:, 1]) / 2 + rng.normal(0, 1, rows)
    y = {"regression": 30 + 7 * score, "binary": score > 0.5, "multiclass": np.digitize(score, [-0.5, 1.0])}[task]
    return np.hstack([X, np.ones((rows, 1))]), y.astype(float)


def spread(X: np.ndarray, y: np.ndarray, site: np.ndarray) -> dict[str, Rows]:
    """The rows at the sites that `site` (n,) numbers."""
    return {f"s{i}": Rows(X[site == i].copy(), y[site == i], X[:0], y[:0]) for i in np.unique(site)}


def together(X: np.ndarray, y: np.ndarray) -> dict[str, Rows]:
    return spread(X, y, np.zeros(len(y), int))


def trained(study: Study, data: Any, rounds: int = 1, **more: Any) -> np.ndarray:
    *_, last = simulate(build(study), data, rounds, **more)
    return last.state.theta


# --- a textbook loop --------------------------------------------------------------------------------------------------


def grid(number: float) -> int:
    """Steps of the public grid."""
    return round(number / STEP)


def start(task: str, y: np.ndarray) -> tuple[list[float], float]:
    """What scores begin with, and the unit of gradients."""
    if task == "regression":
        unit = 2.0 ** np.ceil(np.log2(np.abs(y).max()))
        base = unit * sum(grid(value / unit) for value in y) * STEP / len(y)
        return [base], 2.0 ** np.ceil(np.log2(np.abs(y - base).max()))
    shares = [float(np.mean(y == k)) for k in range(3)]
    return ([np.log(shares[1] / (1 - shares[1]))] if task == "binary" else [np.log(share) for share in shares]), 1.0


def slope(task: str, k: int, score: np.ndarray, y: float, unit: float) -> tuple[int, int]:
    """Gradient and Hessian of a row in steps of the grid."""
    if task == "regression":
        return grid((score[0] - y) / unit), grid(1.0)
    p = float(np.exp(score[k]) / np.exp(score).sum() if task == "multiclass" else 1 / (1 + np.exp(-score[0])))
    return grid(p - (y == (k if task == "multiclass" else 1.0))), grid(p * (1 - p))


def textbook(task: str, X: np.ndarray, y: np.ndarray, options: Boosting) -> np.ndarray:
    """Scores (n, k) by the exact greedy algorithm of Chen and Guestrin (2016), one row at a time, between neighbouring values."""
    base, unit = start(task, y)
    scores = np.array([base] * len(y))

    def added(members: list[int], slopes: dict[int, tuple[int, int]]) -> tuple[float, float]:
        return unit * STEP * sum(slopes[i][0] for i in members), STEP * sum(slopes[i][1] for i in members)

    def grow(members: list[int], slopes: dict[int, tuple[int, int]], level: int) -> dict[int, float]:
        g, h = added(members, slopes)
        best, parts = 0.0, None
        for column in range(X.shape[1] - 1) if level < options.depth else []:
            for cut in sorted(set(X[:, column])):
                left = [i for i in members if X[i, column] <= cut]
                right = [i for i in members if X[i, column] > cut]
                (a, b), (c, d) = added(left, slopes), added(right, slopes)
                if min(len(left), len(right)) < options.min_rows or min(b, d) < options.min_weight:
                    continue
                gain = a * a / (b + options.l2) + c * c / (d + options.l2) - g * g / (h + options.l2)
                if gain / 2 - options.gamma > best:
                    best, parts = gain / 2 - options.gamma, (left, right)
        if parts is None:
            return dict.fromkeys(members, -options.rate * g / (h + options.l2))
        return grow(parts[0], slopes, level + 1) | grow(parts[1], slopes, level + 1)

    for _ in range(options.trees):
        before = scores.copy()
        for k in range(len(base)):
            slopes = {i: slope(task, k, before[i], y[i], unit) for i in range(len(y))}
            for i, value in grow(list(range(len(y))), slopes, 0).items():
                scores[i, k] += value
    return scores


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("sites", [1, 4])
def test_trees_are_those_of_a_textbook_loop_over_all_rows(task: str, sites: int):
    study = study_of(task, model={"l2": 0.7, "gamma": 0.05, "rate": 0.3})
    X, y = made_up(task, rows=90)
    theta = trained(study, spread(X, y, np.arange(90) % sites))
    forest = study.model.forest(3, task)  # type: ignore[union-attr]
    expected = textbook(task, X, y, study.model)  # type: ignore[arg-type]
    assert forest.grown(theta) == 3
    np.testing.assert_allclose(forest.scores(theta, X, 3), expected, rtol=1e-12, atol=1e-12)


# --- the same bits ----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    task=st.sampled_from(TASKS),
    seed=st.integers(0, 3),
    sites=st.lists(st.integers(0, 5), min_size=120, max_size=120),
    order=st.randoms(use_true_random=False),
)
def test_any_spread_and_order_of_the_rows_gives_the_same_bytes(task: str, seed: int, sites: list[int], order: Any):
    rng = np.random.default_rng(seed)
    X, y = made_up(task, rows=120, seed=seed)
    X[:, 0] += rng.normal(size=120)  # no two alike
    X[:, 1] *= 10.0 ** rng.integers(-7, 13)
    shuffled = list(range(120))
    order.shuffle(shuffled)
    study = study_of(task, model={"min_rows": 2})
    spread_out = trained(study, spread(X[shuffled], y[shuffled], np.array(sites)), rounds=2)
    assert spread_out.tobytes() == trained(study, together(X, y), rounds=2).tobytes()


def test_a_site_of_one_row_and_one_of_one_class_change_nothing():
    X, y = made_up("binary")
    site = np.where(y > 0, 2, 1)
    site[7] = 0
    study = study_of("binary")
    assert [len(rows.y) for rows in spread(X, y, site).values()] == [1, int((y == 0).sum()), int(y.sum()) - 1]
    assert trained(study, spread(X, y, site)).tobytes() == trained(study, together(X, y)).tobytes()


def test_a_round_goes_on_where_the_last_one_ended_until_there_are_enough_trees():
    X, y = made_up("regression")
    data = spread(X, y, np.arange(300) % 3)
    forest = study_of("regression").model.forest(1, "regression")  # type: ignore[union-attr]
    after = [closed.state.theta for closed in simulate(build(study_of("regression")), data, 4)]
    assert [forest.grown(theta) for theta in after] == [3, 5, 5, 5, 5]
    assert after[2].tobytes() == after[1].tobytes()
    assert trained(study_of("regression", model={"trees": 5}), data).tobytes() == after[1].tobytes()


def test_what_a_site_remembers_changes_no_bit_lost_or_packed_or_of_other_rows():
    X, y = made_up("binary")
    other = np.roll(X, 1, axis=0), y
    parts = spread(X, y, np.arange(300) % 2)
    older = spread(*other, np.arange(300) % 2)
    options = Boosting(kind="boosting", trees=3, depth=3, min_rows=4)
    growth = Growth(options, "binary", Forest(3, 1, 3), 3)

    def driven(forget: str) -> bytes:
        rule, chance = growth.exact(), np.random.default_rng(1)
        work, exchange = dict(rule.start(growth.forest.empty(), {})), 0
        memory: dict[str, Any] = {site: {} for site in parts}
        while True:
            asked = {name: work[name] for name in rule.takes(exchange)}
            assert {name: array.shape for name, array in asked.items()} == rule.takes(exchange)
            totals: dict[str, Any] = {}
            for site, rows in parts.items():
                if forget == "lost" and chance.random() < 0.4:
                    memory[site] = {}
                if forget == "older":
                    memory[site] = rule.sums(asked, memory[site], older[site])[0]
                if forget == "packed":  # as the book of a hospital that is apart keeps it
                    memory[site] = unpack(pack({}, memory[site]))[1]
                memory[site], sums = rule.sums(asked, memory[site], rows)
                assert {name: array.shape for name, array in sums.items()} == rule.shapes(exchange)
                totals = {name: totals.get(name, 0.0) + array for name, array in sums.items()}
            theta, work, done, _ = rule.solve(work, totals)
            if done:
                assert exchange == 3 + 3 * 3 - 1
                return theta.tobytes()
            exchange += 1

    assert driven("nothing") == driven("lost") == driven("older") == driven("packed")


def test_messages_as_bytes_and_under_masks_give_the_same_trees():
    X, y = made_up("regression")
    data = spread(X, y, np.arange(300) % 3)
    clear = trained(study_of("regression"), data)
    assert trained(study_of("regression"), data, wire=True).tobytes() == clear.tobytes()
    hidden = study_of("regression", privacy={"protect": {"kind": "masked", "bits": 64}})
    assert trained(hidden, data, quorum=3).tobytes() == clear.tobytes()


def test_a_site_that_is_lost_on_the_way_stops_the_round_or_leaves_the_others_to_it():
    X, y = made_up("binary")
    data = spread(X, y, np.arange(300) % 3)

    def lost(request: Any, site: str) -> bool:
        return request.ask == "train" and request.exchange >= 5 and site == "s2"

    with pytest.raises(QuorumError):
        trained(study_of("binary"), data, quorum=3, lost=lost)
    closed = next(iter(simulate(build(study_of("binary")), data, 1, lost=lost)))
    assert closed.state.round == 1
    assert sorted(closed.training) == ["s0", "s1", "s2"]  # scored in the first exchange, before it was lost
    assert np.isfinite(closed.state.theta).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_case_weight_lets_a_row_count_so_many_times(task: str):
    X, y = made_up(task, rows=150)
    weight = np.random.default_rng(3).integers(1, 4, 150)
    study = study_of(task, model={"min_rows": 1})
    weighted = {"s0": Rows(X[:60], y[:60], X[:0], y[:0], weight[:60] * 1.0)}
    weighted["s1"] = Rows(X[60:], y[60:], X[:0], y[:0], weight[60:] * 1.0)
    repeated = together(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    predict = build(study).family.predict
    found = predict(trained(study, weighted), X)
    np.testing.assert_allclose(found, predict(trained(study, repeated), X), rtol=1e-12, atol=1e-12)
    assert np.abs(found - predict(trained(study, together(X, y)), X)).max() > 0.01


# --- bins -------------------------------------------------------------------------------------------------------------


def binned(values: np.ndarray, most: int, fewest: float) -> tuple[np.ndarray, np.ndarray]:
    """The edges of a column, and the rows of each bin."""
    X = values[:, None]
    edges = quantiles.grid(1)
    for _ in range(2):
        edges = quantiles.finer(edges, quantiles.counts(X, edges))
    found = quantiles.bins(edges, quantiles.counts(X, edges), most, fewest)
    return found[0], np.bincount(quantiles.codes(X, found)[:, 0], minlength=most)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 4e5])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_bins_hold_about_as_many_rows_each_on_any_scale(scale: float, centre: float):
    values = scale * (np.random.default_rng(0).normal(size=6400) + centre)
    edges, rows = binned(values, 64, 20)
    assert edges.max() < quantiles.BEYOND
    assert rows.min() >= 70
    assert rows.max() <= 115


def test_bins_of_few_values_are_those_values_and_none_holds_too_few_rows():
    values = np.repeat([0.0, 1.0, 2.5, 7.0], [50, 3, 40, 30])
    edges, rows = binned(values, 64, 1)
    np.testing.assert_allclose(edges[:3], [0.5, 1.75, 4.75], atol=0.05)
    assert rows[:4].tolist() == [50, 3, 40, 30]
    assert binned(values, 64, 10)[1][:3].tolist() == [50, 43, 30]
    assert (binned(np.ones(50), 64, 1)[0] == quantiles.BEYOND).all()


# --- accuracy ---------------------------------------------------------------------------------------------------------


def areas(
    plan: Any, theta: np.ndarray, train: tuple[Any, Any], valid: tuple[Any, Any], **same: Any
) -> tuple[float, float]:
    """Area under the curve of our model and of scikit-learn's on the same rows."""
    model = HistGradientBoostingClassifier(max_leaf_nodes=None, early_stopping=False, **same)
    with threadpool_limits(1):
        model.fit(train[0][:, :-1], train[1])
    ours, theirs = plan.family.predict(theta, valid[0]), model.predict_proba(valid[0][:, :-1])[:, 1]
    return roc_auc_score(valid[1], ours), roc_auc_score(valid[1], theirs)


@pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart-disease data are not here ({HEART})")
def test_on_four_real_hospitals_it_is_as_good_as_scikit_learn_on_all_rows():
    model = {"kind": "boosting", "trees": 100, "depth": 3, "rate": 0.05, "l2": 0.0, "bins": 255}
    words = flamby_heart.study(0, "exact").model_dump(mode="json", exclude={"model"})
    plan = build(Study.model_validate({**words, "model": model}))
    data = flamby_heart.cohorts(plan.study)
    *_, last = simulate(plan, data, 1)
    rows = [encode(cohort, plan.study, last.state.statistics, plan.ones) for cohort in data.values()]
    train = np.vstack([r.X for r in rows]), np.concatenate([r.y for r in rows])
    valid = np.vstack([r.X_valid for r in rows]), np.concatenate([r.y_valid for r in rows])
    ours, theirs = areas(plan, last.state.theta, train, valid, max_iter=100, max_depth=3, learning_rate=0.05)
    assert ours == pytest.approx(theirs, abs=0.01)


def test_on_made_up_rows_it_is_as_good_as_scikit_learn():
    rng = np.random.default_rng(5)
    X = np.hstack([rng.normal(size=(6000, 8)), np.ones((6000, 1))])
    score = X[:, 0] + X[:, 1] * X[:, 2] + np.sin(3 * X[:, 3])
    y = (rng.random(6000) < 1 / (1 + np.exp(-score))).astype(float)
    plan = build(study_of("binary", 8, model={"trees": 40, "most": 40, "depth": 4, "min_rows": 20, "l2": 0.0}))
    theta = trained(plan.study, spread(X[:3000], y[:3000], np.arange(3000) % 4))
    ours, theirs = areas(plan, theta, (X[:3000], y[:3000]), (X[3000:], y[3000:]), max_iter=40, max_depth=4)
    assert ours == pytest.approx(theirs, abs=0.01)


# --- without our code -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_estimator_is_scikit_learns_own_and_predicts_the_same(task: str):
    X, y = made_up(task)
    plan = build(study_of(task))
    theta = trained(plan.study, spread(X, y, np.arange(300) % 3), rounds=2)
    skops = skops_io()
    data = skops.dumps(plan.family.estimator(theta))
    assert set(skops.get_untrusted_types(data=data)) <= set(TRUSTED)
    estimator = skops.loads(data, trusted=TRUSTED)
    assert type(estimator).__module__.startswith("sklearn.")
    predict = estimator.predict if task == "regression" else estimator.predict_proba
    found = predict(X[:, :-1])[:, 1] if task == "binary" else predict(X[:, :-1])
    np.testing.assert_allclose(found, plan.family.predict(theta, X), rtol=1e-12, atol=1e-12)
    empty = plan.family.estimator(plan.family.init(np.random.default_rng(0)))
    assert len(empty.predict(X[:, :-1])) == 300


def test_the_exported_pipeline_predicts_the_same_from_raw_rows():
    rng = np.random.default_rng(2)
    age, ward = (
        rng.choice([np.nan, *rng.normal(60, 9, 80)], 240),
        rng.choice(np.array(["a", "b", "z", None], object), 240),
    )
    y = (np.nan_to_num(age) + 9 * (ward == "a") + rng.normal(0, 6, 240) > 60).astype(float)
    features = [{"type": "number", "name": "age"}, {"type": "category", "name": "ward", "categories": ["a", "b"]}]
    plan = build(study_of("binary", features=features, validation={"fraction": 0.0}))
    text = np.array(["" if cell is None else cell for cell in ward], object)
    data = {
        site: clean(Table({"age": age[part], "ward": text[part], "y": y[part]}), plan.study, site)
        for site, part in (("east", slice(None, 90)), ("west", slice(90, None)))
    }
    *_, last = simulate(plan, data, 1)
    X = np.vstack([encode(cohort, plan.study, last.state.statistics, plan.ones).X for cohort in data.values()])
    found = pipeline(plan, last.state).predict_proba(pd.DataFrame({"age": age, "ward": ward}))[:, 1]
    np.testing.assert_allclose(found, plan.family.predict(last.state.theta, X), rtol=1e-12, atol=1e-12)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_one_outcome_alone_is_refused():
    X, y = made_up("binary")
    with pytest.raises(NoFit, match="found one that nobody or everybody has"):
        trained(study_of("binary"), together(X, np.ones_like(y)))
    X, y = made_up("multiclass")
    with pytest.raises(NoFit, match="found one that nobody or everybody has"):
        trained(study_of("multiclass"), together(X, np.minimum(y, 1.0)))


@pytest.mark.parametrize("change", ["constant columns", "constant target", "leaves too large"])
def test_nothing_to_split_on_is_refused(change: str):
    X, y = made_up("regression")
    X = np.ones_like(X) if change == "constant columns" else X
    y = np.full_like(y, 3.0) if change == "constant target" else y
    model = {"min_rows": 151} if change == "leaves too large" else {}
    with pytest.raises(
        NoFit, match="expected a split that gains something, found none in 3 columns over all hospitals"
    ):
        trained(study_of("regression", model=model), together(X, y))


def test_a_target_beyond_the_grid_is_refused():
    X, y = made_up("regression")
    with pytest.raises(NoFit, match=r"expected targets within ±1e\+12, found larger ones"):
        trained(study_of("regression"), together(X, y * 1e13))


def test_later_rounds_end_early_where_no_split_is_left():
    X = made_up("regression")[0]
    data, study = together(X, np.where(X[:, 0] > 0, 1.0, 0.0)), study_of("regression", model={"rate": 1.0, "l2": 0.0})
    closed = list(simulate(build(study), data, 2))
    forest = study.model.forest(1, "regression")  # type: ignore[union-attr]
    assert [forest.grown(c.state.theta) for c in closed] == [1, 1, 1]
    np.testing.assert_allclose(build(study).family.predict(closed[-1].state.theta, X), data["s0"].y, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"algorithm": "fedavg"}, 'no gradient leads there: set algorithm = "exact"'),
        ({"offset": "weeks"}, "a boosting model has none"),
        ({"model": {"depth": 9}}, "less than or equal to 8"),
        ({"model": {"min_weight": 0}}, "greater than 0"),
    ],
)
def test_what_does_not_go_with_boosting_is_refused_with_the_reason(more: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        study_of("binary", **more)


def test_settings_that_would_go_unheeded_or_sums_too_large_are_refused():
    with pytest.raises(StudyError, match=r"follow from its trees .* found algorithm\.exchanges"):
        build(study_of("binary", algorithm={"preset": "exact", "exchanges": 40}))
    with pytest.raises(StudyError, match="found 1500 MiB for 2000 columns of 256 bins at depth 8"):
        build(study_of("binary", 2000, model={"depth": 8, "bins": 256}))


def test_a_gradient_beyond_the_grid_is_not_sent():
    assert np.isinf(slopes("regression", np.array([[100.0]]), np.zeros(1), None, 1.0)[0, 0, 0])
    assert slopes("regression", np.array([[3.0]]), np.zeros(1), None, 1.0).tolist() == [[[3.0, 1.0]]]
