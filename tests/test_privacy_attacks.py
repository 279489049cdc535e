"""Attacks on differential privacy. Each breaks a build that was weakened on purpose, so that it would see a fault, and fails against ours."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from scipy.stats import binom

from fedrounds.core.models.logistic import Logistic, logistic
from fedrounds.core.privacy import noise, private
from fedrounds.core.privacy.accounting import Budget, Event, epsilon, multiplier
from fedrounds.core.privacy.dpsgd import Descent, clipping, descend
from fedrounds.core.privacy.noise import Bits, Gaussian
from fedrounds.core.study import Study

CANARIES, GUESSES, SURE = 1000, 300, 0.05


# --- one run tells ε from below (Steinke, Nasr and Jagielski 2023) ------------------------------------------------------


def at_least(right, guesses, delta, canaries, sure=SURE):
    """The largest ε that so many right guesses refute: proposition 5.2 of the paper, its δ term by the whole tail.

    Under (ε, δ) the right guesses r are dominated by a binomial of chance p = e^ε / (1 + e^ε), up to
    2 m δ max_i P(r - i <= B < r) / i: theorem 5.2, β(ε) below.
    """

    def chance(eps):
        p = exp(eps) / (1 + exp(eps))
        tail = binom.sf(right - 1, guesses, p)
        i = np.arange(1, right + 1)
        near = binom.cdf(right - 1, guesses, p) - binom.cdf(right - i - 1, guesses, p)
        return tail + 2 * canaries * delta * float((near / i).max(initial=0.0))

    low, high = 0.0, 20.0
    if chance(low) > sure:
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) <= sure else (low, middle)
    return low


def audit(seed, weaken=1.0):
    """Canaries that each have a parameter of their own go in by a coin, through the real path; the update is read for which are in."""
    rng = np.random.default_rng(seed)
    inside = rng.random(CANARIES) < 0.5
    X = np.eye(CANARIES)[inside] * 10.0
    model, family = Logistic(kind="logistic"), logistic(CANARIES - 1)
    z = Gaussian(1.0, multiplier(Budget(1.5, 1e-5), 1.0, 5), CANARIES)
    clipped = clipping(model, family.layout, "binary", 1.0)
    how = Descent(1e-3, 5, 1.0, 1.0, z)  # so slow that every step tells as much as the first
    if weaken != 1.0:
        how = how._replace(mechanism=Weak(1.0, z.multiplier, CANARIES, weaken))
    seen = descend(clipped, np.zeros(CANARIES), how, np.zeros(CANARIES), X, np.ones(len(X)))
    order = np.argsort(seen)
    right = int(inside[order[-GUESSES // 2 :]].sum() + (~inside[order[: GUESSES // 2]]).sum())
    return at_least(right, GUESSES, 1e-5, CANARIES)


class Weak(Gaussian):
    """Noise that is less than it says: the fault that an audit must see."""

    def __new__(cls, *_):
        return object.__new__(cls)

    def __init__(self, sensitivity, multiplier, size, share):
        super().__init__(sensitivity, multiplier, size)
        object.__setattr__(self, "share", share)

    def noise(self, times, bits):
        return np.rint(super().noise(times, bits) * self.share).astype(np.int64)


def test_an_audit_of_one_run_refutes_noise_that_is_missing_and_not_ours():
    assert max(audit(seed) for seed in range(3)) <= 1.5
    assert audit(0, weaken=0.0) > 3.0
    assert audit(0, weaken=0.2) > 1.5


def test_the_audits_bound_is_that_of_the_paper_where_it_can_be_worked_out():
    assert at_least(150, 300, 0.0, 1000) == 0.0, "chance refutes nothing"
    all_right = at_least(300, 300, 0.0, 1000)
    assert exp(all_right) / (1 + exp(all_right)) == pytest.approx(SURE ** (1 / 300)), "p^300 = 0.05"
    assert at_least(300, 300, 1e-5, 1000) < all_right


# --- noise ------------------------------------------------------------------------------------------------------------


def test_half_the_noise_is_seen_by_its_variance_where_an_audit_is_blind(monkeypatch):
    def spread():
        model, family = Logistic(kind="logistic"), logistic(20_000 - 1)
        how = Descent(1.0, 1, 0.5, 1.0, Gaussian(1.0, 2.0, 20_000))
        clipped = clipping(model, family.layout, "binary", 1.0)
        moved = descend(clipped, np.zeros(20_000), how, np.zeros(20_000), np.zeros((0, 20_000)), np.zeros(0))
        return moved.std() / how.mechanism.deviation

    assert spread() == pytest.approx(1.0, abs=0.03)
    real = noise.discrete_gaussian
    monkeypatch.setattr(noise, "discrete_gaussian", lambda sigma, count, bits: real(sigma / 2, count, bits))
    assert spread() == pytest.approx(0.5, abs=0.03)


# --- statistics -------------------------------------------------------------------------------------------------------

AGES = Study.model_validate(
    {
        "name": "ages",
        "weights": "uniform",
        "features": [{"type": "number", "name": "age", "range": [0, 100]}],
        "target": {"kind": "binary", "column": "ill", "positive": ["yes"], "negative": ["no"]},
        "model": {"kind": "logistic"},
        "algorithm": {"preset": "fedavg"},
        "privacy": {"dp": {"unit": "patient", "epsilon": 1.0, "patients": 20, "rounds": 10}},
    }
)


def difference(release):
    """What a coordinator works out of one patient who came between two questions: their age."""
    ages = np.array([[30.0], [40.0], [50.0], [83.0]])
    with_, without = release(private.vector(ages, AGES)), release(private.vector(ages[:-1], AGES))
    return 50 + 50 * (with_[1] - without[1])


def test_a_patient_is_not_read_off_the_difference_of_two_statistics():
    assert difference(lambda vector: vector) == pytest.approx(83.0), "exact sums give the very age"
    mechanism = Gaussian(private.sensitivity(AGES), AGES.privacy.dp.statistics_event().multiplier, 4)
    found = np.array([difference(lambda vector: mechanism.release(vector, Bits())) for _ in range(400)])
    assert found.std() > 100, "the noise is more than the whole range"
    assert np.mean(np.abs(found - 83) < 10) < 0.15


# --- membership (LiRA, Carlini et al. 2022, in small) -------------------------------------------------------------------


def membership(train, seed=0, shadows=16, people=60, features=120):
    """Area under the curve of an attacker who trained models of their own with and without each patient."""
    rng = np.random.default_rng(seed)
    X = np.hstack([rng.normal(size=(people, features)), np.ones((people, 1))])
    y = np.where(rng.random(people) < 0.25, 1.0 - (X[:, 0] > 0), X[:, 0] > 0)
    inside = rng.random((shadows + 8, people)) < 0.5
    family = logistic(features)

    def confidence(rows):
        p = np.clip(family.predict(train(family, X[rows], y[rows]), X), 1e-9, 1 - 1e-9)
        p = np.where(y == 1, p, 1 - p)
        return np.log(p / (1 - p))

    found = np.array([confidence(rows) for rows in inside])
    known, seen = slice(0, shadows), slice(shadows, None)
    score = []
    for i in range(people):
        of, out = found[known][inside[known][:, i], i], found[known][~inside[known][:, i], i]
        spread = np.concatenate([of - of.mean(), out - out.mean()]).std() + 1e-9
        score.append(((found[seen][:, i] - out.mean()) ** 2 - (found[seen][:, i] - of.mean()) ** 2) / spread**2)
    guessed, true = np.array(score).T.ravel(), inside[seen].ravel()
    ranks = np.argsort(np.argsort(guessed))
    return (ranks[true].sum() - true.sum() * (true.sum() - 1) / 2) / (true.sum() * (~true).sum())


def test_whether_a_patient_took_part_is_read_off_an_overfit_model_and_not_off_a_private_one():
    def overfit(family, X, y):
        theta = np.zeros(family.layout.size)
        for _ in range(300):
            theta -= 0.5 * family.gradient(theta, X, y)
        return theta

    z = multiplier(Budget(1.0, 1e-3), 0.25, 60)

    def ours(family, X, y):
        how = Descent(0.5, 60, 0.25, 7.5, Gaussian(1.0, z, family.layout.size))
        clipped = clipping(Logistic(kind="logistic"), family.layout, "binary", 1.0)
        return descend(clipped, np.zeros(family.layout.size), how, np.zeros(family.layout.size), X, y)

    assert membership(overfit) > 0.9
    assert membership(ours) < 0.62
    assert epsilon([Event(z, 0.25, 60)], 1e-3) <= 1.0


def test_a_gradient_of_one_patient_gives_the_row_and_a_noised_one_does_not():
    rng = np.random.default_rng(0)
    model, family = Logistic(kind="logistic"), logistic(30)
    row = np.append(rng.normal(size=30), 1.0)[None]
    clipped = clipping(model, family.layout, "binary", 1.0)
    bare = -clipped(np.zeros(31), row, np.ones(1))
    assert bare[:30] / bare[30] == pytest.approx(row[0, :30]), "the intercept's part is the residual"
    alike = [
        np.corrcoef(
            descend(
                clipped, np.zeros(31), Descent(1.0, 1, 1.0, 1.0, Gaussian(1.0, 3.0, 31)), np.zeros(31), row, np.ones(1)
            )[:30],
            row[0, :30],
        )[0, 1]
        for _ in range(200)
    ]
    assert abs(np.mean(alike)) < 0.2
