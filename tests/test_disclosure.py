"""Small counts stay at the site: a test for each guarantee of `withhold`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedrounds.core.answer import Policy, crowded, handle
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.evaluate import auc
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.disclosure import merge_scores, withhold
from fedrounds.core.round import open_round
from fedrounds.core.study import Study


def test_a_feature_that_few_patients_have_leaves_as_if_none_had():
    sums = {"observed": np.array([3.0, 12.0]), "sum": np.array([207.0, 600.0]), "levels": np.zeros(0)}
    thinned = withhold(sums, 10)
    assert thinned["observed"].tolist() == [0.0, 12.0]
    assert thinned["sum"].tolist() == [0.0, 600.0]


def test_a_level_that_few_patients_have_leaves_as_zero():
    sums = {"observed": np.array([30.0]), "sum": np.array([9.0]), "levels": np.array([21.0, 9.0, 0.0])}
    assert withhold(sums, 10)["levels"].tolist() == [21.0, 0.0, 0.0]


def test_scores_of_few_validation_rows_leave_as_of_no_rows():
    sums = {"scores": np.array([9.0, 4.0, 1.0, 7.0]), "histogram": np.ones((1, 2, 4)), "delta": np.array([0.5])}
    thinned = withhold(sums, 10)
    assert thinned["scores"].tolist() == [0.0] * 4
    assert thinned["histogram"].sum() == 0
    assert thinned["delta"].tolist() == [0.5]


def test_differences_to_the_champion_of_few_validation_rows_leave_as_of_no_rows():
    sums = {"scores": np.array([9.0, 4.0, 1.0, 7.0]), "histogram": np.ones((1, 2, 4)), "paired": np.array([9.0, -1, 2])}
    assert withhold(sums, 10)["paired"].tolist() == [0.0, 0.0, 0.0]
    assert withhold(sums, 9)["paired"].tolist() == [9.0, -1.0, 2.0]


@pytest.mark.parametrize(
    ("sums", "by_time"),
    [
        ({"counts": np.array([[4.0, 20.0], [5.0, 0.0]])}, True),  # nine were last seen in the first interval
        ({"counts": np.array([[12.0, 9.0, 0.0]])}, False),
        ({"branches": np.array([[[[0.1, 2.0, 30.0], [0.1, 0.5, 1.0]]]])}, False),
    ],
)
def test_sums_by_bin_or_interval_of_few_patients_do_not_leave_unless_they_are_hidden_or_at_home(sums, by_time):
    with pytest.raises(
        UpdateRejected, match="sums of fewer than 10 of its patients, by bin or by interval of time: mask the sums"
    ):
        withhold(sums, 10, fine=False, by_time=by_time)
    assert withhold(sums, 10, fine=False, alone=False, by_time=by_time).keys() == sums.keys()
    assert withhold(sums, 10, fine=True, by_time=by_time).keys() == sums.keys()
    assert withhold(sums, 1, fine=False, by_time=by_time).keys() == sums.keys()


def test_sums_by_interval_of_enough_patients_leave():
    counts = np.array([[4.0, 20.0, 0.0], [6.0, 0.0, 0.0]])
    assert withhold({"counts": counts}, 10, fine=False, by_time=True)["counts"].tolist() == counts.tolist()


def test_what_was_given_is_not_changed():
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    withhold({"scores": scores, "histogram": np.ones((1, 2, 4))}, 10)
    assert scores.tolist() == [1.0, 2.0, 3.0, 4.0]


# --- merged score histograms ------------------------------------------------------------------------------------------

COUNTS = arrays(
    np.float64, st.tuples(st.integers(1, 3), st.just(2), st.integers(2, 24)), elements=st.integers(0, 25).map(float)
)


@settings(database=None, deadline=None, max_examples=400)
@given(COUNTS, st.integers(1, 15))
def test_a_merged_score_histogram_has_no_small_cell_and_keeps_what_is_judged_by_it(fine, minimum):
    merged = merge_scores(fine, minimum)
    assert merged.shape == fine.shape
    assert ((merged == 0) | (merged >= minimum)).all()
    centres = (np.arange(fine.shape[2]) + 0.5) / fine.shape[2]
    for before, after in zip(fine, merged, strict=True):
        rows = before.sum(1)
        if not ((rows == 0) | (rows >= minimum)).all():  # few of an outcome in all: none of the problem leaves
            assert after.sum() == 0
            continue
        assert after.sum(1).tolist() == rows.tolist()
        moved = abs(float(after.sum(0) @ centres - before.sum(0) @ centres))
        assert moved <= (0.5 / len(centres) + 1e-12) * rows.sum()
        if rows.all():
            (area, error), (true, own) = auc(after), auc(before)
            assert (
                abs(area - true) <= error - own + 1e-12
            )  # and so each area within the fine bound of the fine one, too


@settings(database=None, deadline=None, max_examples=200)
@given(COUNTS)
def test_a_histogram_without_small_cells_leaves_as_it_is(fine):
    whole = np.where(fine < 10, 0.0, fine)
    assert (merge_scores(whole, 10) == whole).all()


NUMBERS = [{"type": "number", "name": f"x{j}", "range": [-1, 1]} for j in range(3)]
SITE = {
    "type": "category",
    "name": "ward",
    "categories": ["a", "b", "c", "x" * 30],
}  # five columns: one a level, one for others


def plan(model="logistic"):
    return build(
        Study.model_validate(
            {
                "name": "crowd",
                "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
                "features": [*NUMBERS, SITE],
                "model": {"kind": model},
                "algorithm": "fedavg",
            }
        )
    )


@pytest.mark.parametrize(
    ("limit", "patients", "said"),
    [
        (
            {"parameters_per_patient": 0.33},
            27,
            "its logistic regression has 9 parameters: the site allows 0.33 for each",
        ),
        ({"parameters_per_patient": 0.33}, 28, ""),
        ({"most_levels": 3}, 1000, "'ward' has 4 levels: the site allows 3"),
        ({"most_levels": 4}, 1000, ""),
        ({"levels_per_patient": 0.33}, 12, "'ward' has 4 levels: the site allows 0.33 for each training patient"),
        ({"levels_per_patient": 0.33}, 13, ""),
        ({"longest_level": 29}, 1000, "a level of 'ward' has 30 letters: the site allows 29"),
        ({"longest_level": 30}, 1000, ""),
        ({}, 10, ""),
    ],
)
def test_what_has_too_much_in_it_for_so_few_patients_is_refused_by_name(limit, patients, said):
    found = crowded(plan(), Policy(**limit), patients)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_limit_of_a_regression_is_none_of_a_neural_network():
    assert crowded(plan("mlp"), Policy(parameters_per_patient=0.33), 12) == ""


def test_a_site_sends_a_refusal_and_no_sums():
    made = plan()
    X, y = np.ones((20, 9)), np.tile([0.0, 1.0], 10)
    state = made.start(made.no_statistics())
    request = open_round(state, made, "train", ["east"]).request
    policy = Policy(parameters_per_patient=0.33, finest_bins=1000)
    _, reply = handle(request, {}, Rows(X, y, X, y), made, policy, "east", np.random.default_rng(0))
    assert reply.refusal.startswith("its logistic regression has 9 parameters")
    assert not reply.arrays


def test_sums_of_groups_are_refused_where_one_is_small_unless_they_are_hidden():
    sums = {"groups": np.array([12.0, 0.0, 9.0]), "sum": np.ones((3, 2))}
    with pytest.raises(
        UpdateRejected, match=r"a group of its patients .* is below the site's minimum of 10"
    ) as refused:
        withhold(sums, 10)
    assert "9" not in str(refused.value)
    assert withhold(sums, 9)["groups"].tolist() == [12.0, 0.0, 9.0]
    assert withhold(sums, 10, alone=False)["groups"].tolist() == [12.0, 0.0, 9.0]
