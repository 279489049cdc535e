"""Hospitals as witnesses of their coordinator's log, and the log that each keeps of what it was asked."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrounds.cli import verify_log
from fedrounds.core import identity
from fedrounds.core.errors import LogBroken
from fedrounds.core.privacy import log as logs
from fedrounds.core.privacy import note as notes
from fedrounds.core.privacy import witness
from fedrounds.core.privacy.merkle import Tree, leaf_hash
from fedrounds.core.privacy.note import Checkpoint
from fedrounds.exchange.name import folder
from fedrounds.site.book import Asked, Book
from fedrounds.tasks.audit import export, verify

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PUBLIC = identity.public_key(KEY)
SITE = "north"


def shown(leaves, asked=b"asked", word="x", key=KEY, origin="fedrounds/ab", site=SITE):
    """What a hospital is shown of a log of so many leaves, the last of which is about its question; and the head of each size."""
    signer, tree, heads, previous = logs.Signer(key, origin), Tree(), {}, logs.NOTHING
    for index in range(leaves):
        facts = {"index": index, "previous": previous.hex(), "word": word}
        kind, of = ("asked", {site: sha256(asked).hexdigest()}) if index == leaves - 1 else ("visit", {})
        line = signer.envelope(logs.statement(kind, of, facts))
        previous = leaf_hash(line)
        tree.append(previous)
        heads[index + 1] = Checkpoint(origin, index + 1, tree.root())
    growth = {size: tree.consistency(size) for size in range(1, leaves)}
    return witness.Shown(signer.note(heads[leaves]), leaves - 1, line, tree.inclusion(leaves - 1), growth), heads, tree


def refused(given, seen=None, request=b"asked", site=SITE):
    with pytest.raises(LogBroken) as caught:
        witness.believed(given, PUBLIC, seen, site, request)
    return str(caught.value)


def test_a_log_that_grew_is_believed_from_any_size_and_comes_back_from_its_bytes():
    given, heads, _ = shown(7)
    assert witness.encode(witness.decode(witness.encode(given))) == witness.encode(given)
    for size in range(1, 8):
        seen = heads[size] if size == 7 else None
        assert witness.believed(witness.decode(witness.encode(given)), PUBLIC, seen, SITE, b"asked") == heads[7]
    before = shown(6)[1]
    assert witness.believed(given, PUBLIC, before[5], SITE, b"asked") == heads[7]  # its first five leaves are the same


def test_what_the_logs_key_did_not_sign_is_refused():
    assert "another key" in refused(shown(4, key=OTHER)[0])
    given = shown(4)[0]
    assert "another key" in refused(replace(given, line=shown(4, key=OTHER)[0].line))


def test_a_head_that_does_not_hold_the_very_request_that_came_is_refused():
    given, _, _ = shown(4)
    assert "off the record" in refused(given, request=b"another")
    assert "off the record" in refused(given, site="south")
    assert "does not fit" in refused(replace(given, leaf=2))
    assert "does not fit" in refused(replace(given, line=shown(5)[0].line))  # signed, but not in this log


def test_a_log_that_was_forked_or_shortened_is_refused_whoever_signed_it():
    seen = shown(6)[1][5]
    assert "it was forked" in refused(shown(8, word="other")[0], seen)
    assert "it was forked" in refused(shown(5, word="other")[0], seen)
    assert "it was shortened" in refused(shown(4)[0], seen)
    assert "found none: it is asked for again" in refused(replace(shown(8)[0], growth={}), seen)


def test_a_log_of_another_origin_is_another_lineages():
    seen = shown(6)[1][5]
    given, heads, _ = shown(3, origin="fedrounds/cd")
    assert witness.believed(given, PUBLIC, seen, SITE, b"asked") == heads[3]


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_at_all_are_shown_or_refused(data):
    with pytest.raises(LogBroken):
        witness.decode(data)


# --- hospitals apart --------------------------------------------------------------------------------------------------


@pytest.fixture
def study(apart):
    return apart()


def kept(study, site=SITE):
    return study.hospital(site).witness.kept(study.plan.digest)


def told(study, outcome):
    return [it for it in study.hospital(SITE).book.asked(1000) if it.outcome == outcome]


def test_every_question_is_in_the_log_and_every_hospital_cosigns_what_it_has_seen(study, tmp_path):
    with study.run() as run:
        study.drive(run)
        public = identity.public_key(study.key)
        found = verify(run.ledger, public)
        assert found.visits == run.visit
        asked = [it for it in found.log.statements if logs.kind_of(it) == "asked"]
        assert len(asked) == run.ledger.newest_attempt()
        for it in asked:
            assert [subject["name"] for subject in it["subject"]] == sorted(study.keys)
        last = max(index for index, it in enumerate(found.log.statements) if logs.kind_of(it) == "asked")
        for site, (size, line) in run.ledger.witnesses().items():
            head = notes.read_note(dict(run.ledger.log_heads())[size])[0]
            assert size == last + 1
            assert notes.cosigned(line, site, identity.public_key(study.keys[site]), head) is not None
            assert notes.read_note(kept(study, site)["note"])[0] == head
        assert run.ledger.witnesses().keys() == study.keys.keys()
        export(run.ledger, tmp_path, Path(verify_log.__file__))
        assert verify_log.verify(tmp_path, tmp_path / f"witness-{SITE}").startswith("fedrounds/")
        assert verify(run.ledger, public, [notes.read_note(kept(study)["note"])[0]]).visits == run.visit


def test_a_hospital_that_was_away_or_whose_lines_were_lost_catches_up(study):
    with study.run() as run:
        study.gate(run)
        first = kept(study)["note"]
        study.visit(run, "statistics", lambda site: study.agent(site) if site != SITE else None)
        assert kept(study)["note"] == first
        with run.ledger._database.write() as connection:
            from sqlalchemy import text

            connection.execute(text("DELETE FROM cosignatures"))
        study.visit(run, "train")
        assert kept(study)["note"] != first
        assert not told(study, "refused")


def restored(study, copy):
    for file in Path(study.place.own).glob("ledger.db*"):
        file.unlink()
    shutil.copy(copy, study.place.ledger)


def copied(study, to):
    with closing(sqlite3.connect(study.place.ledger)) as one, closing(sqlite3.connect(to)) as other:
        one.backup(other)
        with other:
            other.execute("DELETE FROM lease")  # as of a runner that has ended
    return to


@pytest.mark.parametrize(("more", "word"), [(0, "it was shortened"), (12, "it was forked")])
def test_a_coordinator_that_takes_back_what_it_wrote_gets_no_answer_and_no_signature(study, tmp_path, more, word):
    with study.run() as run:
        study.gate(run)
        copy = copied(study, tmp_path / "before.db")
        study.visit(run, "statistics")
        study.visit(run, "train")
    seen, answers = kept(study), len(told(study, "answered"))
    restored(study, copy)
    with study.run() as run:
        for number in range(more):
            run.ledger.fail(1, f"made up {number}", float(number))
        study.ask(run, run.gate())
        (receipt,) = [it for it in run.ledger.replies() if it.site == SITE and it.outcome == "declined"]
        assert word in receipt.reason
        assert run.ledger.witnesses()[SITE][0] < notes.read_note(seen["note"])[0].size
    (line,) = told(study, "refused")
    assert word in line.reason
    assert (kept(study), len(told(study, "answered"))) == (seen, answers)


def test_a_coordinator_that_stops_showing_its_log_or_asks_off_the_record_gets_no_answer(study):
    with study.run() as run:
        study.gate(run)
        for shown, word in (
            ({}, "shows none with this question"),
            (None, "asked off the record"),
            (b"x", "found other bytes"),
        ):
            question = run.question(run.open("statistics"))
            if shown is None:  # what is shown is true, and about the question before
                other = replace(question.request, exchange=1)
                question = replace(question, asking=replace(question.asking, request=other))
            else:
                question = replace(question, shown=shown and dict.fromkeys(study.keys, shown))
            run.post(question, [SITE])
            assert study.agent(SITE).outcome == "refused"
            assert word in told(study, "refused")[0].reason


def test_a_coordinator_of_an_earlier_release_which_shows_no_log_is_answered(study):
    with study.run() as run:
        question = replace(run.question(run.gate()), shown={})
        run.post(question, [SITE])
        assert study.agent(SITE).outcome == "answered"
        assert not kept(study)
        assert not study.mail[SITE].list(folder(*question.folder("witness")))


def test_what_is_no_cosignature_is_passed_over(study):
    from fedrounds.exchange.name import Name

    with study.run() as run:
        question = run.question(run.gate())
        run.post(question, [SITE])
        size = run.ledger.log_heads()[-1][0]
        head = notes.read_note(run.ledger.log_heads()[-1][1])[0]
        forged = notes.cosign(OTHER, SITE, head, 1)
        for data in (
            b"x",
            b"{}",
            b'{"size": 10000000, "line": ""}',
            b'{"size": 1000000000000000000000000000000000000000, "line": ""}',
            f'{{"size": {size}, "line": "{forged}"}}'.encode(),
        ):
            study.mail[SITE].put(Name.of(data, *question.folder("witness")), data)
        study.agent(SITE)
        assert run.look(SITE, question)
        line = run.ledger.witnesses()[SITE][1]
        assert notes.cosigned(line, SITE, identity.public_key(study.keys[SITE]), head) is not None


# --- what a hospital was asked ----------------------------------------------------------------------------------------


def line(name):
    return Asked(1.5, name, "s", 1, "train", "answered", "", 10, 20, 0.25)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "book.db"
    with closing(Book(file)) as book:
        for name in "abcd":
            book.note(line(name))
            book.note(line(name))
    return file


def spoilt(file, *statements):
    with closing(sqlite3.connect(file)) as db, db:
        for statement in statements:
            db.execute(statement)


def test_requests_are_chained_as_they_come(file):
    with closing(Book(file)) as book:
        book.unbroken()
        lines, head = book.head()
        book.note(line("e"))
        assert (lines, book.head()[0]) == (4, 5)
        assert book.head()[1] != head
        book.unbroken()


@pytest.mark.parametrize(
    ("change", "word"),
    {
        "UPDATE asked SET bytes_out = 0 WHERE number = 2": "request 2 ",
        "UPDATE asked SET at = 9 WHERE number = 1": "request 1 ",
        "DELETE FROM asked WHERE number = 3": "request 4 ",
        "DELETE FROM asked WHERE number = 4": "request 4 .* found none: it was removed",
        "DELETE FROM chain WHERE number = 2": "request 2 ",
        "INSERT INTO asked SELECT 5, at, 'x', study, round, ask, outcome, reason, 0, 0, 0 FROM asked WHERE number = 1": "request 5 ",
    }.items(),
)
def test_a_request_that_was_changed_removed_or_put_in_is_found_and_named(file, change, word):
    spoilt(file, change)
    with closing(Book(file)) as book, pytest.raises(LogBroken, match=word):
        book.unbroken()


def test_a_book_of_version_1_is_chained_where_it_stands(file):
    with closing(Book(file)) as book:
        head = book.head()
    spoilt(file, "DROP TABLE chain", "PRAGMA user_version = 1")
    with closing(Book(file)) as book:
        assert book.head() == head
        book.unbroken()
