"""The audit log of a ledger: what was done is signed in the transaction that does it, so that neither is there without the other.

Names, digests and counts alone: reasons, verdicts and records stand in it as the SHA-256 of their canonical JSON, and whoever has the ledger
can show what they were. No floating-point number is in it, so that its lines have one form everywhere.
"""

from __future__ import annotations

import json
from abc import ABC
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, insert, select

from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.privacy import merkle
from fedrounds.core.privacy.log import NOTHING, Signer, digest_of, statement
from fedrounds.core.privacy.note import Checkpoint, checkpoint_of, unb64
from fedrounds.ledger import schema
from fedrounds.ledger.queries import last, lineage_of, newest

if TYPE_CHECKING:
    from fedrounds.core.messages import Request
    from fedrounds.core.privacy.agreed import Agreed
    from fedrounds.ledger.database import Database
    from fedrounds.ledger.rows import Act, Attempt, Decision


@dataclass(frozen=True)
class Leaf:
    """What is to be said in the log: of what kind, about which visit, act or attempt."""

    kind: str
    about: int
    subjects: Mapping[str, str]  # name -> SHA-256, hex
    facts: Mapping[str, Any]


def of_visit(row: Mapping[str, Any], verdicts: Mapping[str, Mapping[str, Any]], attempt: int) -> Leaf:
    """A visit that closed.

    Args:
        row: its row in the ledger, without the state.
        verdicts: the sites' new ones.
        attempt: the question that it closes, 0 if its sites are in this process.
    """
    record = row["record"]
    sites, spent = (dict(record.get(name) or {}) for name in ("sites", "privacy"))
    facts = {name: row[name] for name in ("visit", "round", "ask", "base", "model", "suite_hash", "operations_version")}
    facts |= {"state": row["checksum"], "record": digest_of(record), "attempt": attempt}
    facts |= {name: _ms(row[name]) for name in ("started", "committed")}
    facts |= {
        "sites": {
            name: {way: its[way] for way in ("bytes_in", "bytes_out") if way in its} for name, its in sites.items()
        }
    }
    facts |= {kind: sorted(record.get(kind, ())) for kind in ("excluded", "refused")}
    facts |= {"verdicts": {site: digest_of(verdict) for site, verdict in verdicts.items()}}
    if spent:
        facts["privacy"] = {name: repr(value) for name, value in spent.items()}
    return Leaf("visit", row["visit"], {"base": row["base"], "model": row["model"]}, facts)


def of_decision(visit: int, decision: Decision) -> Leaf:
    """What the rule decided on a visit."""
    facts = {name: getattr(decision, name) for name in ("round", "promoted", "model", "pending")}
    return Leaf(
        "decision",
        visit,
        {"model": decision.model},
        facts | {"visit": visit, "reason": digest_of(decision.reason)},
    )


def of_act(act: Act) -> Leaf:
    """What a person did."""
    facts = {name: getattr(act, name) for name in ("number", "visit", "act", "round", "model", "by")}
    return Leaf("act", act.number, {"model": act.model}, facts | {"at": _ms(act.at), "reason": digest_of(act.reason)})


def of_failure(row: Mapping[str, Any]) -> Leaf:
    """A try that did not close."""
    facts = {name: row[name] for name in ("visit", "attempt", "round", "ask")}
    facts |= {"started": _ms(row["started"]), "failed": _ms(row["failed"]), "reason": digest_of(row["reason"])}
    return Leaf("failure", row["visit"], {}, facts)


def of_question(
    attempt: Attempt, request: Request, requests: Mapping[str, str], rosters: Iterable[Agreed] = ()
) -> Leaf:
    """A question, before anybody is asked: whoever gets one that is not here was asked behind the others' backs."""
    facts: dict[str, Any] = {name: getattr(request, name) for name in ("round", "exchange", "ask", "base")}
    facts |= {"attempt": attempt.number, "visit": attempt.visit}
    facts |= {"deadline": _ms(attempt.deadline)}
    if named := sorted(agreed.digest for agreed in rosters):
        facts["rosters"] = named
    return Leaf("asked", attempt.number, requests, facts)


def of_roster(agreed: Agreed) -> Leaf:
    """Whose keys the coming questions rest on, and who signed that they go by them."""
    return Leaf("roster", 0, {"roster": agreed.digest}, agreed.facts)


