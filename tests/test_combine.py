"""Combining rules: each beside a textbook loop, the bound that its docstring states, and the attack that it is meant for."""

from __future__ import annotations

import csv
import math
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from fedrounds.core import simulate as loop
from fedrounds.core import state as states
from fedrounds.core.combine import Combine
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.fair import afl, project, q_ffl
from fedrounds.core.operations import Operations
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.rule import Told
from fedrounds.core.simulate import simulate
from fedrounds.core.strategy import COMBINES
from fedrounds.core.study import Study
from fedrounds.tasks import masks

HEART = Path(__file__).parents[2] / "shared" / "data" / "heart_disease_uci"
PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"


def rule(words):
    return TypeAdapter(Combine).validate_python(words).rule()


def combined(words, updates, weights=None):
    how = rule(words)
    total = how.start(len(updates[0]))
    for i, update in enumerate(updates):
        total = how.add(total, np.array(update), 1.0 if weights is None else weights[i])
    return how.finish(total)


# --- textbook loops: lists of floats in, a list of floats out ---------------------------------------------------------


def mean(vectors):
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def by_median(updates, f):
    return [statistics.median(column) for column in zip(*updates, strict=True)]


def by_trimming(updates, f):
    return mean(
        list(zip(*(sorted(column)[f : len(updates) - f] for column in zip(*updates, strict=True)), strict=True))
    )


def by_score(updates, f):
    """From the least score of Krum to the largest."""

    def score(i):
        distances = sorted(math.dist(updates[i], other) ** 2 for j, other in enumerate(updates) if j != i)
        return sum(distances[: max(len(updates) - f - 2, 1)])

    return sorted(range(len(updates)), key=score)


def by_krum(updates, f):
    return updates[by_score(updates, f)[0]]


def by_multi_krum(updates, f):
    return mean([updates[i] for i in by_score(updates, f)[: len(updates) - f]])


def by_bulyan(updates, f):
    left, chosen = list(updates), []
    while len(chosen) < len(updates) - 2 * f:
        chosen.append(left.pop(by_score(left, f)[0]))
    ends = []
    for column in zip(*chosen, strict=True):
        middle = statistics.median(column)
        ends.append(sorted(column, key=lambda value: abs(value - middle))[: len(chosen) - 2 * f])
    return mean(list(zip(*ends, strict=True)))


def by_least_distances(updates, f):
    def away(point):
        return sum(math.sqrt(math.dist(point, update) ** 2 + 1e-14) for update in updates)

    return minimize(away, mean(updates), method="BFGS", options={"gtol": 1e-9}).x.tolist()


def by_clipping(updates, f):
    lengths = [math.hypot(*update) for update in updates]
    most = statistics.median(lengths)
    shorter = zip(updates, lengths, strict=True)
    return mean([[value * min(1, most / long) for value in update] for update, long in shorter])


# --- bounds: of the honest updates, the result and how many attack ----------------------------------------------------


def in_range(honest, got, f, slack=0.0):
    low, high = honest.min(axis=0), honest.max(axis=0)
    over = slack * (high - low) + 1e-9 * (1 + np.abs(honest).max())
    return bool(((got >= low - over) & (got <= high + over)).all())


def nearly_in_range(honest, got, f):
    return in_range(honest, got, f, slack=1.0)


def near_one(honest, got, f):
    n, wide = len(honest) + f, widest(honest)
    nearest = np.linalg.norm(honest - got, axis=1).min()
    return bool(nearest <= wide * math.sqrt((n - f - 2) / (n - 2 * f - 1)) + 1e-9)


def near_all(honest, got, f):
    n, wide = len(honest) + f, widest(honest)
    furthest = np.linalg.norm(honest - got, axis=1).max()
    return bool(furthest <= wide * (1 + math.sqrt((n - f - 2) / (n - 2 * f - 1))) + 1e-9)


