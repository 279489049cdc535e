"""The measures of drift: exact on tables small enough for paper, lower bounds where cells were withheld, quiet where there is no drift."""

from __future__ import annotations

from itertools import product
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.core.answer import Policy, handle
from fedrounds.core.calibration import in_the_large, surely_beyond
from fedrounds.core.drift import FALSE_ALARMS, assess, beyond_chance, chi_square, closest, ks, psi
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.operations import Drift
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Cohort
from fedrounds.core.privacy.disclosure import merge_cells
from fedrounds.core.profile import PREFERRED, edges
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.study import Study

AGE = {"type": "number", "name": "age", "range": [0, 100]}
DOSE = {"type": "number", "name": "dose"}
WARD = {"type": "category", "name": "ward", "categories": ["red", "blue"]}
YES_NO = {"kind": "binary", "column": "y", "positive_above": 0.0}


def study(features=(AGE, DOSE, WARD), target=YES_NO, **more) -> Study:
    model = {"regression": "linear", "binary": "logistic", "multiclass": "multinomial"}[target["kind"]]
    words = {"name": "s", "target": target, "features": list(features), "model": {"kind": model}, "algorithm": "fedavg"}
    return Study.model_validate(words | more)


def told(*counts: float, minimum: int = 10):
    """What the coordinator knows of these counts."""
    return merge_cells(np.array(counts, float), minimum)


def distance(a, b) -> float:
    """PSI of the closest tables."""
    return psi(*closest(np.array(a, float), np.array(b, float)))


# --- PSI and KS -------------------------------------------------------------------------------------------------------


def test_psi_of_one_half_against_one_quarter():
    assert distance([50, 50], [25, 75]) == pytest.approx(0.25 * log(2) + 0.25 * log(1.5), abs=1e-15)


def test_an_empty_cell_counts_as_half_a_row_and_one_empty_on_both_sides_as_nothing():
    expected = (0.5 - 0.005) * log(0.5 / 0.005) + (1.0 - 0.5) * log(1.0 / 0.5)
    assert distance([50, 50, 0], [0, 100, 0]) == pytest.approx(expected, abs=1e-14)


def test_psi_of_equal_shares_is_zero_whatever_the_rows():
    assert distance([1, 2, 3], [10, 20, 30]) == 0.0


def test_ks_is_the_largest_distance_at_the_ends_of_cells_among_known_values():
    def apart(a, b):
        return ks(np.array(a, float), np.array(b, float))

    assert apart([10, 20, 10, 0], [20, 10, 10, 0]) == 0.25
    assert apart([10, 20, 10, 60], [20, 10, 10, 0]) == 0.25  # the last cell is the missing ones'
    assert apart([40, 0, 0, 0], [0, 0, 40, 0]) == 1.0
    assert apart([0, 0, 40], [20, 20, 0]) == 0.0  # no known value on one side


counts = st.lists(st.integers(0, 60), min_size=5, max_size=5).filter(lambda it: sum(it[:-1]) >= 10)
filled = st.lists(st.integers(1, 60), min_size=5, max_size=5).filter(lambda it: sum(it) >= 10)


@given(counts, counts)
@settings(max_examples=60, deadline=None)
def test_psi_is_symmetric_and_never_negative_and_ks_is_a_share(a, b):
    one, other = np.array(a, float), np.array(b, float)
    assert psi(one, other) == psi(other, one) >= 0.0
    assert psi(one, one) == ks(one, one) == 0.0
    assert 0.0 <= ks(one, other) == ks(other, one) <= 1.0


@given(filled, filled)
@settings(max_examples=100, deadline=None)
def test_merged_cells_only_ever_lower_both_measures(a, b):
    one, other = told(*a), told(*b)
    assert distance(one, other) <= distance(a, b) + 1e-9
    assert distance(one, other) == pytest.approx(distance(other, one), abs=1e-6)
    assert ks(one, other) <= ks(np.array(a, float), np.array(b, float)) + 1e-12


def test_merged_cells_are_dealt_as_the_other_sides_are():
    p, q = closest(np.array([40.0, 20.0, 40.0]), np.array([30.0, -1.0, 70.0]))
    assert p.tolist() == [40, 20, 40]
    assert q.tolist() == pytest.approx([20, 10, 70])
    both = closest(np.array([60.0, -1.0, 40.0]), np.array([20.0, 80.0, -1.0]))
    assert psi(*both) == pytest.approx(0.0, abs=1e-9)  # 20, 40 and 40 give both


