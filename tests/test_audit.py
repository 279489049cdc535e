"""The audit log of a ledger and of a study: what is done is in it, and whatever is changed afterwards is found and named."""

from __future__ import annotations

import base64
import json
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from fedrounds.cli import verify_log
from fedrounds.cli.main import main
from fedrounds.core import asking as askings
from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.identity import public_key
from fedrounds.core.messages import Request
from fedrounds.core.operations import Operations
from fedrounds.core.privacy.log import digest_of, examine, kind_of
from fedrounds.core.privacy.note import checkpoint_of
from fedrounds.core.round import Asking
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Decision, Ledger, Verdict, Visit
from fedrounds.tasks.audit import key_of, signing_key, verify
from fedrounds.tasks.folder import State

STUDY = Study.model_validate(
    {
        "name": "toy",
        "target": {"kind": "binary", "column": "y", "positive_above": 0},
        "features": [{"type": "number", "name": "age"}],
        "model": {"kind": "logistic"},
        "algorithm": "fedavg",
    }
)
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def at(number):
    return RunState(STUDY.digest, number, 0, np.full(3, number / 3), {}, {})


def visit(number, ask="train", **more):
    return Visit(number, ask, at(number - 1).model_digest, at(number), {"loss": 1 / number}, "suite", 1, 100.0, **more)


def begun(address, key=KEY):
    ledger = Ledger.open(address, key)
    ledger.begin(STUDY)
    ledger.note_operations(Operations(rounds=3), 1)
    return ledger


@pytest.fixture
def ledger(ledger_at):
    with begun(ledger_at) as ledger:
        yield ledger


def asked(round):
    state = at(round - 1)
    return askings.dump(Asking(state, Request(STUDY.digest, round, 0, "train", state.model_digest, {}), ("north",), 1))


def said(ledger):
    """The log's statements, verified: kind and facts."""
    lines, note = ledger.log()
    return [(kind_of(it), it["predicate"]) for it in examine(lines, note, public_key(KEY)).statements]


def filled(ledger):
    """A ledger with something of each kind."""
    ledger.acquire()
    ledger.fail(1, "too few", 99.0)
    ledger.commit(0, visit(1, verdicts={"north": Verdict(True, {"n": 1})}))
    ledger.commit(1, visit(2, ask="score", promotions=[Decision(1, True, "better", at(1).model_digest)]))
    ledger.act("rollback", 1, "it was wrong", "ada")
    ledger.open_attempt(2, asked(3), 5000.5, {"north": "ab" * 32})
    ledger.drop_attempt()
    ledger.open_attempt(2, asked(3), 5000.0)
    ledger.commit(2, visit(3))


def test_all_that_is_done_is_in_the_log_in_its_order_and_holds_digests_alone(ledger):
    filled(ledger)
    kinds, facts = zip(*said(ledger), strict=True)
    assert kinds == (
        "begun", "failure", "visit", "visit", "decision", "act", "asked", "dropped", "asked", "visit",
    )  # fmt: skip
    assert facts[1]["reason"] == digest_of("too few")
    assert facts[2]["model"] == at(1).model_digest
    assert facts[2]["base"] == at(0).model_digest
    assert facts[2]["verdicts"] == {"north": digest_of({"n": 1})}
    assert facts[2]["record"] == digest_of({"loss": 1.0})
    assert (facts[4]["round"], facts[4]["promoted"]) == (1, True)
    assert (facts[5]["act"], facts[5]["by"]) == ("rollback", "ada")
    assert (facts[6]["attempt"], facts[6]["deadline"], facts[9]["attempt"]) == (1, 5_000_500, 2)
    assert b"better" not in b"".join(base64.b64decode(json.loads(line)["payload"]) for line in ledger.log()[0])
    assert verify(ledger, public_key(KEY)).visits == 3