def near_any_point(honest, got, f):
    n, middle = len(honest) + f, honest.mean(axis=0)
    r = np.linalg.norm(honest - middle, axis=1).max()
    return bool(np.linalg.norm(got - middle) <= 2 * r * (n - f) / (n - 2 * f) + 1e-4)


def no_longer(honest, got, f):
    return bool(np.linalg.norm(got) <= np.linalg.norm(honest, axis=1).max() * (1 + 1e-12) + 1e-300)


def widest(honest):
    return max(np.linalg.norm(honest - one, axis=1).max() for one in honest)


# --- the table: a rule is a row ---------------------------------------------------------------------------------------


@dataclass
class Row:
    kind: str
    textbook: Callable[[list, int], list]
    bound: Callable[[Any, Any, int], bool]
    least: Callable[[int], int]  # attackers -> the fewest updates
    tolerance: float = 1e-12

    def words(self, attackers=1) -> dict[str, Any]:
        return {"kind": self.kind, **({} if self.kind == "norm_clip" else {"attackers": attackers})}


ROWS = [
    Row("median", by_median, in_range, lambda f: 2 * f + 1),
    Row("trimmed_mean", by_trimming, in_range, lambda f: 2 * f + 1),
    Row("krum", by_krum, near_one, lambda f: 2 * f + 3),
    Row("multi_krum", by_multi_krum, near_all, lambda f: 2 * f + 3),
    Row("bulyan", by_bulyan, nearly_in_range, lambda f: 4 * f + 3),
    Row("geometric_median", by_least_distances, near_any_point, lambda f: 2 * f + 1, tolerance=1e-5),
    Row("norm_clip", by_clipping, no_longer, lambda f: 2 * f + 1),
]
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)


@each
@pytest.mark.parametrize("f", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 1, 6])
def test_a_rule_is_what_its_paper_says(row, f, more):
    rng = np.random.default_rng([f, more])
    updates = rng.normal(size=(row.least(f) + more, 5))
    updates[:f] *= 50
    expected = row.textbook(updates.tolist(), f)
    np.testing.assert_allclose(combined(row.words(f), updates), expected, rtol=0, atol=row.tolerance)


def fields(size, most):
    return arrays(np.float64, size, elements=st.floats(-most, most, allow_subnormal=False))


@each
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_attackers_send_the_bound_of_the_docstring_holds(row, data):
    f = data.draw(st.integers(1, 3))
    n = row.least(f) + data.draw(st.integers(0, 4))
    honest = data.draw(fields((n - f, 3), 10.0))
    sent = data.draw(st.one_of(fields((f, 3), 20.0), fields((f, 3), 1e308)))
    order = data.draw(st.permutations(range(n)))
    got = combined(row.words(f), np.concatenate([honest, sent])[list(order)])
    assert row.bound(honest, got, f)


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind != "bulyan"], ids=lambda row: row.kind)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_order_of_updates_changes_nothing(row, data):
    """But for Bulyan: near its end two sites that are each other's nearest score alike, and the first in the order of names counts."""
    updates = np.random.default_rng(data.draw(st.integers(0, 2**32))).normal(size=(12, 4))
    order = data.draw(st.permutations(range(12)))
    np.testing.assert_allclose(combined(row.words(2), updates[order]), combined(row.words(2), updates), atol=1e-12)


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind != "norm_clip"], ids=lambda row: row.kind)
@pytest.mark.parametrize("f", [1, 2])
def test_too_few_updates_are_said_to_be_too_few(row, f):
    with pytest.raises(
        QuorumError, match=rf"expected {row.least(f)} updates or more for .* that {f} cannot sway, found"
    ):
        combined(row.words(f), np.ones((row.least(f) - 1, 2)))
    assert TypeAdapter(Combine).validate_python(row.words(f)).fewest == row.least(f)
    np.testing.assert_allclose(combined(row.words(f), np.ones((row.least(f), 2))), [1.0, 1.0], rtol=1e-15)


