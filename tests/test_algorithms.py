"""The mathematics: the design's worked example, textbook loops beside every rule, and pooled fits that averaging must reach."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedrounds.core import local, server
from fedrounds.core.combine import weighted_mean
from fedrounds.core.errors import StudyError
from fedrounds.core.evaluate import training_loss
from fedrounds.core.messages import Reply
from fedrounds.core.models.linear import linear
from fedrounds.core.pace import batches
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows, clean
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table


def study(features=2, **words):
    """Plain numbers as they are, every row in training."""
    return Study.model_validate(
        {
            "name": "toy",
            "target": {"kind": "regression", "column": "y"},
            "features": [{"type": "number", "name": f"x{j}"} for j in range(features)],
            "preprocess": {"standardise": "none"},
            "validation": {"fraction": 0.0},
            "model": {"kind": "linear", "intercept": False},
            "algorithm": "fedavg",
        }
        | words
    )


def last(of, data, rounds, **options):
    """The model after so many rounds."""
    *_, closed = simulate(build(of), data, rounds, **options)
    return closed.state.theta


# --- the worked example of the design ---------------------------------------------------------------------------------


def worked_example():
    """One round: theta (1, 1), sites at (.8, .8) and (1.2, 1.2) with weights .6 and .4 and losses .1 and .2, a server rate of .1."""
    plan = build(study(weights={"a": 0.6, "b": 0.4}, algorithm={"preset": "fedavg", "server": {"rate": 0.1}}))
    state = replace(plan.start(plan.no_statistics()), theta=np.array([1.0, 1.0]))
    asking = open_round(state, plan, "train", ["a", "b"])
    request = asking.request
    replies = [
        Reply(
            request.study,
            request.round,
            request.exchange,
            request.ask,
            request.base,
            site,
            "",
            {
                "delta": np.array([theta, theta]) - request.arrays["theta"],
                "train": np.array([10.0, 10 * loss]),
                "scores": np.zeros(4),
                "histogram": np.zeros((0, 2, 50)),
            },
        )
        for site, theta, loss in (("a", 0.8, 0.1), ("b", 1.2, 0.2))
    ]
    return close_exchange(asking, plan, replies)


def test_the_worked_example_gives_0_996():
    np.testing.assert_allclose(worked_example().state.theta, [0.996, 0.996], rtol=0, atol=1e-15)


def test_the_worked_example_reports_0_15_plain_and_0_14_weighted():
    assert training_loss(worked_example().training) == pytest.approx((0.15, 0.14), abs=1e-15)


def test_weights_are_what_the_study_says():
    X, y = np.ones((30, 1)), np.arange(30.0)
    data = {"a": Rows(X[:10], y[:10], X[:0], y[:0]), "b": Rows(X[10:], y[10:], X[:0], y[:0])}  # means 4.5 and 19.5
    step = {"preset": "fedavg", "local": {"rate": 1.0, "batch": "all"}}  # one step of rate 1 is the site's mean
    means = {
        str(weights): last(study(1, weights=weights, algorithm=step), data, 1)[0]
        for weights in ("patients", "uniform", {"a": 3.0, "b": 1.0})
    }
    assert means == pytest.approx({"patients": 14.5, "uniform": 12.0, "{'a': 3.0, 'b': 1.0}": 8.25}, abs=1e-12)


def test_a_site_without_a_stated_weight_is_named():
    data = {"c": Rows(np.ones((10, 1)), np.ones(10), np.ones((0, 1)), np.ones(0))}
    with pytest.raises(StudyError, match="expected a weight for every site under `weights`, found none for 'c'"):
        last(study(1, weights={"a": 1.0}), data, 1)


# --- a combining rule -------------------------------------------------------------------------------------------------


def test_the_weighted_mean_is_that_of_numpy():
    rng = np.random.default_rng(0)
    updates, weights = rng.normal(size=(7, 5)), rng.uniform(1, 9, 7)
    rule = weighted_mean()
    total = rule.start(5)
    for update, weight in zip(updates, weights, strict=True):
        total = rule.add(total, update, weight)
    np.testing.assert_allclose(rule.finish(total), np.average(updates, axis=0, weights=weights), rtol=1e-14)


# --- server rules beside their papers, one number at a time -------------------------------------------------------------

DELTAS = np.random.default_rng(2).normal(size=(20, 3))


def after(rule):
    """Where a server rule takes (1, 1, 1) with 20 updates."""
    memory, theta = rule.init(3), np.ones(3)
    for delta in DELTAS:
        memory, theta = rule.step(memory, theta, delta)
    return theta


def textbook(step, **memory):
    """The same walk with Python floats: `step(memory, w, d) -> w`, for each of the three numbers alone."""
    ends = []
    for column in DELTAS.T.tolist():
        m, w = dict(memory), 1.0
        for d in column:
            w = step(m, w, d)
        ends.append(w)
    return pytest.approx(ends, rel=1e-13)


def test_server_sgd_is_a_step_along_the_update():
    assert after(server.sgd(0.3)) == textbook(lambda m, w, d: w + 0.3 * d)


def test_server_momentum_is_fedavgm():
    def step(m, w, d):
        m["v"] = 0.9 * m["v"] + d
        return w + 0.3 * m["v"]

    assert after(server.momentum(0.3, 0.9)) == textbook(step, v=0.0)


def test_server_nesterov_is_momentum_seen_from_where_it_leads():
    def step(m, w, d):  # the paper's own form: the gradient is that of the point w + beta v, which is what is kept here
        past = w - 0.9 * m["v"]
        m["v"] = 0.9 * m["v"] + 0.3 * d
        return past + m["v"] + 0.9 * m["v"]

    assert after(server.nesterov(0.3, 0.9)) == textbook(step, v=0.0)


def test_server_adagrad_is_fedadagrad():
    def step(m, w, d):
        m["v"] += d**2
        return w + 0.3 * d / (math.sqrt(m["v"]) + 0.01)

    assert after(server.adagrad(0.3, 0.01)) == textbook(step, v=0.01**2)


def test_server_adam_is_fedadam():
    def step(m, w, d):
        m["m"] = 0.9 * m["m"] + 0.1 * d
        m["v"] = 0.99 * m["v"] + 0.01 * d**2
        return w + 0.3 * m["m"] / (math.sqrt(m["v"]) + 0.01)

    assert after(server.adam(0.3, 0.9, 0.99, 0.01)) == textbook(step, m=0.0, v=0.01**2)


def test_server_yogi_is_fedyogi():
    def step(m, w, d):
        m["m"] = 0.9 * m["m"] + 0.1 * d
        m["v"] -= 0.01 * d**2 * ((m["v"] > d**2) - (m["v"] < d**2))
        return w + 0.3 * m["m"] / (math.sqrt(m["v"]) + 0.01)

    assert after(server.yogi(0.3, 0.9, 0.99, 0.01)) == textbook(step, m=0.0, v=0.01**2)


# --- local rules ------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(50, 3)), RNG.normal(size=50)
GRADIENT = linear(3, intercept=False).gradient


def test_local_sgd_walks_over_every_row_once_an_epoch():
    seen = [part.tolist() for _, part in batches(X, Y, 2, 16, np.random.default_rng(0))]
    assert [len(part) for part in seen] == [16, 16, 16, 2] * 2
    first, second = list(chain(*seen[:4])), list(chain(*seen[4:]))
    assert sorted(first) == sorted(second) == sorted(Y.tolist())
    assert first != second


def test_local_sgd_is_gradient_descent():
    w = np.ones(3)
    for _ in range(5):
        w = w - 0.1 * X.T @ (X @ w - Y) / 50
    found = local.sgd(0.1, 5, "all")(GRADIENT, np.ones(3), X, Y, np.random.default_rng(0))
    np.testing.assert_allclose(found, w, rtol=1e-13)


def test_local_adam_is_adam_with_bias_correction():
    w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    for t in range(1, 6):
        g = X.T @ (X @ w - Y) / 50
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    found = local.adam(0.1, 5, "all", 0.9, 0.99, 1e-8)(GRADIENT, np.ones(3), X, Y, np.random.default_rng(0))
    np.testing.assert_allclose(found, w, rtol=1e-12)


def test_a_local_rule_leaves_the_model_it_was_given():
    theta = np.ones(3)
    for rule in (local.sgd(0.1, 2, 8), local.adam(0.1, 2, 8, 0.9, 0.99, 1e-8), local.proximal(0.1, 0.1, 2, 8)):
        rule(GRADIENT, theta, X, Y, np.random.default_rng(0))
        assert theta.tolist() == [1.0, 1.0, 1.0]


def test_fedprox_pulls_towards_the_model_that_came_in():
    w = np.ones(3)
    for _ in range(5):
        w = w - 0.1 * (X.T @ (X @ w - Y) / 50 + 2.0 * (w - 1.0))
    found = local.proximal(2.0, 0.1, 5, "all")(GRADIENT, np.ones(3), X, Y, np.random.default_rng(0))
    np.testing.assert_allclose(found, w, rtol=1e-13)


def test_fedprox_with_mu_0_is_fedavg_bit_for_bit():
    data = {f"s{k}": Rows(X[k::3], Y[k::3], X[:0], Y[:0]) for k in range(3)}

    def rng_of(number, site):
        return np.random.default_rng([number, int(site[1])])

    averaged = last(study(3), data, 5, rng_of=rng_of)
    tied = last(study(3, algorithm={"preset": "fedprox", "local": {"mu": 0.0}}), data, 5, rng_of=rng_of)
    assert averaged.tobytes() == tied.tobytes()
    assert averaged.any()


# --- pooled fits that averaging reaches -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_adam_at_the_sites_and_at_the_server_reaches_pooled_least_squares(seed):
    """100 rows, y = 2 x0 + 3 x1 + noise of sd .1, 5 sites, no intercept, local Adam of rate .1 and server Adam: within 1e-3.

    One setting is not the usual one: the site's epsilon is 1, not 1e-8. Adam begins anew each round, so its first step is
    rate g / (|g| + epsilon). With a tiny epsilon that is +-rate whatever the gradient: each site casts a vote of one size, the votes
    balance at a coordinate-wise median of the sites' own solutions, and that lies about 1e-2 from the pooled fit however long one
    trains. With epsilon well above the sites' gradients near the optimum (about .02 here) the step is nearly rate g / epsilon:
    gradient descent, whose average over equal sites is the pooled gradient and vanishes at pooled least squares. What is left of the
    curvature is of the order of g^2, a few 1e-4. The server's Adam keeps its defaults, and one step on all rows a round adds no drift.
    """
    of = study(
        algorithm={
            "preset": "fedadam",
            "local": {"kind": "adam", "rate": 0.1, "epochs": 1, "batch": "all", "epsilon": 1.0},
        }
    )
    data, best = least_squares(of, seed)
    assert np.abs(last(of, data, 300) - best).max() < 1e-3


def test_adam_with_a_tiny_epsilon_at_the_sites_settles_elsewhere():
    of = study(algorithm={"preset": "fedadam", "local": {"kind": "adam", "rate": 0.1, "batch": "all"}})
    distances = []
    for seed in range(5):
        data, best = least_squares(of, seed)
        distances.append(np.abs(last(of, data, 300) - best).max())
    assert np.median(distances) > 2e-3


def least_squares(of, seed):
    """Five sites of 20 rows, and the pooled solution."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(100, 2))
    y = X @ [2.0, 3.0] + rng.normal(scale=0.1, size=100)
    table = Table({"x0": X[:, 0], "x1": X[:, 1], "y": y})
    data = {f"site {k}": clean(table.take(np.arange(100) % 5 == k), of, f"site {k}") for k in range(5)}
    return data, np.linalg.lstsq(X, y, rcond=None)[0]


