"""The audit log of a study: who signs it, what MLflow is told of it, and whether all of it, and all that it is about, is as it was signed."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.identity import new_key, public_key
from fedrounds.core.privacy import agreed
from fedrounds.core.privacy.log import Log, examine, kind_of
from fedrounds.core.privacy.note import Checkpoint, pem_of, public_from_pem, read_note
from fedrounds.ledger import audit

if TYPE_CHECKING:
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.folder import State

LINES, CHECKPOINT, PUBLIC = "log.jsonl", "checkpoint", "public.pem"
SCRIPT = "verify_log.py"
NONE = StateError("expected an audit log in the study's ledger, found none yet: the next round begins it")


def signing_key(place: State) -> bytes:
    """The key that signs a study's audit log; made on the first call, in a file that its owner alone reads.

    A coordinator signs with the key that its hospitals know it by.

    Raises:
        StateError: the file cannot be written or read, or others may read it.
    """
    from fedrounds.tasks.mailboxes import read_key

    file = place.log_key
    if place.signing is None and not file.exists():
        _make(file)
    return read_key(file)


def known_key(place: State) -> bytes | None:
    """The public half of the key that a study's log is signed with, None where the key's file is not here."""
    from fedrounds.tasks.mailboxes import read_key

    return public_key(read_key(place.log_key)) if place.log_key.exists() else None


def _make(file: Path) -> None:
    """A new key, whole or not at all; of two that make one at once, the first one's stays."""
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(new_key().hex() + "\n")
            out.flush()
            os.fsync(out.fileno())
        with suppress(FileExistsError):
            os.link(scratch, file)
    except OSError as error:
        raise StateError(
            f"expected to write the key of the audit log to {file}, found: {error.strerror}: check the folder's rights and free space"
        ) from None
    finally:
        scratch.unlink(missing_ok=True)


def log_tags(ledger: Ledger, visit: int) -> dict[str, str]:
    """What a registered version says of the log: where its visit is, under which head. Empty for what came before the log."""
    found = ledger.logged("visit", visit)
    return {"fedrounds.log_index": str(found[0]), "fedrounds.log_checkpoint": found[1]} if found else {}


# --- files ------------------------------------------------------------------------------------------------------------