@settings(max_examples=60, deadline=None)
@given(honest=fields((7, 3), 10.0), one=fields((3, 3), 1e308), other=fields((3, 3), 20.0))
def test_a_stated_norm_bounds_the_result_and_what_attackers_move(honest, one, other):
    words = {"kind": "norm_clip", "bound": 0.5}
    first, second = (combined(words, np.concatenate([honest, sent])) for sent in (one, other))
    assert np.linalg.norm(first) <= 0.5 + 1e-12
    assert np.linalg.norm(first - second) <= 2 * 3 / 10 * 0.5 + 1e-12


def test_a_stated_norm_leaves_shorter_updates_as_they_are_and_keeps_weights():
    found = combined({"kind": "norm_clip", "bound": 5.0}, [[30.0, 40.0], [0.0, 1.0]], [1.0, 3.0])
    np.testing.assert_allclose(found, [0.75, 1.75], rtol=1e-15)
    assert combined({"kind": "norm_clip"}, [[2.0], [4.0], [-8.0]], [1.0, 2.0, 1.0]).tolist() == [1.5]
    assert combined({"kind": "norm_clip"}, [[0.0], [0.0], [7.0]]).tolist() == [0.0]  # the median length is 0


# --- fairness ---------------------------------------------------------------------------------------------------------


def fairly(how, memory, replies):
    """Replies are (site, update, weight, loss)."""
    total = how.start(len(replies[0][1]))
    for site, update, weight, loss in replies:
        total = how.add(total, *how.counted(memory, np.array(update), Told(site, weight, loss)))
    return how.finish(total), how.after(memory, {site: loss for site, _, _, loss in replies})


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
def test_q_ffl_is_q_fedavg(q):
    rng = np.random.default_rng(0)
    replies = [(s, rng.normal(size=3).tolist(), rng.uniform(1, 9), rng.uniform(0.1, 3)) for s in "abcde"]
    rate = 0.2
    above, below = [0.0] * 3, 0.0
    for _, update, weight, F in replies:  # algorithm 2, with dw = L (w - w_k) = -update / rate
        dw = [-value / rate for value in update]
        above = [a + weight * F**q * d for a, d in zip(above, dw, strict=True)]
        below += weight * (q * F ** (q - 1) * sum(d * d for d in dw) + F**q / rate)
    found, kept = fairly(q_ffl(q, rate), {}, replies)
    np.testing.assert_allclose(found, [-a / below for a in above], rtol=1e-12)
    assert kept == {}
    if q == 0:
        np.testing.assert_allclose(found, np.average([r[1] for r in replies], axis=0, weights=[r[2] for r in replies]))


def test_q_ffl_says_where_a_loss_is_none_to_be_raised():
    with pytest.raises(UpdateRejected, match="expected a training loss of 0 or more for q-FFL, found less at site 'b'"):
        fairly(q_ffl(1.0, 0.1), {}, [("a", [1.0], 1.0, 0.5), ("b", [1.0], 1.0, -0.1)])
    with pytest.raises(UpdateRejected, match="of usual size for q-FFL, found larger at site 'b'"):
        fairly(q_ffl(5.0, 0.1), {}, [("b", [1.0], 1.0, 1e100)])
    assert fairly(q_ffl(0.5, 0.1), {}, [("a", [1.0], 1.0, 0.0), ("b", [2.0], 1.0, 1.0)])[0][0] > 0


@given(arrays(np.float64, st.integers(1, 9), elements=st.floats(-50, 50)))
def test_the_projection_is_the_nearest_point_of_the_simplex(point):
    found = project(point)
    low, high = point.min() - 1, point.max()
    for _ in range(200):  # the shift that makes what is above it add up to 1, by halves
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    np.testing.assert_allclose(found, np.maximum(point - low, 0), rtol=0, atol=1e-11)


def test_the_projection_of_large_numbers_is_on_the_simplex_too():
    assert project(np.array([1e17, 1.0, -1e300])).tolist() == [1.0, 0.0, 0.0]
    assert project(np.array([1e17, 1e17])).tolist() == [0.5, 0.5]


