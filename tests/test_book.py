"""What a hospital's agent remembers: every promise of the book, on a real file."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from fedrounds.core import identity
from fedrounds.core.errors import StateError
from fedrounds.core.messages import pack, unpack
from fedrounds.exchange.name import Name
from fedrounds.site.book import Asked, Book, Question

DAY = 86_400.0


@pytest.fixture
def book(tmp_path):
    one = Book(tmp_path / "state" / "book.db")
    yield one
    one.close()


def question(number=1, about="a", **other):
    return Question(
        **{"study": "s", "round": number, "exchange": 0, "ask": "train", "base": "b", "about": about, **other}
    )


def asked(name="1", outcome="answered", number=1, ask="train", at=None):
    return Asked(time.time() if at is None else at, name, "s", number, ask, outcome, "", 10, 20, 0.5)


def test_a_question_has_one_reply_whatever_is_kept_later(book):
    assert book.reply(question()) is None
    book.keep(question(), b"first", None)
    book.keep(question(), b"second", None)
    assert book.reply(question()) == b"first"


@pytest.mark.parametrize(
    "other", [{"exchange": 1}, {"ask": "score"}, {"base": "c"}, {"study": "t"}, {"about": "z"}, {"number": 2}]
)
def test_another_question_has_another_reply(book, other):
    book.keep(question(), b"first", None)
    assert book.reply(question(**other)) is None


def test_state_takes_effect_only_when_a_later_round_begins(book):
    book.keep(question(1), b"reply", b"after 1")
    assert book.state("s", 1) is None
    assert book.state("s", 2) == b"after 1"
    assert book.state("s", 5) == b"after 1"
    assert book.state("t", 2) is None


def test_a_round_that_failed_leaves_no_state_behind_when_it_is_asked_anew(book):
    book.keep(question(1), b"reply", b"after 1")
    book.keep(question(2), b"reply", b"of a try that failed")
    assert book.state("s", 2) == b"after 1"  # the second try begins with what the first began with
    book.keep(question(2, about="other data"), b"reply", b"after 2")
    assert book.state("s", 2) == b"after 1"
    assert book.state("s", 3) == b"after 2"


def test_old_replies_and_states_are_forgotten_and_the_last_state_never(book):
    for number in (1, 2, 3, 4, 9):
        book.keep(question(number), b"reply %d" % number, b"after %d" % number)
    kept = [number for number in range(10) if book.reply(question(number))]
    assert kept == [9]
    assert [book.state("s", number) for number in (9, 10)] == [b"after 4", b"after 9"]
    assert book.newest("s") == 9


def test_facts_are_kept_with_the_reply_that_makes_them(book):
    book.keep(question(ask="profile"), b"reply", None, profiled="fingerprint")
    assert book.fact("profiled") == "fingerprint"
    book.learn("profiled", None)
    assert book.fact("profiled") is None
    assert book.fact("unknown") is None


def test_a_request_is_noted_once_for_each_outcome(book):
    for outcome in ("answered", "answered", "again", "again", "rejected"):
        book.note(asked(outcome=outcome))
    assert [it.outcome for it in book.asked()] == ["rejected", "again", "answered"]
    assert book.dealt_with("1")
    assert not book.dealt_with("2")
    assert book.totals() == {"outcomes": {"again": 1, "answered": 1, "rejected": 1}, "bytes_in": 30, "bytes_out": 60}


def test_rounds_of_a_day_count_each_round_once_also_those_that_a_killed_agent_only_sent_again(book):
    now = time.time()
    book.note(asked("1", "answered", 1, at=now - DAY))
    book.note(asked("2", "again", 1, at=now))  # trained yesterday, sent once more today
    assert book.trained(now - 60) == 0
    book.note(asked("3", "answered", 2, at=now))
    book.note(asked("4", "again", 2, at=now))
    assert book.trained(now - 60) == 1
    book.note(asked("5", "again", 3, at=now))  # killed between the reply and its note: only this is written
    book.note(asked("6", "refused", 4, at=now))
    book.note(asked("7", "answered", 5, "score", at=now))
    assert book.trained(now - 60) == 2


def test_the_book_is_its_owners_alone(book, tmp_path):
    for path in (tmp_path / "state").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_book_of_a_later_release_or_another_file_is_refused_in_one_line(tmp_path):
    with sqlite3.connect(tmp_path / "later.db") as later:
        later.execute("PRAGMA user_version = 3")
    later.close()
    with pytest.raises(StateError, match=r"expected a site's book up to version 2 .* found version 3"):
        Book(tmp_path / "later.db")
    (tmp_path / "text.db").write_text("a table of patients, as it happens\n" * 100)
    with pytest.raises(StateError, match="expected a file that can be read and written"):
        Book(tmp_path / "text.db")


KILLED = """
import os, sys
from pathlib import Path
from fedrounds.site.book import Book, Question
book = Book(Path(sys.argv[1]))
question = Question("s", 1, 0, "train", "b", "a")
class Half:
    def __conform__(self, protocol):
        os.kill(os.getpid(), 9)  # in the middle of the transaction: the reply is written, the state is not
