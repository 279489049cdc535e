"""Kaplan-Meier, log-rank and concordance from counts: the same as of all patients in one place."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from fedrounds.core.params import Array
from fedrounds.core.survival import concordance, counted, kaplan_meier, log_rank, log_rank_sums


def patients(seed: int, n: int = 300, count: int = 10) -> tuple[Array, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n)
    time = np.clip(np.ceil(rng.exponential(4.0 + 2 * group)), 1, count)
    return np.where(rng.uniform(size=n) < 0.6, time, -time), group


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_statsmodels_of_all_rows(seed: int) -> None:
    y, _ = patients(seed)
    curve = kaplan_meier(sum(counted(part, 10)[0] for part in np.split(y, [7, 90])))
    oracle = SurvfuncRight(np.abs(y), y > 0)
    at = oracle.surv_times.astype(int) - 1
    assert np.abs(curve.survival[at] - oracle.surv_prob).max() < 1e-12
    kept = oracle.surv_prob > 0
    assert np.abs(curve.error[at][kept] - oracle.surv_prob_se[kept]).max() < 1e-12


def test_a_curve_ends_at_nought_where_the_last_patient_dies_and_stays_where_nobody_is_left() -> None:
    curve = kaplan_meier(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
    assert curve.survival.tolist() == [0.5, 0.0, 0.0]
    assert curve.error[1] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_log_rank_is_statsmodels_of_all_rows_pooled_and_by_strata(seed: int) -> None:
    y, group = patients(seed)
    sites = np.arange(300) * 4 // 300
    parts = [counted(y[sites == site], 10, group[sites == site], 3) for site in range(4)]
    test = log_rank(*log_rank_sums(sum(parts)))
    statistic, p = survdiff(np.abs(y), y > 0, group)
    assert test is not None
    assert test.freedom == 2
    assert test.statistic == pytest.approx(statistic, rel=1e-10)
    assert test.p == pytest.approx(p, rel=1e-8)
    difference, covariance = (sum(part) for part in zip(*map(log_rank_sums, parts), strict=True))
    test = log_rank(difference, covariance)
    statistic, p = survdiff(np.abs(y), y > 0, group, strata=sites)
    assert test is not None
    assert test.statistic == pytest.approx(statistic, rel=1e-10)


def test_log_rank_of_one_group_says_nothing_and_an_empty_group_counts_for_none() -> None:
    y, group = patients(5)
    assert log_rank(*log_rank_sums(counted(y, 10, np.zeros(300, int), 2))) is None
    two = np.where(group == 2, 3, group)
    test, plain = (log_rank(*log_rank_sums(counted(y, 10, g, k))) for g, k in ((two, 5), (group, 3)))
    assert test == plain


def test_concordance_is_the_share_of_pairs_in_order_within_the_bound_that_binning_leaves() -> None:
    y, _ = patients(6, 120)
    rng = np.random.default_rng(6)
    score = np.clip(0.5 - 0.03 * np.abs(y) + rng.normal(0, 0.2, 120), 0, 0.999)
    right = pairs = 0.0
    coarse_right = 0.0
    for i in np.flatnonzero(y > 0):
        for j in range(120):
            if abs(y[j]) > y[i] or y[j] == -y[i]:
                pairs += 1
                right += float(score[i] > score[j]) + 0.5 * float(score[i] == score[j])
                coarse_right += float(int(score[i] * 20) > int(score[j] * 20)) + 0.5 * float(
                    int(score[i] * 20) == int(score[j] * 20)
                )
    histogram = np.stack([counted(y[(score * 20).astype(int) == b], 10)[0].T for b in range(20)], axis=2)
    found = concordance(histogram)
    assert found is not None
    value, error = found
    assert value == pytest.approx(coarse_right / pairs, abs=1e-12)
    assert 0 < abs(value - right / pairs) <= error < 0.05
    assert concordance(histogram * np.array([1.0, 0.0])[:, None]) is None
