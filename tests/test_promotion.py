"""The promotion rule: numbers that can be checked by hand, and a row for each way in which a version fails it."""

from __future__ import annotations

import numpy as np
import pytest

from fedrounds.core.champion import judged
from fedrounds.core.operations import Promotion
from fedrounds.core.promotion import Check, Interval, interval, judge
from fedrounds.core.round import Closed
from fedrounds.core.state import Champion, RunState
from fedrounds.ledger import Act, Decision
from fedrounds.ledger.standing import standing
from fedrounds.tasks.record import as_row, decided


def scores(**sites):
    """site -> (rows, mean loss) as scores."""
    return {site: (np.array([n, n * loss, 0.0, 0.0]), np.zeros((1, 2, 2))) for site, (n, loss) in sites.items()}


def paired(**sites):
    """site -> its patients' differences, as sums."""
    return {site: np.array([len(d), sum(d), sum(x * x for x in d)], float) for site, d in sites.items()}


BETTER = scores(east=(10, 0.4), west=(10, 0.5))
ALL_FALL = paired(east=[-0.1] * 5 + [-0.2] * 5, west=[-0.1] * 10)  # sum -2.5, squares .35 in 20 patients


# --- the interval -----------------------------------------------------------------------------------------------------


def test_the_interval_is_students_over_the_patients():
    found = interval(np.array([4.0, 8.0, 20.0]), 0.95)  # 1, 1, 3, 3: s² = 4/3, t of 3 degrees of freedom is 3.182446
    assert found == pytest.approx(
        Interval(4, 2.0, 2 - 3.182446 * (1 / 3) ** 0.5, 2 + 3.182446 * (1 / 3) ** 0.5), abs=1e-6
    )


def test_a_confidence_of_zero_is_the_mean_alone_and_one_patient_has_no_interval():
    assert interval(np.array([4.0, 8.0, 20.0]), 0.0) == (4, 2.0, 2.0, 2.0)
    assert interval(np.array([1.0, -3.0, 9.0]), 0.95) == (1, -3.0, None, None)


def test_differences_that_are_all_the_same_leave_no_doubt():
    assert interval(np.array([10.0, -1.0, 0.1]), 0.95) == pytest.approx((10, -0.1, -0.1, -0.1), abs=1e-8)


def test_the_sums_of_sites_add_up_to_the_interval_of_all_their_patients():
    rng = np.random.default_rng(3)
    parts = {site: rng.normal(-0.05, 0.2, n).tolist() for site, n in {"east": 17, "north": 40, "west": 12}.items()}
    decision = judge(Promotion(), scores(**{site: (len(d), 0.5) for site, d in parts.items()}), paired(**parts))
    together = np.concatenate(list(parts.values()))
    half = 1.9954689 * together.std(ddof=1) / 69**0.5  # t of 68 degrees of freedom
    assert decision.paired == pytest.approx(
        (69, together.mean(), together.mean() - half, together.mean() + half), abs=1e-7
    )
    assert decision.sites["west"] == interval(paired(**parts)["west"], 0.95)


def test_an_interval_is_right_nineteen_times_in_twenty():
    rng = np.random.default_rng(8)
    draws = rng.exponential(1.0, (2000, 80)) - 1
    found = [interval(np.array([80, d.sum(), d @ d]), 0.95) for d in draws]
    assert np.mean([it.low < 0 < it.high for it in found]) == pytest.approx(0.95, abs=0.02)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_first_model_is_promoted():
    decision = judge(Promotion(), BETTER, None)
    assert decided(decision) == {
        "promote": True,
        "reason": "promoted: it is the first model",
        "outcome": "promoted",
        "paired": None,
        "sites": {},
        "checks": [],
    }


def test_a_better_model_is_promoted_with_its_numbers():
    decision = judge(Promotion(), BETTER, ALL_FALL)
    # mean -.125; s² = (.35 - 20 · .125²)/19 = .0375/19; t of 19 degrees of freedom is 2.093024
    half = 2.093024 * (0.0375 / 19 / 20) ** 0.5
    assert decision.promote
    assert decision.reason == (
        "promoted: the loss fell by 0.125 (95 % interval -0.1458 to -0.1042; pooled 0.575 to 0.45) over 2 sites; worst at 'west', -0.1"
    )
    assert decision.paired == pytest.approx((20, -0.125, -0.125 - half, -0.125 + half), abs=1e-7)
    assert decision.checks == (
        Check("improvement", True, decision.paired.high, 0.0),
        Check("margin", True, decision.sites["west"].mean, 0.05),
    )