def test_afl_is_the_papers_loop_who_is_away_is_kept_and_who_joins_begins_at_the_mean():
    how, memory, weights = afl(0.3), {}, dict.fromkeys("abc", 1 / 3)
    rng = np.random.default_rng(1)
    for present in ("abc", "abc", "ac", "abcd", "abcd"):
        if "d" in present and "d" not in weights:
            weights["d"] = 1 / 3  # the mean of three that add up to 1
        replies = [(site, rng.normal(size=2).tolist(), 1.0, rng.uniform(0.2, 1)) for site in present]
        mass = sum(weights[site] for site in present)
        expected = sum(weights[site] / mass * np.array(update) for site, update, _, _ in replies)
        found, memory = fairly(how, memory, replies)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        risen = {site: weights[site] for site in weights}
        for site, _, _, loss in replies:
            risen[site] += 0.3 * loss
        names = sorted(risen)
        target = np.array([risen[site] for site in names])
        near = minimize(
            lambda x, target=target: ((x - target) ** 2).sum(),
            np.full(len(names), 1 / len(names)),
            bounds=[(0, 1)] * len(names),
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
            options={"ftol": 1e-15},
        ).x
        np.testing.assert_allclose([memory[f"lambda.{site}"][0] for site in names], near, atol=1e-6)
        weights = {site: float(memory[f"lambda.{site}"][0]) for site in names}


def test_afl_refuses_a_loss_beyond_all_numbers_and_a_round_of_sites_that_do_not_count():
    with pytest.raises(UpdateRejected, match="of usual size for agnostic learning"):
        fairly(afl(1.0), {}, [("a", [1.0], 1.0, 1.7e308), ("b", [1.0], 1.0, 1.7e308), ("c", [1.0], 1.0, -1.7e308)])
    with pytest.raises(QuorumError, match="found only sites of weight 0"):
        fairly(afl(1.0), {"lambda.a": np.array([0.0]), "lambda.b": np.array([1.0])}, [("a", [1.0], 1.0, 1.0)])


def line(combine, **changes):
    """Thirty patients at 0 and ten at 1, whom one number is to fit."""
    words = {
        "name": "line",
        "target": {"kind": "regression", "column": "y"},
        "features": [{"type": "number", "name": "x"}],
        "model": {"kind": "linear", "intercept": False},
        "preprocess": {"standardise": "none"},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "batch": "all"}, "combine": combine},
        **changes,
    }
    data = {
        name: Rows(np.ones((n, 1)), np.full(n, y), np.ones((0, 1)), np.ones(0))
        for name, n, y in (("many", 30, 0.0), ("few", 10, 1.0))
    }
    *_, last = simulate(build(Study.model_validate(words)), data, 300)
    return last.state


def test_the_mean_fits_the_many_and_fairness_the_worst_off():
    uniform = {"weights": "uniform"}
    assert line({"kind": "weighted_mean"}).theta[0] == pytest.approx(0.25, abs=1e-9)
    found = [line({"kind": "q_ffl", "q": q, "rate": 0.1}).theta[0] for q in (0.0, 1.0, 5.0)]
    assert found == pytest.approx([0.25, 0.4095, 0.4751], abs=1e-3)  # 30 x^(2q+1) = 10 (1-x)^(2q+1)
    state = line({"kind": "afl", "rate": 0.2}, **uniform)
    assert state.theta[0] == pytest.approx(0.5, abs=0.02)
    assert sorted(state.memory) == ["lambda.few", "lambda.many"]
    assert states.load(states.dump(state)).memory["lambda.few"].tobytes() == state.memory["lambda.few"].tobytes()


# --- a whole study ----------------------------------------------------------------------------------------------------


def study(combine, features=4, **changes):
    words = {
        "name": "attacked",
        "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
        "features": [{"type": "number", "name": f"x{i}", "range": [-20, 20]} for i in range(features)],
        "model": {"kind": "logistic", "l2": 0.001},
        "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 2}, "combine": combine},
        "weights": "uniform",
    }
    return Study.model_validate(words | changes)


