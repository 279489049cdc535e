"""Attempts: an open exchange survives its bytes and its coordinator, a number is used once, and what came in is recorded once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrounds.core import asking as askings
from fedrounds.core.errors import StateError
from fedrounds.core.messages import Request, encode
from fedrounds.core.operations import Operations
from fedrounds.core.round import Asking
from fedrounds.core.state import Champion, RunState
from fedrounds.core.state import dump as dump_state
from fedrounds.core.study import Study
from fedrounds.ledger import Attempt, Ledger, Receipt, Visit

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)


def at(number, exchange=0):
    work = {"mean": np.array([[0.1, -0.0], [5e-324, 1 / 3]])} if exchange else {}
    return RunState(STUDY.digest, number, exchange, np.full(3, number / 3), {"m": np.array([0.1])}, {}, work)


def asked(round=1, exchange=0, ask="train", state=None):
    state = state or replace(at(round - 1, exchange), champion=Champion(0, np.array([0.1, 0.2, 0.3])))
    request = Request(
        STUDY.digest,
        round,
        exchange,
        ask,
        state.model_digest,
        {"theta": state.theta, "at": np.float64(0.5) * np.ones(())},
    )
    return Asking(
        state,
        request,
        ("north", "south"),
        1,
        {"west": 'out, of "hours"', "east": "ü"},
        {"south": 0.1 + 0.2, "north": 1 / 3},
    )


def visit(number):
    return Visit(
        number, "train", at(number - 1).model_digest, at(number), {"loss": 1 / number}, "suite", 1, 100.0 + number
    )


@pytest.fixture
def ledger(ledger_at):
    with Ledger.open(ledger_at) as ledger:
        ledger.begin(STUDY)
        ledger.note_operations(Operations(rounds=3), 1)
        yield ledger


def refusal(action, *arguments):
    with pytest.raises(StateError) as caught:
        action(*arguments)
    line = str(caught.value)
    assert "expected" in line
    assert "found" in line
    return line


# --- as bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "open_one", [asked(), asked(exchange=2), asked(0, 0, "statistics", at(0)), replace(asked(), refused={}, factors={})]
)
def test_an_open_exchange_comes_back_from_its_bytes_bit_for_bit(open_one):
    data = askings.dump(open_one)
    back = askings.load(data)
    assert askings.dump(back) == data
    assert dump_state(back.state) == dump_state(open_one.state)
    assert encode(back.request) == encode(open_one.request)
    assert (back.sites, back.quorum) == (open_one.sites, open_one.quorum)
    assert list(back.refused.items()) == list(open_one.refused.items())
    assert list(back.factors.items()) == list(open_one.factors.items())


def test_damaged_bytes_of_an_open_exchange_are_refused_wherever_they_are_damaged():
    data = askings.dump(asked(exchange=1))
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert "checksum" in refusal(askings.load, damaged)
    for cut in (0, 5, 31, 32, 60, len(data) - 1):
        refusal(askings.load, data[:cut])
    refusal(askings.load, data + b"\0")


# --- in the ledger ----------------------------------------------------------------------------------------------------


def test_a_killed_coordinator_finds_the_open_attempt_and_the_very_same_requests(ledger_at, ledger):
    assert ledger.attempt() is None
    data = askings.dump(asked())
    made = ledger.open_attempt(0, data, 5000.5)
    assert (made.number, made.visit, made.round, made.exchange, made.deadline) == (1, 1, 1, 0, 5000.5)
    assert (made.closed, made.outcome) == (None, "")
    with Ledger.open(ledger_at) as again:  # another process, as far as the ledger can tell
        assert again.attempt() == made
        assert again.attempt().asking == data
        assert again.open_attempt(0, data, 9.0) == made  # the answer was lost: the same attempt, and its deadline stays


def test_an_attempt_goes_on_to_the_next_exchange_of_its_round_and_not_back(ledger):
    first, second, other = (askings.dump(it) for it in (asked(), asked(exchange=1), asked(2, 3)))
    made = ledger.open_attempt(0, first, 10.0)
    now = ledger.advance_attempt(1, second, 20.0)
    assert now == replace(made, exchange=1, deadline=20.0, asking=second)
    assert ledger.attempt() == now
    assert ledger.advance_attempt(1, second, 30.0) == now  # its answer was lost
    assert "found exchange 0" in refusal(ledger.advance_attempt, 1, first, 30.0)
    assert "found exchange 3 of round 2" in refusal(ledger.advance_attempt, 1, other, 30.0)
    assert "found attempt 1" in refusal(ledger.advance_attempt, 2, second, 30.0)
    assert ledger.attempt() == now


def test_numbers_are_never_used_twice_whatever_became_of_the_attempt(ledger):
    data = askings.dump(asked())
    ledger.open_attempt(0, data, 1.0)
    ledger.fail(1, "quorum", 7.0)
    ledger.open_attempt(0, data, 2.0)
    ledger.fail(1, "quorum", 8.0)
    ledger.open_attempt(0, data, 3.0)
    ledger.commit(0, visit(1))
    ledger.commit(1, visit(2))  # a visit without an attempt, as in one process
    ledger.open_attempt(2, askings.dump(asked(3)), 4.0)
    found = ledger.attempts()
    assert [(it.number, it.visit, it.round, it.outcome) for it in found] == [
        (1, 1, 1, "failed"),
        (2, 1, 1, "failed"),
        (3, 1, 1, "committed"),
        (4, 3, 3, ""),
    ]
    assert [it.asking for it in found] == [b"", b"", b"", askings.dump(asked(3))]  # a closed one asks nobody
    assert [it.closed is None for it in found] == [False, False, False, True]
    assert [(it.attempt, it.reason) for it in ledger.failures()] == [(1, "quorum"), (2, "quorum")]


def test_an_attempt_closes_with_its_visit_or_not_at_all(ledger):
    made = ledger.open_attempt(0, askings.dump(asked()), 1.0)
    refusal(ledger.commit, 5, visit(6))
    assert ledger.attempt() == made
    ledger.commit(0, visit(1))
    assert ledger.attempt() is None
    assert "found none" in refusal(ledger.advance_attempt, 1, askings.dump(asked(exchange=1)), 1.0)


def test_only_one_attempt_is_open_and_only_at_the_head_and_only_of_this_study(ledger):
    ledger.commit(0, visit(1))
    assert "found visit 1" in refusal(ledger.open_attempt, 0, askings.dump(asked()), 1.0)
    foreign = asked(2, state=replace(at(1), study="f" * 64))
    assert "found one for ffffffffffff" in refusal(ledger.open_attempt, 1, askings.dump(foreign), 1.0)
    refusal(ledger.open_attempt, 1, b"no asking", 1.0)
    ledger.open_attempt(1, askings.dump(asked(2)), 1.0)
    assert "found attempt 1" in refusal(ledger.open_attempt, 1, askings.dump(asked(2, 1)), 1.0)
    assert len(ledger.attempts()) == 1


def test_a_runner_that_lost_its_lease_neither_asks_nor_closes_what_another_asked(ledger_at, ledger):
    ledger.acquire()
    with Ledger.open(ledger_at) as other:
        other._owner, old = ledger._owner, other._owner  # as if time had passed: the lease is given up for it
        other.release()
        other._owner = old
        other.acquire()
        made = other.open_attempt(0, askings.dump(asked()), 1.0)
        for action in (
            lambda: ledger.open_attempt(0, made.asking, 1.0),
            lambda: ledger.advance_attempt(1, askings.dump(asked(exchange=1)), 1.0),
            lambda: ledger.fail(1, "quorum", 7.0),
            lambda: ledger.commit(0, visit(1)),
        ):
            assert "another runner took it" in refusal(action)
        assert other.attempt() == made
        assert (other.failures(), other.head()) == ([], None)


# --- what came in -----------------------------------------------------------------------------------------------------


def test_a_reply_is_recorded_once_with_what_became_of_it_first(ledger):
    ledger.open_attempt(0, askings.dump(asked()), 1.0)
    taken = Receipt(1, 0, "north", "a" * 64, "taken", "", 3_000_000_000, 5_000_000_000)
    ledger.note_reply(taken)
    ledger.note_reply(replace(taken, outcome="late", reason="again"))
    ledger.note_reply(Receipt(1, 0, "north", "b" * 64, "refused", "expected finite numbers"))
    ledger.note_reply(Receipt(1, 0, "south", "c" * 64, "declined", "nights only"))
    ledger.fail(1, "quorum", 7.0)
    ledger.open_attempt(0, askings.dump(asked()), 1.0)
    ledger.note_reply(Receipt(1, 0, "south", "d" * 64, "late"))
    ledger.note_reply(replace(taken, attempt=2))
    found = ledger.replies(1)
    assert [(it.site, it.digest[0], it.outcome, it.reason) for it in found] == [
        ("north", "a", "taken", ""),
        ("north", "b", "refused", "expected finite numbers"),
        ("south", "c", "declined", "nights only"),
        ("south", "d", "late", ""),
    ]
    assert replace(found[0], received=0.0) == taken
    assert all(it.received > 1e9 for it in found)
    assert [(it.attempt, it.site) for it in ledger.replies()] == [(1, "north")] * 2 + [(1, "south")] * 2 + [
        (2, "north")
    ]
    assert "attempt 9" in refusal(ledger.note_reply, replace(taken, attempt=9))


def test_an_attempt_shows_no_weights_when_it_is_printed():
    assert "asking" not in repr(Attempt(1, 1, 1, 0, 0.0, 1.0, None, "", b"weights"))