def test_all_rows_moving_from_one_cell_to_another_are_seen_though_cells_are_merged():
    assert distance(told(60, 35, 5, 0), told(0, 5, 35, 60)) > 3


def test_ks_bounds_what_lies_within_merged_cells():
    merged, single = np.array([30.0, -1.0, 70.0, 0.0]), np.array([0.0, 0.0, 100.0, 0.0])
    assert ks(merged, single) == 0.3
    assert ks(merged, np.array([20.0, 10.0, 70.0, 0.0])) == 0.0
    assert ks(np.array([30.0, 70.0, -1.0]), np.array([90.0, 10.0, 0.0])) == 0.0  # 70 of the one may be missing


# --- the allowance for chance -----------------------------------------------------------------------------------------


def test_the_mean_under_no_drift_is_taken_off_beyond_the_quantile_and_all_below_it():
    assert chi_square(1, 0.01) == pytest.approx(6.63, abs=0.2)
    assert beyond_chance(0.5, 2, (400, 400), 1) == pytest.approx(0.5 - 1 / 400 - 1 / 400, abs=1e-15)
    assert beyond_chance(0.03, 2, (400, 400), 1) == 0.0  # (1/400 + 1/400) * 6.6 = .033
    assert beyond_chance(0.5, 2, (400, 0), 1) == 0.0


BOOK = {
    (1, 0.01): 6.635,
    (1, 1e-5): 19.511,
    (5, 0.01): 15.086,
    (5, 1e-5): 30.856,
    (12, 0.01): 26.217,
    (12, 1e-5): 45.076,
    (40, 1e-5): 90.079,
}


def test_the_quantile_is_that_of_the_book_or_a_little_more():
    for (freedom, tail), quantile in BOOK.items():
        assert 0.99 < chi_square(freedom, tail) / quantile < 1.12


def cohort(rng: np.random.Generator, rows: int, shift: float = 0.0) -> Cohort:
    values = np.column_stack([rng.normal(50 + shift, 12, rows), rng.normal(0, 1, rows), rng.integers(0, 2, rows)])
    values[rng.random((rows, 3)) < 0.04] = np.nan
    return Cohort("a", values, (rng.random(rows) < 0.3).astype(float), np.zeros(rows, bool), {})


def profile(plan, data: Cohort, minimum: int = 10) -> dict[str, list[float]]:
    """What a site answers, as the ledger keeps it."""
    state = plan.start(plan.no_statistics())
    asking = open_round(state, plan, "profile", [data.site])
    policy = Policy(minimum_patients=minimum)
    reply = handle(asking.request, {}, data, plan, policy, data.site, np.random.default_rng(0))[1]
    assert reply.refusal == ""
    closed = close_exchange(asking, plan, [reply])
    assert closed.state is state
    return {name: cells.tolist() for name, cells in closed.profiles[data.site].items()}


def test_of_two_hundred_profiles_without_drift_at_most_the_stated_share_is_told_from_chance():
    plan, rng, limits = build(study()), np.random.default_rng(7), Drift(warn=0.0, hold=0.0)
    told = raw = 0
    for trial in range(200):
        then, now = (profile(plan, cohort(rng, rows)) for rows in ((60, 80), (300, 200), (1000, 500))[trial % 3])
        found = assess(plan.study, limits, {1: {"a": then}, 2: {"a": now}}, 1, ["a"])
        told += found["held"]
        raw += max(shift["raw"] for shift in found["sites"]["a"]["features"].values()) > 0.1
    assert told <= 200 * FALSE_ALARMS
    assert raw > 40  # without the allowance more than one in five would be noted


@pytest.mark.parametrize("rows", [60, 300, 3000])
def test_a_shift_by_one_and_a_half_deviations_is_held_from_sixty_rows_on(rows):
    plan, rng = build(study()), np.random.default_rng(3)
    then, now = profile(plan, cohort(rng, rows)), profile(plan, cohort(rng, rows, shift=18.0))
    found = assess(plan.study, Drift(), {1: {"a": then}, 2: {"a": now}}, 1, ["a"])
    assert found["held"]
    assert (found["worst"]["site"], found["worst"]["what"]) == ("a", "age")
    assert found["sites"]["a"]["features"]["age"]["ks"] > 0.15
    assert found["sites"]["a"]["features"]["ward"] == {"psi": 0.0, "raw": pytest.approx(0, abs=0.2), "ks": None}