def synthetic(sites):
    """A hundred patients a site, whose features are shifted from site to site."""
    rng = np.random.default_rng(0)
    slope, found = rng.normal(size=8), {}
    for site in sites:
        X = rng.normal(rng.normal(0, 0.5, 8), 1.0, size=(100, 8))
        y = (X @ slope + rng.logistic(size=100) > 0) * 1.0
        X = np.column_stack([X, np.ones(100)])
        found[site] = Rows(X[25:], y[25:], X[:25], y[:25])
    return found


def heart(sites):
    """Each of the four real hospitals (shared/data/README.md) is cut into some of the sites, patients with gaps left out."""
    hospitals = []
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        rows = []
        with (HEART / f"processed.{name}.data").open() as stream:
            for words in csv.reader(stream):
                told = [*words[:10], words[13]]
                if "?" in told:
                    continue
                *numbers, sick = map(float, told)
                plain = [numbers[i] for i in (0, 1, 3, 4, 5, 7, 8, 9)]
                rows.append(
                    [*plain, *(numbers[2] == k for k in (2, 3, 4)), *(numbers[6] == k for k in (1, 2)), sick > 0]
                )
        hospitals.append(np.array(rows, float))
    every, rng, found = np.concatenate(hospitals), np.random.default_rng(0), {}
    middle, spread = every[:, :-1].mean(0), every[:, :-1].std(0)
    cuts, names = (len(sites) - 6, 3, 1, 2), iter(sites)
    for rows, cut in zip(hospitals, cuts, strict=True):
        for part in np.array_split(rows[rng.permutation(len(rows))], cut):
            X = np.column_stack([(part[:, :-1] - middle) / spread, np.ones(len(part))])
            held = len(part) // 4
            found[next(names)] = Rows(X[held:], part[held:, -1], X[:held], part[:held, -1])
    return found


DATA = {"synthetic": synthetic, "heart": heart}
ATTACKS = ("none", "sign flip x4", "Gaussian 30", "label flip")
ATTACKERS = {"synthetic": "cf", "heart": "bf"}  # of heart a site of Cleveland and one of Hungary


def sent(attack, delta, rng):
    return -4 * delta if attack == "sign flip x4" else rng.normal(0, 30, delta.shape)


@cache
def area(kind, where, attack, count=10):
    """AUC over the honest labels of all sites after 15 rounds, two of which attack."""
    words = next((row.words(2) for row in ROWS if row.kind == kind), {"kind": kind})
    sites = "abcdefghijk"[:count]
    honest, by = DATA[where](sites), ATTACKERS[where]
    data, rng, handle = honest, np.random.default_rng(9), loop.handle

    def lying(request, memory, rows, plan, policy, name, draw):
        memory, reply = handle(request, memory, rows, plan, policy, name, draw)
        if name in by and "delta" in reply.arrays:
            reply = replace(reply, arrays={**reply.arrays, "delta": sent(attack, reply.arrays["delta"], rng)})
        return memory, reply

    if attack == "label flip":
        data = {site: replace(rows, y=1 - rows.y) if site in by else rows for site, rows in honest.items()}
    with pytest.MonkeyPatch.context() as patch:
        if attack in ("sign flip x4", "Gaussian 30"):
            patch.setattr(loop, "handle", lying)
        plan = build(study(words, honest["a"].X.shape[1] - 1))
        *_, last = simulate(plan, data, 15, rng_of=lambda number, site: np.random.default_rng([number, ord(site)]))
    X, y = (np.concatenate([getattr(rows, name) for rows in honest.values()]) for name in ("X_valid", "y_valid"))
    return float(roc_auc_score(y, X @ last.state.theta))


where_data_are = pytest.mark.parametrize(
    "where",
    [
        "synthetic",
        pytest.param(
            "heart",
            marks=pytest.mark.skipif(not HEART.is_dir(), reason=f"the real heart-disease data are not here ({HEART})"),
        ),
    ],
)


