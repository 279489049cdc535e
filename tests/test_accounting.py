"""What releases cost, held against figures of other libraries (opacus 1.6.0, dp-accounting 0.6.0) and against closed forms."""

from __future__ import annotations

import json
from math import sqrt

import pytest

from fedrounds.core.privacy.accounting import Budget, Event, epsilon, fits, multiplier, reported

OPACUS = [(1.0, 0.01, 1000, 2.1014), (1.1, 256 / 60000, 14063, 2.5967), (2.0, 0.1, 300, 4.5643)]


@pytest.mark.parametrize(("z", "rate", "steps", "known"), OPACUS)
def test_epsilon_is_that_of_opacus(z, rate, steps, known):
    assert epsilon([Event(z, rate, steps)], 1e-5) == pytest.approx(known, rel=1e-3)


def test_a_report_is_tighter_and_within_a_hundredth_of_opacus_prv():
    found = reported([Event(1.0, 0.01, 1000)], 1e-5)
    assert found == pytest.approx(1.8384, rel=0.01)
    assert found < epsilon([Event(1.0, 0.01, 1000)], 1e-5)


def test_sampling_nobody_out_is_the_plain_gaussian():
    assert epsilon([Event(8.0, 1.0, 1)], 1e-5) == pytest.approx(epsilon([Event(8.0 * sqrt(2), 1.0, 2)], 1e-5))


def test_order_does_not_matter_and_an_event_more_never_costs_less():
    one, two = Event(2.0, 0.1, 10), Event(5.0)
    assert epsilon([one, two], 1e-5) == epsilon([two, one], 1e-5) > max(epsilon([one], 1e-5), epsilon([two], 1e-5))
    assert epsilon([], 1e-5) == 0.0


def test_a_calibrated_study_fits_its_budget_and_a_round_more_does_not():
    budget, first = Budget(3.0, 1e-3), Event(8.0)
    z = multiplier(budget, 0.25, 100, (first,))
    assert 2.99 < epsilon([first, Event(z, 0.25, 100)], budget.delta) <= 3.0
    assert fits([first], [Event(z, 0.25, 100)], budget)
    assert not fits([first, Event(z, 0.25, 100)], [Event(z, 0.25, 5)], budget)


def test_what_comes_first_may_not_be_beyond_the_budget():
    with pytest.raises(ValueError, match="smaller share"):
        multiplier(Budget(0.1, 1e-5), 0.25, 100, (Event(1.0),))


def test_an_event_is_the_same_after_a_ledger():
    event = Event(1.25, 0.1, 5)
    assert Event.of(json.loads(json.dumps(event.to_json()))) == event
    with pytest.raises(ValueError, match="ledger"):
        Event.of({"multiplier": 0, "rate": 0.1, "times": 1})