def test_a_question_is_in_the_log_with_the_digest_of_each_request(ledger):
    ledger.open_attempt(0, asked(1), 5000.0, {"north": "ab" * 32, "south": "cd" * 32})
    lines, note = ledger.log()
    (*_, leaf) = examine(lines, note, public_key(KEY)).statements
    assert leaf["subject"] == [
        {"name": "north", "digest": {"sha256": "ab" * 32}},
        {"name": "south", "digest": {"sha256": "cd" * 32}},
    ]


def test_what_is_refused_or_told_twice_adds_nothing_to_the_log(ledger):
    ledger.fail(1, "too few", 99.0)
    ledger.fail(1, "too few", 99.0)
    ledger.commit(0, visit(1))
    with pytest.raises(StateError, match="another runner"):
        ledger.commit(0, visit(1))
    first = ledger.open_attempt(1, asked(2), 5000.0)
    assert ledger.open_attempt(1, asked(2), 5000.0) == first
    assert [kind for kind, _ in said(ledger)] == ["begun", "failure", "visit", "asked"]


def test_each_head_is_signed_and_grows_out_of_the_one_before(ledger):
    filled(ledger)
    lines, note = ledger.log()
    heads = [checkpoint_of(note, public_key(KEY)) for _, note in ledger.log_heads()]
    assert [head.size for head in heads] == [2, 3, 5, 6, 7, 8, 9, 10]
    assert examine(lines, note, public_key(KEY), heads).tree.root() == heads[-1].root == ledger.log_tree().root()
    assert ledger.logged("visit", 1) == (2, ledger.log_heads()[1][1])
    assert ledger.logged("visit", 9) is None


def test_another_key_or_none_does_not_go_on_with_a_log_that_was_begun(ledger_at, ledger):
    ledger.commit(0, visit(1))
    for key, word in ((None, "found none"), (OTHER, "found another")):
        with Ledger.open(ledger_at, key) as other, pytest.raises(StateError, match=word):
            other.commit(1, visit(2))
    assert (len(ledger.visits()), len(ledger.log()[0])) == (1, 2)
    assert ledger.commit(1, visit(2)) == 2


def test_a_ledger_of_version_3_begins_its_log_with_what_comes_next(ledger_at):
    with begun(ledger_at, None) as ledger:
        ledger.commit(0, visit(1))
        ledger.fail(2, "too few", 99.0)
        with ledger._database.write() as connection:
            for table in ("cosignatures", "heads", "log"):
                connection.execute(text(f"DROP TABLE {table}"))
            connection.execute(text("UPDATE fedrounds_ledger SET version = 3"))
    with Ledger.open(ledger_at, KEY) as ledger:
        with pytest.raises(StateError, match="none yet"):
            verify(ledger)
        ledger.commit(1, visit(2))
        (_, first), (kind, _) = said(ledger)
        assert (first["visits_before"], first["failures_before"], first["acts_before"], kind) == (1, 1, 0, "visit")
        assert verify(ledger).visits == 1


COMMIT_FOR_EVER = """
import sys, test_audit as t
ledger = t.Ledger.open(sys.argv[1], t.KEY)
head = ledger.head()
number = head.visit if head else 0
while True:
    number += 1
    print(ledger.commit(number - 1, t.visit(number)), flush=True)
"""


def test_kill_9_at_any_instant_leaves_a_whole_log_with_a_leaf_a_visit(ledger_at, ledger):
    instants = random.Random(7)
    for _ in range(4):
        command = [sys.executable, "-c", COMMIT_FOR_EVER, str(ledger_at)]
        runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
        runner.stdout.readline()
        time.sleep(instants.uniform(0, 0.1))
        runner.kill()
        runner.communicate()
        found = verify(ledger, public_key(KEY))
        assert found.visits == ledger.head().visit == found.log.checkpoint.size - 1