def export(ledger: Ledger, folder: Path, script: Path) -> list[str]:
    """Write the log, its head, its public key, the verifier, `script`, and the last head that each witness cosigned; returns the files' names.

    Raises:
        StateError: there is no log yet, or the folder cannot be written.
    """
    lines, note = ledger.log()
    if not lines:
        raise NONE
    key, heads = key_of(lines), dict(ledger.log_heads())
    files = {
        LINES: audit.lines_of(lines),
        CHECKPOINT: note.encode(),
        PUBLIC: pem_of(key).encode(),
        SCRIPT: script.read_bytes(),
        **{f"witness-{name}": f"{heads[size]}{line}\n".encode() for name, (size, line) in ledger.witnesses().items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            scratch = folder / f".{name}.new"
            scratch.write_bytes(data)
            scratch.replace(folder / name)
    except OSError as error:
        raise StateError(
            f"expected to write the log to {folder}, found: {error.strerror}: choose another folder with --export"
        ) from None
    return list(files)


def verify_file(file: Path, seen: Sequence[Checkpoint] = ()) -> Verified:
    """Hold an exported log against the checkpoint and the public key beside it.

    Raises:
        LogBroken: the first thing that is not as it was signed.
        StateError: a file is missing.
    """
    data, note, pem = (_read(place) for place in (file, file.with_name(CHECKPOINT), file.with_name(PUBLIC)))
    try:
        key = public_from_pem(pem.decode("latin-1"))
    except StateError as error:
        raise LogBroken(f"{file.with_name(PUBLIC).name}: {error}") from None
    *lines, rest = data.split(b"\n")
    if rest:
        lines.append(rest)  # a line without its end is none, and `examine` says which
    log = examine(lines, note.decode("utf-8", "replace"), key, seen)
    rosters = agreed.require(log.statements)
    if rest:
        raise LogBroken(f"leaf {len(lines) - 1} of the log: its line has no end: it was cut short")
    return Verified(log, 0, key, rosters)


def checkpoint_in(file: Path) -> Checkpoint:
    """A checkpoint that somebody kept. Raises LogBroken if it is none, StateError if it cannot be read."""
    return read_note(_read(file).decode("utf-8", "replace"))[0]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StateError(
            f"expected an exported log's file at {file}, found: {error.strerror}: `fedrounds verify DIR --export FOLDER` writes it"
        ) from None


# --- is it as it was signed? ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """A log that adds up. `visits` of the ledger were held against it, 0 where there was no ledger."""

    log: Log
    visits: int
    key: bytes
    rosters: Sequence[str] = ()  # digests, hex, of those that questions were asked under


def key_of(lines: Sequence[bytes]) -> bytes:
    """The public key that a log says is its own, in its first leaf; whether it is the right one, a person has to know."""
    try:
        first = json.loads(base64.b64decode(json.loads(lines[0])["payload"]))
        return bytes.fromhex(first["predicate"]["key"])
    except (LookupError, ValueError, TypeError):
        raise LogBroken("leaf 0 of the log: it cannot be read: a byte was changed, or it was cut short") from None


def verify(ledger: Ledger, public: bytes | None = None, seen: Sequence[Checkpoint] = ()) -> Verified:
    """Hold a study's log against itself, and its ledger against the log.

    Args:
        public: the key that is known to be the log's; by default the one that its first leaf names.
        seen: checkpoints that were kept from earlier.

    Raises:
        LogBroken: the first thing that is not as it was signed.
        StateError: there is no log yet.
    """
    lines, note = ledger.log()
    if not note and not lines:
        raise NONE
    try:
        key = public or key_of(lines)
        heads = dict(ledger.log_heads())
        witnessed = [read_note(heads[size])[0] for size, _ in ledger.witnesses().values()]
        found = examine(lines, note, key, [*seen, *witnessed])
        rosters = agreed.require(found.statements)
        return Verified(found, _held_against(ledger, found), key, rosters)
    except LogBroken:
        if ledger.checkpoint() == note:
            raise
    return verify(ledger, public, seen)  # a run went on meanwhile


def _held_against(ledger: Ledger, log: Log) -> int:
    """How many visits of the ledger are what the log says. Raises LogBroken at the first row that is not."""
    begun = log.statements[0]["predicate"]
    lineage, study = ledger.lineage(), ledger.study()
    if lineage is None or (lineage.lineage, lineage.digest) != (begun["lineage"], begun["digest"]):
        raise LogBroken("expected the ledger of the study that the log began with, found another study's")
    if study.digest != begun["digest"]:
        raise LogBroken("expected the protocol that the log began with in the ledger, found another: it was changed")
    wanted = dict[tuple[str, int, int], audit.Leaf]()
    for leaf, more in _rows(ledger, begun):
        wanted[leaf.kind, leaf.about, more] = leaf
    for index, said in enumerate(log.statements):
        kind, facts = kind_of(said), said["predicate"]
        about = facts.get("number" if kind == "act" else "visit", 0)
        more = facts["round"] if kind == "decision" else facts["attempt"] if kind == "failure" else 0
        if kind not in ("visit", "decision", "act", "failure"):
            continue
        leaf, name = wanted.pop((kind, about, more), None), _name(kind, about)
        if leaf is None:
            raise LogBroken(
                f"expected {name} in the ledger, as leaf {index} of the log says, found none: it was removed"
            )
        for word, value in leaf.facts.items():
            if facts.get(word) != value:
                raise LogBroken(
                    f"expected '{word}' of {name} as leaf {index} of the log says, found another in the ledger: it was changed"
                )
    for kind, about, _ in wanted:
        raise LogBroken(
            f"expected a leaf of the log about {_name(kind, about)}, which is in the ledger, found none: it was put in"
        )
    return len(ledger.visits(after=begun["visits_before"]))


def _rows(ledger: Ledger, begun: Mapping[str, Any]) -> Iterator[tuple[audit.Leaf, int]]:
    """What the log should say of the ledger's rows, and what tells two about one thing apart."""
    closed = {it.visit: it.number for it in ledger.attempts() if it.outcome == "committed"}
    given, states = ledger.given_verdicts(), ledger.state_digests()
    for entry in ledger.visits(after=begun["visits_before"]):
        row = {name: getattr(entry, name) for name in entry.__dataclass_fields__} | {"checksum": states[entry.visit]}
        yield audit.of_visit(row, given.get(entry.visit, {}), closed.get(entry.visit, 0)), 0
    for decision in ledger.promotions():
        if decision.visit > begun["visits_before"]:
            yield audit.of_decision(decision.visit, decision), decision.round
    for act in ledger.acts():
        if act.number > begun["acts_before"]:
            yield audit.of_act(act), 0
    for failure in ledger.failures()[begun["failures_before"] :]:  # in the order that they came in
        row = {name: getattr(failure, name) for name in failure.__dataclass_fields__}
        yield audit.of_failure(row), failure.attempt


def _name(kind: str, about: int) -> str:
    return {"visit": f"visit {about}", "act": f"act {about}"}.get(kind, f"the {kind} of visit {about}")
