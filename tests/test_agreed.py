"""The rosters in the audit log: who agreed on whose keys can be told from the log alone, and a roster that was swapped is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedrounds.cli import verify_log
from fedrounds.cli.main import main
from fedrounds.core import identity
from fedrounds.core.errors import LogBroken, QuorumError
from fedrounds.core.groups import deal
from fedrounds.core.identity import new_key, public_key
from fedrounds.core.privacy import agreed, merkle
from fedrounds.core.privacy.epoch import roster_digest
from fedrounds.core.privacy.log import NOTHING, Signer, examine, kind_of, statement
from fedrounds.core.privacy.note import Checkpoint, pem_of
from fedrounds.ledger.audit import lines_of
from fedrounds.tasks import audit
from fedrounds.tasks.hospital import OTHER_ROSTER

MASKED = '{ kind = "masked" }'
CKKS = '{ kind = "ckks", key_holder = "north" }'
KEY = bytes(range(32))
NAMES = ("east", "north", "south", "west")
KEYS = {name: new_key() for name in NAMES}
OTHERS = {name: new_key() for name in NAMES}
STUDY = "ab" * 32


@pytest.mark.parametrize("sums", [MASKED, CKKS])
def test_the_log_of_hospitals_apart_holds_their_roster_once_with_their_signatures_and_each_question_names_it(
    apart, tmp_path, sums
):
    study = apart(masked=sums)
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        run.roll()  # keys are made anew
        study.visit(run, "train")
        found = audit.verify(run.ledger, identity.public_key(study.key))
        audit.export(run.ledger, tmp_path / "kit", Path(verify_log.__file__))
    digest = roster_digest(study.roster).hex()
    assert list(found.rosters) == [digest]
    kinds = [kind_of(said) for said in found.log.statements]
    assert kinds.count("roster") == 1
    (leaf,) = (said for said in found.log.statements if kind_of(said) == "roster")
    assert leaf["subject"] == [{"name": "roster", "digest": {"sha256": digest}}]
    assert leaf["predicate"]["keys"] == {site: key.hex() for site, key in study.roster.items()}
    assert sorted(leaf["predicate"]["signed"]) == sorted(study.roster)
    questions = [said["predicate"] for said in found.log.statements if kind_of(said) == "asked"]
    assert {tuple(it.get("rosters", ())) for it in questions if it["ask"] != "gate"} == {(digest,)}
    assert [it.get("rosters") for it in questions if it["ask"] == "gate"] == [None]
    assert sum(it["ask"] == "shares" for it in questions) == 2
    assert "as signed" in verify_log.verify(tmp_path / "kit")


def test_under_masks_by_groups_each_group_has_a_leaf_of_its_own(apart):
    sites = tuple(f"s{number}" for number in range(9))
    study = apart(
        masked='{ kind = "masked", groups = 3 }',
        sites=sites,
        protocol={
            'weights = "patients" ': 'weights = "uniform" ',
            "server = { rate = 1.0 } ": 'combine = { kind = "median" }\nserver = { rate = 1.0 } ',
        },
    )
    with study.run() as run:
        study.gate(run)
        study.visit(run, "statistics")
        found = audit.verify(run.ledger, identity.public_key(study.key))
    groups = [{one: study.roster[one] for one in members} for members in deal(sites, 3, study.plan.digest)]
    assert sorted(found.rosters) == sorted(roster_digest(group).hex() for group in groups)


def test_a_hospital_answers_nothing_that_the_log_says_was_asked_under_another_roster(apart, monkeypatch):
    study = apart(masked=MASKED)
    other = agreed.Agreed("masked", 1, {name: public_key(key) for name, key in OTHERS.items()})
    monkeypatch.setattr("fedrounds.tasks.correspondence.rosters_of", lambda _: [other])
    with study.run() as run:
        study.gate(run)
        with pytest.raises(QuorumError):
            study.visit(run, "statistics")
        assert {it.reason for it in study.replies("declined")} == {OTHER_ROSTER}


def of(keys, sums="masked", number=7, study=STUDY, signers=NAMES):
    """A roster with signatures as its members make them."""
    roster = {name: public_key(key) for name, key in keys.items()}
    made = {name: bytes([at]) * 32 for at, name in enumerate(signers)}
    head = f"{agreed.WORDS[sums]}\0{study}\0{number}\0"
    signed = {
        name: (its, identity.seal(keys[name], f"{head}{name}\0".encode() + its + roster_digest(roster)))
        for name, its in made.items()
    }
    return agreed.Agreed(sums, number, roster, signed)


def begun(**more):
    return "begun", {"study": "toy", "digest": STUDY, "key": public_key(KEY).hex(), **more}


def leaf(one, **changed):
    return "roster", {**one.facts, **changed}


def question(ask, *rosters):
    return "asked", {"ask": ask} | ({"rosters": [one.digest for one in rosters]} if rosters else {})


def log_of(said, folder):
    """A log of these statements, signed by its key and written to a folder; gives what is examined."""
    signer, tree, lines, before = Signer(KEY, "fedrounds/x"), merkle.Tree(), [], NOTHING
    for index, (kind, facts) in enumerate(said):
        line = signer.envelope(statement(kind, {}, {**facts, "index": index, "previous": before.hex()}))
        before = merkle.leaf_hash(line)
        tree.append(before)
        lines.append(line)
    note = signer.note(Checkpoint(signer.origin, len(lines), tree.root()))
    folder.mkdir()
    (folder / "log.jsonl").write_bytes(lines_of(lines))
    (folder / "checkpoint").write_text(note)
    (folder / "public.pem").write_text(pem_of(signer.public))
    return examine(lines, note, signer.public)


GOOD, SWAPPED = of(KEYS), of(OTHERS)
FEW = of(KEYS, signers=NAMES[:2])
ABSENT = question("train", SWAPPED)
BROKEN = {
    "a question under a roster that no leaf holds": ([begun(), leaf(GOOD), ABSENT], 2, "no leaf before"),
    "a question before its roster": ([begun(), question("shares", GOOD), leaf(GOOD)], 1, "no leaf before"),
    "the keys of another roster": ([begun(), leaf(GOOD, keys=SWAPPED.facts["keys"])], 1, None),
    "the digest of another roster": ([begun(), leaf(GOOD, digest=SWAPPED.digest)], 1, "swapped"),
    "signatures of too few": ([begun(), leaf(FEW)], 1, "signed by 3 of its 4"),
    "signatures for another study": ([begun(), leaf(of(KEYS, study="cd" * 32))], 1, "signed by 3 of its 4"),
    "signatures for another epoch": ([begun(), leaf(GOOD, epoch=8)], 1, "signed by 3 of its 4"),
    "signatures for sums of another kind": ([begun(), leaf(GOOD, sums="ckks")], 1, "signed by 3 of its 4"),
    "signatures of others": ([begun(), leaf(GOOD, signed=SWAPPED.facts["signed"])], 1, "signed by 3 of its 4"),
    "no signatures": ([begun(), leaf(GOOD, signed={})], 1, "signed by 3 of its 4"),
    "what is no roster": ([begun(), ("roster", {"keys": 3})], 1, "roster"),
    "a step under no roster": ([begun(), question("open")], 1, "names? no"),
    "a question under no roster, where sums are hidden": ([begun(sums="masked"), question("train")], 1, "roster"),
    "a question under no roster, after one": ([begun(), leaf(GOOD), question("train")], 2, "roster"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_roster_that_was_swapped_or_not_agreed_on_is_named_by_either_program(what, tmp_path, capsys):
    said, index, word = BROKEN[what]
    found = log_of(said, tmp_path / "kit")
    with pytest.raises(LogBroken, match=f"^leaf {index} of the log: "):
        agreed.require(found.statements)
    assert main(["verify", "--log", str(tmp_path / "kit" / "log.jsonl")]) == LogBroken.exit_code
    assert f"leaf {index} of the log: " in capsys.readouterr().err
    with pytest.raises(verify_log.Broken, match=f"^leaf {index}: .*{word or ''}"):
        verify_log.verify(tmp_path / "kit")


def test_rosters_that_members_signed_are_held_and_a_new_one_takes_the_place_of_the_old(tmp_path, capsys):
    said = [
        begun(sums="masked"),
        question("gate"),
        question("keys", GOOD),
        leaf(GOOD),
        question("shares", GOOD),
        question("train", GOOD),
        question("keys", SWAPPED),  # agreed on since
        leaf(SWAPPED),
        question("train", SWAPPED),
        leaf(of(KEYS, "ckks", signers=NAMES[1:])),
    ]
    found = log_of(said, tmp_path / "kit")
    assert agreed.require(found.statements) == [GOOD.digest, SWAPPED.digest, GOOD.digest]
    assert main(["verify", "--log", str(tmp_path / "kit" / "log.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rosters"][0] == identity.spoken(bytes.fromhex(GOOD.digest))
    assert "10 leaves as signed" in verify_log.verify(tmp_path / "kit")


def test_a_log_without_hidden_sums_needs_no_roster(tmp_path):
    found = log_of([begun(), question("gate"), question("train")], tmp_path / "kit")
    assert agreed.require(found.statements) == []
    assert "3 leaves as signed" in verify_log.verify(tmp_path / "kit")