def classes(n=200):
    rng = np.random.default_rng(4)
    X = rng.normal(3.0, 2.0, size=(n, 4))
    return X, (X @ [1.0, -1.0, 0.5, 0.0] + rng.logistic(size=n) > 1.5).astype(float)


def test_one_site_without_privacy_is_scikit_learns_logistic_regression():
    X, y = classes()
    of = study(
        4,
        target={"kind": "binary", "column": "y", "positive_above": 0.5},
        preprocess={"standardise": "all"},
        model={"kind": "logistic", "l2": 1 / 200},
        algorithm={"preset": "fedavg", "local": {"rate": 2.0, "epochs": 20, "batch": "all"}},
    )
    data = {"only": clean(Table({f"x{j}": X[:, j] for j in range(4)} | {"y": y}), of, "only")}
    fitted = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit((X - X.mean(0)) / X.std(0, ddof=1), y)
    expected = np.append(fitted.coef_[0], fitted.intercept_)
    np.testing.assert_allclose(last(of, data, 100), expected, rtol=0, atol=1e-6)


def test_one_full_step_a_round_averaged_by_patients_is_pooled_gradient_descent():
    X, y = classes()
    words = {
        "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
        "model": {"kind": "logistic", "l2": 0.01},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.2, "batch": "all"}},
    }
    X = np.column_stack([X, np.ones(200)])
    cut = [0, 20, 75, 200]
    parts = {f"s{i}": Rows(X[a:b], y[a:b], X[:0], y[:0]) for i, (a, b) in enumerate(pairwise(cut))}
    pooled = {"all": Rows(X, y, X[:0], y[:0])}
    np.testing.assert_allclose(last(study(4, **words), parts, 50), last(study(4, **words), pooled, 50), rtol=1e-11)


def test_the_scores_of_a_round_are_of_the_model_that_came_in_and_the_last_of_the_last():
    X, y = classes()
    of = study(4, target={"kind": "binary", "column": "y", "positive_above": 0.5}, model={"kind": "logistic"})
    X = np.column_stack([X, np.ones(200)])
    first, second, final = simulate(build(of), {"only": Rows(X[:150], y[:150], X[150:], y[150:])}, 2)
    assert [c.scored for c in (first, second, final)] == [0, 1, 2]
    assert first.scores["only"][0][:2] == pytest.approx([50, 50 * math.log(2)])
    p = 1 / (1 + np.exp(-X[150:] @ final.state.theta))
    assert final.scores["only"][0][1] == pytest.approx(-np.log(np.where(y[150:] == 1, p, 1 - p)).sum())
    assert re.fullmatch("[0-9a-f]{64}", final.state.model_digest)