# --- whose reference, what is watched ---------------------------------------------------------------------------------

SAME = {"cells.0": [0] * 5 + [40, 60] + [0] * 6, "cells.label": [50, 50]}
MOVED = {"cells.0": [0] * 5 + [80, 20] + [0] * 6, "cells.label": [50, 50]}
RARER = {"cells.0": [0] * 5 + [40, 60] + [0] * 6, "cells.label": [80, 20]}


def found_in(profiles, reference=1, sites=("a", "b"), **limits):
    return assess(study([AGE]), Drift(**limits), profiles, reference, sites)


def test_a_site_is_compared_with_its_first_profile_from_the_reference_on():
    profiles = {2: {"a": SAME, "b": SAME}, 5: {"a": MOVED, "b": SAME}, 9: {"a": MOVED, "b": SAME, "c": SAME}}
    found = found_in(profiles, 2, ("a", "b", "c"))
    assert found["reference"] == 2
    assert found["sites"]["a"]["since"] == 2
    assert found["sites"]["a"]["features"]["age"]["raw"] == pytest.approx(0.4 * log(2) + 0.4 * log(3), abs=1e-14)
    assert "c" not in found["sites"]  # it is new: only the other sites can be compared with it
    assert set(found["between"]) == {"a", "b", "c"}
    accepted = found_in(profiles, 5, ("a", "b", "c"))
    assert accepted["sites"]["a"]["since"] == 5
    assert (accepted["worst"], accepted["held"]) == (None, False)


def test_a_site_that_takes_no_part_holds_nothing():
    profiles = {1: {"a": SAME, "b": SAME}, 2: {"a": MOVED, "b": SAME}}
    assert found_in(profiles)["held"]
    assert not found_in(profiles, sites=("b",))["held"]


def test_the_label_has_its_rate_and_can_be_left_out_and_so_can_features():
    profiles = {1: {"a": SAME, "b": MOVED}, 2: {"a": RARER, "b": SAME}}
    found = found_in(profiles)
    label = found["sites"]["a"]["label"]
    assert (label["rate"], label["reference_rate"]) == (0.2, 0.5)
    assert label["raw"] == pytest.approx(0.3 * log(1.6) + 0.3 * log(2.5), abs=1e-14)
    unlabelled = found_in(profiles, label=False)
    assert unlabelled["sites"]["a"]["label"] is None
    assert unlabelled["worst"]["site"] == "b"
    assert found_in(profiles, features=())["worst"] == {"site": "a", "what": "y", "psi": label["psi"]}


def test_a_warning_above_the_hold_is_refused():
    with pytest.raises(ValueError, match="`warn` of at most `hold`"):
        Drift(warn=0.3)


# --- what leaves a site -----------------------------------------------------------------------------------------------


def test_cells_are_ten_of_the_range_its_outsides_and_the_missing():
    data = Cohort(
        "a",
        np.array([[-1.0], [0.0], [5.0], [10.0], [99.9], [100.0], [100.1], [np.nan]]),
        np.zeros(8),
        np.zeros(8, bool),
        {},
    )
    cells = profile(build(study([AGE])), data, minimum=1)["cells.0"]
    assert cells == [1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1]


def test_a_number_without_a_range_has_the_deciles_of_round_0s_normal_curve_and_else_preferred_numbers():
    agreed = {"center": np.array([0.0, 10.0, 0, 0, 0]), "scale": np.array([1.0, 2.0, 1, 1, 1])}
    found = edges(study(), agreed)
    assert found[1][[0, 4, 8]].tolist() == pytest.approx([10 - 2 * 1.2815515655, 10, 10 + 2 * 1.2815515655])
    assert found[2].tolist() == [1, 2]
    plain = edges(study(preprocess={"standardise": "none"}), {})
    assert plain[1] is PREFERRED
    assert np.isin([-2.5, 0.001, 125.0, 315.0], PREFERRED).all()
    assert np.all(np.diff(PREFERRED) > 0)


def test_training_rows_alone_are_counted_and_a_regressions_target_by_preferred_numbers():
    target = {"kind": "regression", "column": "y"}
    data = Cohort(
        "a", np.full((30, 1), 50.0), np.array([100.0] * 12 + [130.0] * 12 + [7.0] * 6), np.arange(30) >= 24, {}
    )
    found = profile(build(study([AGE], target)), data)
    assert sum(found["cells.0"]) == 24
    label = np.array(found["cells.label"])
    assert [PREFERRED[cell - 1] for cell in np.flatnonzero(label)] == [100.0, 125.0]
    assert label[label > 0].tolist() == [12, 12]