@where_data_are
def test_two_of_ten_sites_ruin_the_mean(where):
    clean = area("weighted_mean", where, "none")
    assert clean > 0.85
    assert area("weighted_mean", where, "sign flip x4") < 0.3
    assert area("weighted_mean", where, "Gaussian 30") < 0.6
    assert clean - area("weighted_mean", where, "label flip") > 0.015


def sites_for(row):
    """Ten, but for Bulyan, whose bound asks for eleven where two attack."""
    return max(10, row.least(2))


@each
@where_data_are
def test_two_sites_do_not_sway_a_robust_rule(row, where):
    n = sites_for(row)
    mean = {attack: area("weighted_mean", where, attack, n) for attack in ATTACKS}
    found = {attack: area(row.kind, where, attack, n) for attack in ATTACKS}
    assert mean["none"] - found["none"] < (0.03 if row.kind == "krum" else 0.015)  # what it costs where nobody attacks
    assert min(found.values()) > mean["none"] - (0.03 if row.kind == "krum" else 0.025)
    assert all(found[attack] > mean[attack] + 0.005 for attack in ATTACKS[1:])


@pytest.mark.parametrize("kind", ["q_ffl", "afl"])
@where_data_are
def test_fairness_is_none_against_attackers(kind, where):
    assert area(kind, where, "none") > 0.85
    assert area(kind, where, "sign flip x4") < 0.5
    assert area("afl", where, "label flip") < 0.7  # whose labels are turned fare worst, and soon count most


@where_data_are
def test_the_areas_are_those_of_the_page(where):
    found = re.findall(r"^\| (\w+) \| (\d+) \| `(\w+)` \| ([.\d |]+) \|$", PAGE.read_text(), re.MULTILINE)
    told = {(kind, int(n)): [float(it) for it in areas.split("|")] for data, n, kind, areas in found if data == where}
    means = [("weighted_mean", 10), ("weighted_mean", 11), ("q_ffl", 10), ("afl", 10)]
    assert sorted(told) == sorted([*means, *((row.kind, sites_for(row)) for row in ROWS)])
    for kind, n in told:
        assert told[kind, n] == pytest.approx([area(kind, where, attack, n) for attack in ATTACKS], abs=0.006)


@pytest.mark.parametrize(
    "words", [*(row.words(1) for row in ROWS), {"kind": "q_ffl"}, {"kind": "afl"}], ids=lambda it: it["kind"]
)
def test_the_order_of_sites_and_the_wire_change_no_bit(words):
    plan, data = build(study(words, 8)), synthetic("abcdefg")
    shuffled = random.Random(3).sample(list(data), 7)
    runs = [
        list(simulate(plan, data, 3)),
        list(simulate(plan, {site: data[site] for site in shuffled}, 3)),
        list(simulate(plan, data, 3, wire=True)),
    ]
    first = states.dump(runs[0][-1].state)
    assert all(states.dump(run[-1].state) == first for run in runs)
    stored = states.load(states.dump(runs[0][0].state))  # killed after round 1
    assert states.dump(list(simulate(plan, data, 2, state=stored))[-1].state) == first


