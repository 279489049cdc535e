"""Small counts stay at the site: a test for each guarantee of `withhold`."""

import numpy as np

from fedrounds.core.privacy.disclosure import withhold


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


def test_what_was_given_is_not_changed():
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    withhold({"scores": scores, "histogram": np.ones((1, 2, 4))}, 10)
    assert scores.tolist() == [1.0, 2.0, 3.0, 4.0]