book.keep(question, b"reply", Half())
"""


def test_an_agent_killed_amid_a_transaction_has_neither_the_reply_nor_its_state(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "book.db")], timeout=60, check=False)
    assert done.returncode == -9
    book = Book(tmp_path / "book.db")
    assert book.reply(question()) is None
    assert book.state("s", 2) is None
    book.close()


# --- the agent that dies --------------------------------------------------------------------------------------------------


class Died(BaseException):
    """As kill -9 leaves it: nothing after this runs."""


@pytest.fixture
def asked_to_train(apart):
    """A study, its open run, and a hospital that is asked to train."""
    study = apart()
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        yield study, run, asking


@pytest.mark.parametrize("instant", ["put", "note"])
def test_a_site_that_dies_before_it_sends_or_before_it_notes_sends_the_same_bytes_and_trains_once(
    asked_to_train, instant
):
    study, run, asking = asked_to_train
    question_ = run.question(asking)
    run.post(question_, asking.sites)
    hospital = study.hospital("north")
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        work = hospital.work
        patch.setattr(hospital, "work", lambda letter: trained.append(work(letter)) or trained[-1])
        patch.setattr(*{"put": (type(hospital.mailbox), "put"), "note": (hospital.book, "note")}[instant], dies)
        with pytest.raises(Died):
            study.agent("north")
    sent = [name for name in study.mail["north"].list() if name.phase == "reply-0"]
    assert len(sent) == (instant == "note")
    hospital = study.hospital("north", anew=True)
    letter = hospital.look()
    assert letter is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hospital, "work", dies)
        answer = hospital.answer(letter)
    assert (answer.outcome, answer.message) == ("again", trained[0].message)
    found = [name for name in study.mail["north"].list() if name.phase == "reply-0"]
    assert len(found) == 1
    assert sent in ([], found)
    assert hospital.look() is None
    assert run.look("north", question_) == trained[0].message


def dies(*_, **__):
    raise Died


def test_another_attempt_of_the_same_question_gets_the_same_message_in_another_envelope(asked_to_train):
    study, run, asking = asked_to_train
    messages = [study.ask(run, asking, ["north"])[0]]
    first = study.question
    envelope = next(study.mail["north"].get(name) for name in study.mail["north"].list() if name.phase == "reply-0")
    messages += study.ask(run, asking, ["north"])
    second = study.question
    again = next(study.mail["north"].get(name) for name in study.mail["north"].list() if name.phase == "reply-0")
    assert messages[0] == messages[1]
    assert envelope != again
    assert second.attempt == first.attempt + 1
    public = identity.public_key(study.keys["north"])
    assert identity.verify(public, second.about("north", "reply"), again) == messages[0]
    assert [it.outcome for it in study.hospital("north").book.asked(2)] == ["again", "answered"]


def test_a_champion_that_changed_between_two_attempts_is_compared_with_and_not_its_predecessor(asked_to_train):
    from dataclasses import replace

    study, run, _ = asked_to_train
    study.visit(run, "train")
    state = run.state
    size = state.theta.size
    messages = []
    for champion in (np.zeros(size), np.full(size, 0.5), np.zeros(size)):
        run.state = replace(state, champion=None)
        asking = run.open("train")
        asked = replace(asking.request, arrays={**asking.request.arrays, "champion": champion})
        messages += study.ask(run, replace(asking, request=asked), ["north"])
    paired = [unpack(message)[1]["paired"].tolist() for message in messages]
    assert paired[0] != paired[1]
    assert paired[0] == paired[2]


def test_an_algorithm_that_keeps_state_goes_on_from_the_last_closed_round(apart):
    study = apart()
    study.hospital("north")

    def counting(site):
        """The site's training, which also counts how often it was trained."""
        hospital = study.hospital(site)
        joined = hospital.joined(study.read.study.digest)
        train = study.plan.algorithms["train"]

        def answer(payload, memory, rows, rng):
            _, sums = train.answer(payload, memory, rows, rng)
            return {"n": memory.get("n", np.zeros(1)) + 1}, sums

        joined.plan.algorithms["train"] = train._replace(answer=answer)
        return study.agent(site)

    def count(number):
        kept = study.hospital("north").book.state(study.read.study.digest, number)
        return None if kept is None else unpack(kept)[1]["n"].tolist()

    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        asking = run.open("train")
        study.ask(run, asking, asking.sites, counting)  # this try is lost
        assert count(1) is None
        study.visit(run, "train", counting)
        assert count(2) == [1.0]
        asking = run.open("train")
        study.ask(run, asking, asking.sites, counting)
        study.hospital("north", anew=True)
        study.visit(run, "train", counting)
        assert count(2) == [1.0]
        assert count(3) == [2.0]


def test_made_up_state_comes_back_bit_for_bit(book):
    state = {"c": np.array([0.1, -3e-300, 1e300]), "n": np.array([2.0])}
    book.keep(question(1), b"reply", pack({}, state))
    header, arrays = unpack(book.state("s", 2))
    assert header == {}
    assert {name: array.tobytes() for name, array in arrays.items()} == {n: a.tobytes() for n, a in state.items()}


def test_names_of_the_mailbox_are_what_a_request_is_known_by(asked_to_train):
    study, run, asking = asked_to_train
    study.ask(run, asking, ["north"])
    name = study.hospital("north").book.asked(1)[0].name
    assert Name.parse(name).phase == "request-0"
    assert os.path.basename(name) == Name.parse(name).digest