def test_the_page_on_adding_a_strategy_adds_one(tmp_path):
    """In copies of the one file and of this one, in a process of its own."""
    page = PAGE.with_name("adding-a-strategy.md").read_text()
    rule_, line_, loop_, row_ = re.findall(r"^```(?:python|text)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert sum(bool(it.strip()) for it in (rule_ + line_ + loop_ + row_).splitlines()) < 25
    source = (Path(__file__).parents[1] / "core" / "combine.py").read_text()
    above, word, rest = source.partition("Combine = Annotated[\n    WeightedMean\n")
    assert word
    (tmp_path / "combine.py").write_text(above + rule_ + "\n\n" + word + line_ + rest)
    above, row, rest = Path(__file__).read_text().partition("ROWS = [\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_combine.py").write_text(above + loop_ + "\n\n" + row + row_ + rest)
    (tmp_path / "tests" / "conftest.py").write_text(
        "import sys\nfrom importlib.util import module_from_spec, spec_from_file_location\nfrom pathlib import Path\n\n"
        'spec = spec_from_file_location("fedrounds.core.combine", Path(__file__).parents[1] / "combine.py")\n'
        "sys.modules[spec.name] = module_from_spec(spec)\nspec.loader.exec_module(sys.modules[spec.name])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-k", "mean_around_median", "-p", "no:cacheprovider", tmp_path]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert "19 passed" in ran.stdout, ran.stdout


# --- the words of a study ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", COMBINES)
def test_a_preset_may_name_how_updates_combine(preset):
    algorithm = study({}, algorithm=preset).averaging
    assert (algorithm.local.kind, algorithm.combine.kind, algorithm.server.kind) == ("sgd", COMBINES[preset], "sgd")
    more = study({}, algorithm={"preset": preset, "local": {"rate": 0.2}, "server": {"rate": 0.5}}).averaging
    assert (more.local.rate, more.combine.kind) == (0.2, COMBINES[preset])
    with pytest.raises(
        ValidationError, match=f"preset '{preset}' means combine '{COMBINES[preset]}', found 'norm_clip'"
    ):
        study({}, algorithm={"preset": preset, "combine": {"kind": "norm_clip"}})
    title = study({}, algorithm={"preset": "krum", "combine": {"attackers": 2}}).algorithm.title
    assert title == "krum: sgd at each hospital, Krum that 2 cannot sway and sgd at the coordinator"


ROBUST = [row.words() for row in ROWS]
FAIR = [{"kind": "q_ffl"}, {"kind": "afl"}]
PATIENTS = {"dp": {"unit": "patient", "epsilon": 3.0, "patients": 200, "rounds": 5}}

every_word = pytest.mark.parametrize("words", [*ROBUST, *FAIR], ids=lambda it: it["kind"])


@every_word
def test_differential_privacy_goes_with_the_mean_alone(words):
    with pytest.raises(
        ValidationError, match="and differential privacy do not go together: noise is counted for a sum"
    ):
        study(words, privacy=PATIENTS)


@every_word
def test_masks_go_with_the_mean_and_the_median_alone(words):
    for protect in ({"kind": "masked"}, {"kind": "masked", "groups": 3}, {"kind": "ckks", "key_holder": "a"}):
        if words["kind"] == "median" and protect.get("groups"):
            assert study(words, privacy={"protect": protect}).masked
            continue
        seen = "losses" if words in FAIR else "updates"
        with pytest.raises(ValidationError, match=f"needs the {seen} one by one, which masks hide"):
            study(words, privacy={"protect": protect})


@every_word
def test_weights_that_a_site_could_claim_are_refused_where_they_would_undo_the_rule(words):
    stated = dict.fromkeys("abc", 1.0)
    if words["kind"] == "q_ffl":
        assert study(words, weights="patients").weights == "patients"
        return
    with pytest.raises(ValidationError, match='set weights to "uniform"'):
        study(words, weights="patients")
    if words["kind"] == "norm_clip":
        assert study(words, weights=stated).weights == stated
        return
    with pytest.raises(ValidationError, match='set weights to "uniform"'):
        study(words, weights=stated)


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind != "norm_clip"], ids=lambda row: row.kind)
def test_too_few_sites_and_a_gate_that_weighs_them_are_refused_before_anything_runs(row):
    of = study(row.words(2))
    masks.enough(of, range(row.least(2)))
    with pytest.raises(StudyError, match=f"expected at least {row.least(2)} sites for .* that 2 cannot sway, found"):
        masks.enough(of, range(row.least(2) - 1))
    weighing = Operations.model_validate({"rounds": 1, "gate": {"policy": "down-weight"}})
    with pytest.raises(StudyError, match="which counts every site alike: set it to exclude or warn"):
        masks.require(of, weighing)
    for words in (*FAIR, {"kind": "norm_clip"}):
        masks.require(study(words), weighing)
        masks.enough(study(words), "a")