def test_the_record_of_a_decision_has_its_numbers_and_hides_small_counts():
    document = decided(
        judge(Promotion(), scores(east=(4, 0.5), west=(10, 0.5)), paired(east=[-0.1] * 4, west=[-0.1] * 10))
    )
    assert (document["outcome"], document["promote"]) == ("promoted", True)
    assert document["paired"].keys() == {"n", "mean", "low", "high", "confidence"}
    assert (document["paired"]["n"], document["paired"]["confidence"]) == (14, 0.95)
    assert {site: found["n"] for site, found in document["sites"].items()} == {"east": None, "west": 10}
    assert [check["rule"] for check in document["checks"]] == ["improvement", "margin"]


NOISY = paired(east=[-0.3, 0.2] * 5, west=[-0.3, 0.2] * 5)  # mean -.05, upper end above 0
HARM = paired(east=[0.07] * 10, west=[-0.4] * 10)

TABLE = {
    "a clear fall": ({}, ALL_FALL, "promoted", "promoted: the loss fell by 0.125"),
    "an equal model": ({}, paired(east=[0.0] * 10, west=[0.0] * 10), "kept", "changed by +0 (95 % interval +0 to +0; pooled 0.45 to 0.45), its"),
    "a fall that may be chance": ({}, NOISY, "kept", "changed by -0.05 (95 % interval -0.17"),
    "the mean alone": ({"confidence": 0.0}, NOISY, "promoted", "promoted: the loss fell by 0.05 (pooled 0.5 to 0.45) over"),
    "a fall that is large enough": ({"improvement": 0.1}, ALL_FALL, "promoted", "promoted"),
    "a fall that may be too small": ({"improvement": 0.11}, ALL_FALL, "kept", "its upper end had to be below -0.11; worst"),
    "the mean is too small": ({"improvement": 0.13, "confidence": 0}, ALL_FALL, "kept", "it had to be below -0.13; worst"),
    "harm at one site": ({}, HARM, "kept", "the loss at 'east' rose by 0.07 from 0.33 to 0.4, the margin is 0.05 (pooled 0.615 to 0.45)"),
    "harm within the margin": ({"margin": 0.1, "confidence": 0}, HARM, "promoted", "worst at 'east', +0.07"),
    "no site scored both": ({}, paired(east=[], west=[]), "kept", "no site has scored both models"),
    "one patient": ({"margin": 9}, paired(east=[-1.0]), "kept", "(too few patients for an interval; pooled 5 to 4)"),
    "gates that have no say": ({}, ALL_FALL, "promoted", "promoted", ["north"]),
    "a gate that failed": ({"gates": "passed"}, ALL_FALL, "kept", "the data of 'north' did not pass the gate in its round (95 %", ["north"]),
    "gates that passed": ({"gates": "passed"}, ALL_FALL, "promoted", "promoted"),
    "approval": ({"approval": "required"}, ALL_FALL, "pending", "waits for approval: the loss fell by 0.125 (95 %"),
    "approval of what fails": ({"approval": "required"}, NOISY, "kept", "kept the champion: the loss changed"),
    "the first model, to be approved": ({"approval": "required"}, None, "pending", "waits for approval: it is the first model"),
    "the first model, its gate failed": ({"gates": "passed"}, None, "kept", "not promoted: the data of 'north' did not", ["north"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_the_rule(case):
    words, differences, outcome, reason, *failed = TABLE[case]
    decision = judge(Promotion.model_validate(words), BETTER, differences, *failed)
    assert decision.outcome == outcome
    assert reason in decision.reason
    assert decision.promote == (outcome == "promoted")
    if differences and sum(sums[0] for sums in differences.values()):
        assert all(check.passed for check in decision.checks) == (outcome != "kept")
        assert ("gates" in {check.rule for check in decision.checks}) == (words.get("gates") == "passed")


def test_only_sites_with_validation_rows_have_a_say():
    decision = judge(Promotion(), scores(east=(10, 0.4), north=(0, 0.0)), paired(east=[-0.1] * 10, north=[]))
    assert decision.promote
    assert list(decision.sites) == ["east"]


# --- what a closed visit means ----------------------------------------------------------------------------------------


def closed(champion=None, scored=3, **differences):
    state = RunState("study", 4, 0, np.array([4.0]), {}, {}, champion=champion)
    rows = {site: (len(d), 0.5) for site, d in differences.items()} or {"east": (10, 0.5)}
    return Closed(state, "train", scored, scores(**rows), paired(**differences), {}, {})


BEFORE = RunState("study", 3, 0, np.array([3.0]), {}, {})
OLD = Champion(1, np.array([1.0]))


def test_the_model_that_came_in_becomes_champion_where_the_rule_says_so():
    state, decision = judged(BEFORE, closed(OLD, east=[-0.1] * 10), Promotion(), known=False)
    assert decision.promote
    assert (state.champion.round, state.champion.theta.tolist(), state.round) == (3, [3.0], 4)


@pytest.mark.parametrize(
    ("rule", "differences", "outcome"),
    [(Promotion(), [0.1] * 10, "kept"), (Promotion(approval="required"), [-0.1] * 10, "pending")],
)
def test_the_champion_stays_otherwise(rule, differences, outcome):
    state, decision = judged(BEFORE, closed(OLD, east=differences), rule, known=False)
    assert decision.outcome == outcome
    assert state.champion is OLD
    assert as_row(decision, 3, "abc") == Decision(3, False, decision.reason, "abc", pending=outcome == "pending")


def test_a_version_that_was_judged_and_the_initial_model_are_not_judged():
    assert judged(BEFORE, closed(OLD, east=[-0.1] * 10), Promotion(), known=True)[1] is None
    assert judged(BEFORE, closed(None, scored=0), Promotion(), known=False)[1] is None


# --- how it stands ----------------------------------------------------------------------------------------------------

RULED = [
    Decision(1, True, "first", "a", 3),
    Decision(2, True, "better", "b", 4),
    Decision(3, False, "passed", "c", 5, True),
]


def act(number, what, round, visit=5):
    return Act(number, visit, 0.0, what, round, "", "why", "ada")


@pytest.mark.parametrize(
    ("acts", "champions", "challenger"),
    [
        ([], (1, 2), 3),
        ([("promote", 3)], (1, 2, 3), None),
        ([("reject", 3)], (1, 2), None),
        ([("promote", 1)], (1, 2, 1), None),  # the one that waited was judged against another champion
        ([("rollback", 1)], (1,), None),
        ([("promote", 3), ("rollback", 2)], (1, 2), None),
        ([("promote", 3), ("rollback", 2), ("rollback", 1)], (1,), None),
        ([("promote", 3), ("rollback", 1)], (1,), None),
        ([("promote", 1), ("promote", 3), ("rollback", 1)], (1, 2, 1), None),  # the last time that it was
    ],
)
def test_who_is_champion_and_who_waits_after_decisions_and_acts(acts, champions, challenger):
    now = standing(RULED, [act(number, *what) for number, what in enumerate(acts, 1)])
    assert (now.champions, now.challenger) == (champions, challenger)


def test_an_act_comes_between_the_visits_whatever_the_clock_said():
    back = act(1, "rollback", 1, visit=4)
    assert standing(RULED, [back]).challenger == 3
    assert standing(RULED, [back]).champion == 1
    assert standing([*RULED, Decision(4, True, "better", "d", 6)], [back]).champions == (1, 4)


def test_a_newer_version_that_passes_takes_the_place_of_the_one_that_waits():
    assert standing([*RULED, Decision(4, False, "passed", "d", 6, True)], []).challenger == 4
    assert standing([*RULED, Decision(4, False, "kept", "d", 6)], []).challenger == 3


def test_the_last_word_on_a_version_is_kept_with_its_reason():
    now = standing(RULED, [act(1, "promote", 3), act(2, "rollback", 2)])
    assert now.said == {
        1: ("promoted", "first"),
        2: ("promoted", "rolled back to round 2 by ada: why"),
        3: ("rolled back", "rolled back to round 2 by ada: why"),
    }
    assert standing(RULED, [act(1, "reject", 3)]).said[3] == ("rejected", "rejected by ada: why")