def of_drop(attempt: int) -> Leaf:
    """A question that was closed with nothing to show for it."""
    return Leaf("dropped", attempt, {}, {"attempt": attempt})


class Audited(ABC):
    """The part of a ledger that is its audit log."""

    _database: Database
    _key: bytes | None
    _signer: Signer | None

    def log(self, first: int = 0, end: int | None = None) -> tuple[list[bytes], str]:
        """The log's lines, or some of them, and its signed head; nothing and an empty text before anything was written to it."""
        leaf = schema.log.c.leaf
        some = leaf >= first if end is None else (leaf >= first) & (leaf < end)
        with self._database.read() as connection:
            lines = connection.scalars(select(schema.log.c.line).where(some).order_by(leaf))
            note = connection.scalar(last(schema.heads.c.size, schema.heads.c.note))
            return [bytes(line) for line in lines], note or ""

    def checkpoint(self, size: int | None = None) -> str:
        """The log's signed head, or that of so many leaves; an empty text where there is none."""
        heads = schema.heads.c
        wanted = last(heads.size, heads.note) if size is None else select(heads.note).where(heads.size == size)
        with self._database.read() as connection:
            return connection.scalar(wanted) or ""

    def logged(self, kind: str, about: int) -> tuple[int, str] | None:
        """The index of the last leaf of a kind about something, and the first signed head that holds it; None if there is none."""
        log, heads = schema.log.c, schema.heads.c
        with self._database.read() as connection:
            leaf = connection.scalar(select(func.max(log.leaf)).where(log.kind == kind, log.about == about))
            if leaf is None:
                return None
            note = connection.scalar(select(heads.note).where(heads.size > leaf).order_by(heads.size).limit(1))
        return leaf, note or ""

    def log_tree(self) -> merkle.Tree:
        """The hashes of all leaves."""
        with self._database.read() as connection:
            found = connection.scalars(select(schema.log.c.hash).order_by(schema.log.c.leaf))
            return merkle.Tree([bytes.fromhex(it) for it in found])

    def log_heads(self, after: int = 0) -> list[tuple[int, str]]:
        """Sizes and notes of the heads with more than `after` leaves, in order."""
        heads = schema.heads.c
        with self._database.read() as connection:
            rows = connection.execute(select(heads.size, heads.note).where(heads.size > after).order_by(heads.size))
            return [(row.size, row.note) for row in rows]

    def witnessed(self, size: int, witness: str, line: str) -> None:
        """Keep a witness's line about a head; the first one stays, and a head that never was has none."""
        cosignatures = schema.cosignatures
        key = {"size": size, "witness": witness}
        with self._database.write() as connection:
            there = connection.scalar(select(schema.heads.c.size).filter_by(size=size))
            if there and not connection.execute(select(cosignatures).filter_by(**key)).first():
                connection.execute(insert(cosignatures).values(key | {"line": line}))

    def witnesses(self, size: int | None = None) -> dict[str, tuple[int, str]]:
        """Witness -> the size of the last head that it cosigned, or of this one, and its line."""
        c = schema.cosignatures.c
        rows = select(schema.cosignatures).order_by(c.witness, c.size)
        with self._database.read() as connection:
            found = connection.execute(rows if size is None else rows.where(c.size == size))
            return {row.witness: (row.size, row.line) for row in found}

    def state_digests(self) -> dict[int, str]:
        """Visit -> SHA-256 of the state that lies there, as it is now."""
        with self._database.read() as connection:
            rows = connection.execution_options(stream_results=True).execute(
                select(schema.visits.c.visit, schema.visits.c.state)
            )
            return {row.visit: sha256(bytes(row.state)).hexdigest() for row in rows}

    def given_verdicts(self) -> dict[int, dict[str, Any]]:
        """Visit -> site -> the verdict that was given on it."""
        found = defaultdict[int, dict[str, Any]](dict)
        with self._database.read() as connection:
            for row in connection.execute(select(schema.verdicts)):
                found[row.visit][row.site] = row.verdict
        return found

    def _unheld(self, connection: Connection, rosters: Iterable[Agreed]) -> list[Leaf]:
        """Leaves about the rosters that were signed for and that the log does not hold yet."""
        signed = [agreed for agreed in rosters if agreed.signed]
        if not signed:
            return []
        lines = connection.scalars(select(schema.log.c.line).where(schema.log.c.kind == "roster"))
        held = {json.loads(unb64(json.loads(bytes(line))["payload"]))["predicate"]["digest"] for line in lines}
        return [of_roster(agreed) for agreed in signed if agreed.digest not in held]

    def _record(self, connection: Connection, *leaves: Leaf) -> None:
        """Add leaves and a signed head, in the caller's transaction.

        Raises:
            StateError: the log was begun, and there is no key here, or another.
        """
        head = connection.execute(last(schema.heads.c.size, schema.heads)).first()
        if self._key is None:
            if head is None:
                return
            raise StateError(
                f"expected the key that signs the audit log in {self._database.where}, found none: run the study by `fedrounds run`"
            )
        signer = self._signer or self._signing(connection, head and head.note, self._key)
        size, raw = (head.size, bytes(head.peaks)) if head else (0, b"")
        peaks = tuple(raw[start : start + merkle.HASH] for start in range(0, len(raw), merkle.HASH))
        before = (
            connection.scalar(select(schema.log.c.hash).where(schema.log.c.leaf == size - 1)) if size else NOTHING.hex()
        )
        rows: list[dict[str, Any]] = []
        for leaf in (*(() if head else (self._begun(connection, leaves[0], signer),)), *leaves):
            said = statement(leaf.kind, leaf.subjects, {**leaf.facts, "index": size, "previous": before})
            line = signer.envelope(said)
            found = merkle.leaf_hash(line)
            rows.append({"leaf": size, "kind": leaf.kind, "about": leaf.about, "hash": found.hex(), "line": line})
            peaks, size, before = merkle.grow(peaks, size, found), size + 1, found.hex()
        connection.execute(insert(schema.log), rows)
        root = merkle.root_of(peaks)
        note = signer.note(Checkpoint(signer.origin, size, root))
        connection.execute(insert(schema.heads).values(size=size, root=root.hex(), peaks=b"".join(peaks), note=note))
        self._signer = signer

    def _signing(self, connection: Connection, note: str | None, key: bytes) -> Signer:
        lineage = lineage_of(connection)
        signer = Signer(key, f"fedrounds/{lineage.lineage if lineage else ''}")
        if note:
            try:
                checkpoint_of(note, signer.public)
            except LogBroken as error:
                raise StateError(
                    f"expected the key that signed the audit log in {self._database.where} so far, found another: restore it from a copy ({error})"
                ) from None
        return signer

    def _begun(self, connection: Connection, first: Leaf, signer: Signer) -> Leaf:
        """The first leaf: whose log it is, and from where on everything is in it."""
        lineage = lineage_of(connection)
        protocol = connection.scalar(select(schema.study.c.protocol))
        visits = newest(connection) - (first.kind == "visit")
        acts = (connection.scalar(select(func.max(schema.acts.c.number))) or 0) - (first.kind == "act")
        failures = (connection.scalar(select(func.count()).select_from(schema.failures)) or 0) - (
            first.kind == "failure"
        )
        facts = {"study": lineage.name if lineage else "", "lineage": lineage.lineage if lineage else ""}
        digest, base = lineage.digest if lineage else "", first.subjects.get("base", "")
        facts |= {"digest": digest, "key": signer.public.hex(), "protocol": digest_of(protocol)}
        if (sums := _sums(protocol)) != "plain":
            facts["sums"] = sums
        return Leaf(
            "begun",
            0,
            {"study": digest, **({"model": base} if base else {})},
            facts | {"visits_before": visits, "acts_before": acts, "failures_before": failures},
        )


def lines_of(lines: Sequence[bytes]) -> bytes:
    """The log as a file: a leaf a line."""
    return b"".join(line + b"\n" for line in lines)


def _sums(protocol: Any) -> str:
    """How a protocol hides its sums: plain, masked or ckks."""
    return (protocol or {}).get("privacy", {}).get("protect", {}).get("kind", "plain")


def _ms(seconds: float) -> int:
    """Milliseconds since 1970, a whole number."""
    return int(seconds * 1000)