def test_no_merged_count_can_be_worked_out_from_what_leaves():
    """Every small table: no group is small, and each cell of a group could have held another count."""
    for minimum, cells, most in ((3, 2, 12), (3, 3, 9), (3, 4, 7), (4, 4, 6)):
        sources: dict[tuple, list] = {}
        for table in product(range(most + 1), repeat=cells):
            if sum(table) >= minimum:
                left = tuple(told(*table, minimum=minimum))
                assert sum(group for group in left if group > 0) == sum(table)
                assert all(group <= 0 or group >= minimum for group in left)
                sources.setdefault(left, []).append(table)
        for left, tables in sources.items():
            if max(left) <= most:  # all of its sources are among those tried
                merged = [j for j in range(cells) if -1 in (left[j], *left[j + 1 : j + 2])]
                assert all(len({table[j] for table in tables}) > 1 for j in merged), (left, tables)


def test_a_planted_small_cell_leaves_with_the_rows_of_its_neighbours():
    assert told(60, 3, 0, 25, 12).tolist() == [60, 28, -1, -1, 12]
    assert told(60, 25, 12, 3).tolist() == [60, 25, 15, -1]
    assert told(97, 3).tolist() == [100, -1]
    assert told(60, 0, 3, 0, 0).tolist() == [63, -1, -1, 0, 0]
    assert told(3, 97).tolist() == [100, -1]


def test_a_small_hospital_sends_no_profile_and_a_crooked_one_is_refused():
    plan = build(study([AGE]))
    asking = open_round(plan.start(plan.no_statistics()), plan, "profile", ["a"])
    few = Cohort("a", np.full((9, 1), 50.0), np.zeros(9), np.zeros(9, bool), {})
    reply = handle(asking.request, {}, few, plan, Policy(), "a", np.random.default_rng(0))[1]
    assert "minimum cohort of 10" in reply.refusal
    fine = handle(asking.request, {}, few, plan, Policy(minimum_patients=1), "a", np.random.default_rng(0))[1]
    for crooked in ([4.5, 4.5], [-1.0, 9.0], [9.0, 1.0], [11.0, -2.0]):
        arrays = {**fine.arrays, "cells.label": np.array(crooked)}
        with pytest.raises(UpdateRejected, match="counts of the same rows"):
            close_exchange(asking, plan, [type(fine)(**{**vars(fine), "arrays": arrays})])


# --- calibration ------------------------------------------------------------------------------------------------------


def test_observed_over_expected_and_the_shift_of_log_odds_that_mends_it():
    # 40 patients told 1/4 and 40 told 3/4: 40 expected, 60 observed; sigmoid(a - ln 3) + sigmoid(a + ln 3) = 3/2 at e^a = 3.61…
    histogram = np.array([[[15.0, 5.0], [25.0, 35.0]]])
    found = in_the_large({"a": histogram})["a"]
    x = (10 / 3 + (100 / 9 + 4 * 3) ** 0.5) / 2  # x = e^a solves x/(x+3) + 3x/(3x+1) = 3/2, that is 3x² - 10x - 9 = 0
    assert found.ratio == 1.5
    assert found.intercept == pytest.approx(log(x), abs=1e-10)
    assert found.error == pytest.approx((0.25 / 60) ** 0.5, abs=1e-15)
    assert surely_beyond(found, 0.2)
    assert not surely_beyond(found, 0.3)  # ln 1.5 - 1.96 * .065 = .279


def test_calibration_is_undefined_without_rows_or_with_one_outcome_and_of_classes_the_worst_is_told():
    none = in_the_large(
        {"a": np.zeros((1, 2, 4)), "b": np.array([[[3.0, 3.0, 0, 0], [0.0] * 4]]), "c": np.zeros((0, 2, 4))}
    )
    assert none == {"a": (None, None, None), "b": (None, None, None)}
    assert not surely_beyond(none["a"], 0.0)
    fair, worse = [[4.0, 0.0], [0.0, 4.0]], [[4.0, 0.0], [4.0, 4.0]]
    assert in_the_large({"a": np.array([fair, worse, fair])})["a"].ratio == pytest.approx(8 / 5)
