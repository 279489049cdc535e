"""The audit log: signed statements of what a study did, under one signed hash that can only grow.

A leaf is one line: a DSSE envelope around an in-toto Statement v1, as canonical JSON. Its predicate says `index`, its place, and
`previous`, the hash of the leaf before it, so that of a log that does not add up one can say where. The head is a signed checkpoint (`note`).
Names, digests and counts alone go into a statement: nothing of a patient, no metric of a site.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrounds.core import identity
from fedrounds.core.errors import LogBroken
from fedrounds.core.privacy import merkle
from fedrounds.core.privacy.note import DASH, NOTE, Checkpoint, b64, checkpoint_of, cosigned, key_id, read_note, unb64

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:fedrounds:{}:v1"
NOTHING = bytes(merkle.HASH)  # what is previous to the first leaf


def canonical(value: Any) -> bytes:
    """JSON in the one form that is hashed and signed: sorted keys, no spaces, UTF-8. Raises ValueError on NaN and infinity.

    >>> canonical({"b": [1, None], "a": "é"}).decode()
    '{"a":"é","b":[1,null]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, hex: what stands in the log for what must not."""
    return sha256(
        canonical(json.loads(json.dumps(value)))
    ).hexdigest()  # as a database gives it back: lists, texts as keys


def statement(kind: str, subjects: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """An in-toto Statement v1.

    Args:
        kind: visit, decision, act, failure, asked or begun.
        subjects: name -> SHA-256, hex, of what it is about.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": PREDICATE.format(kind),
        "predicate": dict(facts),
    }


def kind_of(said: Mapping[str, Any]) -> str:
    """What a statement is: visit, decision…; empty if it is none of ours."""
    urn = str(said.get("predicateType", "")).split(":")
    return urn[2] if len(urn) == 4 and urn[:2] == ["urn", "fedrounds"] else ""


def pae(body: bytes) -> bytes:
    """What a DSSE envelope's signature is over (DSSE v1, pre-authentication encoding)."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(body), body)


class Signer:
    """Whoever signs a log. `origin` names the log, and its key in notes."""

    def __init__(self, key: bytes, origin: str) -> None:
        self.public, self.origin = identity.public_key(key), origin
        self._private = Ed25519PrivateKey.from_private_bytes(key)

    def envelope(self, said: Mapping[str, Any]) -> bytes:
        """A statement as a line of the log. The same statement always gives the same bytes.

        Guarantees: no byte of it can be changed and its signature still fit; no other key can have made it.
        """
        body = canonical(said)
        signature = {"keyid": identity.fingerprint(self.public), "sig": b64(self._private.sign(pae(body)))}
        return canonical({"payload": b64(body), "payloadType": PAYLOAD, "signatures": [signature]})

    def note(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a signed note."""
        signed = key_id(self.origin, self.public, NOTE) + self._private.sign(checkpoint.body)
        return f"{checkpoint.body.decode()}\n{DASH}{self.origin} {b64(signed)}\n"


def opened(line: bytes, public: bytes) -> dict[str, Any]:
    """The statement in a line of the log, if the owner of this key signed it. Raises LogBroken, without saying which leaf it is."""
    try:
        envelope = json.loads(line)
        body, (signature,) = unb64(envelope["payload"]), envelope["signatures"]
        said = json.loads(body)
        if canonical(envelope) != line or canonical(said) != body or envelope["payloadType"] != PAYLOAD:
            raise LogBroken("it is written in another form than a log's")
        held, found = unb64(signature["sig"]), dict[str, Any](said)
        if {"index", "previous"} - found["predicate"].keys():
            raise LogBroken("it does not say where it belongs")
        if signature["keyid"] != identity.fingerprint(public):
            raise LogBroken("it names another key than the log's")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LogBroken("it cannot be read: a byte was changed, or it was cut short") from None
    if not identity.sealed(public, pae(body), held):
        raise LogBroken("its signature does not fit: it was changed after it was signed")
    return found


@dataclass(frozen=True)
class Log:
    """A log that adds up."""

    checkpoint: Checkpoint
    statements: Sequence[Mapping[str, Any]]
    tree: merkle.Tree
    witnesses: Mapping[str, int]  # who has cosigned the checkpoint, and when


def examine(
    lines: Iterable[bytes],
    note: str,
    public: bytes,
    seen: Sequence[Checkpoint] = (),
    witnesses: Mapping[str, bytes] | None = None,
) -> Log:
    """A log, if it is wholly what the checkpoint says.

    Guarantees:
        * a byte that was changed, in a leaf, in the checkpoint or in the key, is found, and it is said where;
        * a leaf that was dropped, put in or moved is found, and it is said which;
        * a log that lost its end, and one with more than was signed for, is found;
        * a history other than the one that `seen` was of is found, though the very owner of the key wrote it.

    Args:
        seen: checkpoints that somebody kept from earlier, such as a witness; they count only for what they say.
        witnesses: their public keys; who is not named counts for nothing.

    Raises:
        LogBroken: the first thing that is wrong.
    """
    head = checkpoint_of(note, public)
    tree, statements = merkle.Tree(), list[Mapping[str, Any]]()
    previous = NOTHING
    for index, line in enumerate(lines):
        try:
            said = opened(line, public)
        except LogBroken as error:
            raise LogBroken(f"leaf {index} of the log: {error}") from None
        _in_place(index, said, previous)
        previous = merkle.leaf_hash(line)
        tree.append(previous)
        statements.append(said)
    if len(tree) < head.size:
        raise LogBroken(
            f"expected {head.size} leaves, as the checkpoint says, found {len(tree)}: the end of the log was dropped"
        )
    if len(tree) > head.size:
        raise LogBroken(
            f"expected {head.size} leaves, as the checkpoint says, found {len(tree)}: the checkpoint is an older one"
        )
    if tree.root() != head.root:
        raise LogBroken(
            f"expected the root that was signed for {head.size} leaves, found another: the history was forked before leaf {head.size}"
        )
    for old in seen:
        _no_fork(old, tree, head)
    known, (_, signatures) = witnesses or {}, read_note(note)
    return Log(head, statements, tree, _witnessed(head, signatures, known))


def _in_place(index: int, said: Mapping[str, Any], previous: bytes) -> None:
    facts: Mapping[str, Any] = said["predicate"]
    place: Any = facts["index"]
    if place != index:
        what = (
            f"leaf {index} was dropped"
            if isinstance(place, int) and place > index
            else "a leaf was moved or put in twice"
        )
        raise LogBroken(f"leaf {index} of the log: expected leaf {index} there, found leaf {place}: {what}")
    if facts["previous"] != previous.hex():
        raise LogBroken(
            f"leaf {index} of the log: it was signed as the successor of another leaf than the one before it: the history was forked there"
        )


def _no_fork(old: Checkpoint, tree: merkle.Tree, head: Checkpoint) -> None:
    if old.origin != head.origin:
        raise LogBroken(
            f"expected a checkpoint of the log {head.origin}, found one of {old.origin}: it is another lineage's"
        )
    if old.size > head.size:
        raise LogBroken(
            f"expected at least the {old.size} leaves that were seen before, found {head.size}: the log was shortened"
        )
    if tree.root(old.size) != old.root:
        raise LogBroken(
            f"expected the history that was seen at {old.size} leaves, found another: it was forked before leaf {old.size}"
        )


def _witnessed(
    head: Checkpoint, signatures: list[tuple[str, bytes, bytes]], known: Mapping[str, bytes]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, named, signature in signatures:
        if (
            name in known and name != head.origin and named != key_id(head.origin, known[name], NOTE)
        ):  # the log's own line is none
            at = cosigned(f"{DASH}{name} {b64(named + signature)}", name, known[name], head)
            if at is None:
                raise LogBroken(
                    f"expected the checkpoint as '{name}' cosigned it, found a line that does not fit: it was changed"
                )
            found[name] = at
    return found