CHANGES = {
    "UPDATE visits SET model = 'x' WHERE visit = 1": "'model' of visit 1 as leaf 2 of the log says",
    "UPDATE visits SET state = (SELECT state FROM visits WHERE visit = 3) WHERE visit = 2": "'state' of visit 2 as leaf 3",
    "UPDATE visits SET record = '{\"loss\": 2}' WHERE visit = 2": "'record' of visit 2 as leaf 3",
    "UPDATE verdicts SET verdict = '{\"n\": 2}'": "'verdicts' of visit 1 as leaf 2",
    "UPDATE promotions SET reason = 'worse'": "'reason' of the decision of visit 2 as leaf 4",
    "UPDATE acts SET \"by\" = 'eve'": "'by' of act 1 as leaf 5",
    "DELETE FROM failures": "the failure of visit 1 in the ledger, as leaf 1",
    "INSERT INTO failures VALUES (9, 1, 9, 'train', 'x', 1, 2)": "a leaf of the log about the failure of visit 9",
    "DELETE FROM log WHERE leaf = 4": "expected leaf 4 there, found leaf 5: leaf 4 was dropped",
    "DELETE FROM log WHERE leaf = 9": "found 9: the end of the log was dropped",
    "UPDATE log SET line = (SELECT line FROM log WHERE leaf = 3) WHERE leaf = 2": "expected leaf 2 there, found leaf 3",
    "UPDATE heads SET note = replace(note, 'fedrounds/', 'fedrounds-')": "checkpoint",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_to_the_ledger_or_its_log_is_found_and_named(ledger, change):
    filled(ledger)
    with ledger._database.write() as connection:
        connection.execute(text(change.replace(":", r"\:")))
    with pytest.raises(LogBroken) as caught:
        verify(ledger, public_key(KEY))
    assert CHANGES[change] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_key_is_made_once_for_its_owner_alone_and_another_reader_is_refused(tmp_path):
    place = State(tmp_path, tmp_path / "toy")
    key = signing_key(place)
    assert signing_key(place) == key
    assert stat.S_IMODE(place.log_key.stat().st_mode) == 0o600
    assert [file.name for file in place.own.iterdir()] == ["log.key"]
    place.log_key.chmod(0o644)
    with pytest.raises(StateError, match="chmod 600"):
        signing_key(place)


# --- a study ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kit(toy_study, tmp_path_factory):
    """The log of the toy study, exported."""
    folder = tmp_path_factory.mktemp("kit")
    assert main(["verify", str(toy_study.folder), "--export", str(folder)]) == 0
    return folder


def copied(kit, tmp_path):
    return Path(shutil.copytree(kit, tmp_path / "copy"))


def alone(folder, *more):
    """The verifier as somebody without Fedrounds runs it."""
    command = [sys.executable, "-I", "-S", folder / "verify_log.py", folder, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_study_and_its_exported_log_verify_by_either_program(toy_study, kit, capsys):
    assert main(["verify", str(toy_study.folder)]) == 0
    assert "9 leaves as they were signed, and 5 visits of the ledger as they say" in capsys.readouterr().out
    assert main(["verify", "--log", str(kit / "log.jsonl"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["leaves"] == 9
    found = alone(kit)
    assert (found.returncode, found.stderr) == (0, "")
    assert document["root"] in found.stdout
    assert document["key"] in found.stdout


def test_openssl_verifies_the_checkpoint_and_a_leaf(kit, tmp_path):
    body, _, rest = (kit / "checkpoint").read_text().partition("\n\n")
    envelope = json.loads((kit / "log.jsonl").read_bytes().splitlines()[2])
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    for words, signature in (
        (f"{body}\n".encode(), base64.b64decode(rest.split()[2])[4:]),
        (signed, base64.b64decode(envelope["signatures"][0]["sig"])),
    ):
        (tmp_path / "words").write_bytes(words)
        (tmp_path / "signature").write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", kit / "public.pem", "-rawin", "-in", "words"]
        command += ["-sigfile", "signature"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
        (tmp_path / "words").write_bytes(words[:-1] + b"x")
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("file", ["log.jsonl", "checkpoint", "public.pem"])
def test_a_flipped_byte_of_an_exported_file_is_found_by_either_program_in_one_line(kit, tmp_path, capsys, file):
    folder = copied(kit, tmp_path)
    whole = (folder / file).read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 40)) if file == "log.jsonl" else range(len(whole))
    for at_byte in [*places, len(whole) - 1]:
        (folder / file).write_bytes(whole[:at_byte] + bytes([whole[at_byte] ^ 1]) + whole[at_byte + 1 :])
        assert main(["verify", "--log", str(folder / "log.jsonl")]) == LogBroken.exit_code
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        with pytest.raises(verify_log.Broken) as caught:
            verify_log.verify(folder)
        if file == "log.jsonl":
            leaf = whole[:at_byte].count(b"\n")
            assert f"leaf {leaf} " in line
            assert f"leaf {leaf}:" in str(caught.value) or "no end" in str(caught.value)


def test_a_dropped_moved_or_forked_leaf_is_named_by_the_script_too(kit, tmp_path):
    folder = copied(kit, tmp_path)
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    for changed, word in (
        ([*lines[:3], *lines[4:]], "leaf 3: it says that it is leaf 4"),
        ([*lines[:3], lines[4], lines[3], *lines[5:]], "leaf 3: it says that it is leaf 4"),
        (lines[:-1], "the checkpoint is of 9 leaves, log.jsonl has 8: its end was dropped"),
    ):
        (folder / "log.jsonl").write_bytes(b"".join(changed))
        found = alone(folder)
        assert (found.returncode, found.stderr.count("\n")) == (1, 1)
        assert word in found.stderr


def test_a_history_that_the_coordinator_wrote_anew_is_found_by_whoever_kept_a_checkpoint(tmp_path, capsys):
    logs = []
    for number, ask in enumerate(("train", "score")):
        place = tmp_path / f"{number}.db"
        with begun(place) as ledger:
            with ledger._database.write() as connection:
                connection.execute(text("UPDATE study SET lineage = 'abcd'"))
            ledger.commit(0, visit(1, ask=ask))
            ledger.commit(1, visit(2))
            logs.append((ledger, ledger.log(), ledger.log_heads()[0][1]))
            if number:
                assert verify(ledger).visits == 2  # by itself nothing is wrong with it
                kept = checkpoint_of(logs[0][2], public_key(KEY))
                with pytest.raises(LogBroken, match="seen at 2 leaves, found another: it was forked before leaf 2"):
                    verify(ledger, seen=[kept])
                assert key_of(ledger.log()[0]) == public_key(KEY)


def test_a_registered_version_and_the_model_card_say_where_in_the_log_they_are(toy_study):
    with Ledger.open(toy_study.state / "ledger.db") as ledger:
        index, note = ledger.logged("visit", ledger.closed(3))
    with closing(sqlite3.connect(toy_study.state.parent / "mlflow.db")) as store:
        rows = store.execute("SELECT version, key, value FROM model_version_tags WHERE key LIKE 'fedrounds.log%'")
        tags = {(version, key): value for version, key, value in rows}
    assert (tags[3, "fedrounds.log_index"], tags[3, "fedrounds.log_checkpoint"]) == (str(index), note)
    (card, *_) = (
        file for file in toy_study.state.parent.rglob("model_card.md") if f"leaf {index} under" in file.read_text()
    )
    assert note.split("\n")[2] in card.read_text()


def test_verify_says_what_it_wants_in_one_line(toy_study, new_study, tmp_path, capfd):
    for words, code in (
        (["verify"], 10),
        (["verify", str(new_study)], 15),
        (["verify", "--log", str(tmp_path / "none")], 15),
        (["verify", str(toy_study.folder), "--seen", str(tmp_path / "none")], 15),
    ):
        assert main(words) == code
        assert capfd.readouterr().err.count("\n") == 1
