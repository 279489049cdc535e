"""What a hospital is shown of the coordinator's log with each question, and what it makes of it.

A witness keeps the last head that it has seen, and cosigns one only after a proof that it has grown out of that: a coordinator that shows two
hospitals two histories, or takes back what it wrote, is found by the first hospital that it asks again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fedrounds.core.errors import LogBroken
from fedrounds.core.privacy import merkle
from fedrounds.core.privacy.log import canonical, kind_of, opened
from fedrounds.core.privacy.note import Checkpoint, b64, checkpoint_of, unb64

LARGEST = 4 << 20  # bytes of what is shown beside a question
MOST_SIZES = 256  # heads that growth is shown from, at most


@dataclass(frozen=True)
class Shown:
    """The log's head, the leaf that says of this question, and proofs that the log grew out of earlier heads."""

    note: str
    leaf: int
    line: bytes
    inclusion: Sequence[bytes]
    growth: Mapping[int, Sequence[bytes]]  # size of an earlier head -> proof


def encode(shown: Shown) -> bytes:
    """As it travels."""
    return canonical(
        {
            "note": shown.note,
            "leaf": shown.leaf,
            "line": b64(shown.line),
            "inclusion": [b64(step) for step in shown.inclusion],
            "growth": {str(size): [b64(step) for step in proof] for size, proof in shown.growth.items()},
        }
    )


def decode(data: bytes) -> Shown:
    """What `encode` wrote. Raises LogBroken on anything else, never another error."""
    try:
        said = json.loads(data)
        note, leaf = said["note"], said["leaf"]
        if not isinstance(note, str) or type(leaf) is not int:
            raise TypeError
        growth = {int(size): [unb64(step) for step in proof] for size, proof in said["growth"].items()}
        return Shown(note, leaf, unb64(said["line"]), [unb64(step) for step in said["inclusion"]], growth)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise LogBroken("expected the log's head and its proofs beside the question, found other bytes") from None


def believed(shown: Shown, public: bytes, seen: Checkpoint | None, site: str, request: bytes) -> Checkpoint:
    """The head, if a witness may sign it.

    Guarantees:
        * what the log's key did not sign is refused;
        * a head that does not hold the very request that came, to this site, is refused: nobody is asked off the record;
        * a log that was forked or shortened since this witness last saw it is refused, whoever signed it.

    A log of another origin is another lineage's, which begins anew; whoever keeps `seen` can tell that it is.

    Args:
        seen: the last head that was believed, None before the first.
        request: the bytes that were asked with.

    Raises:
        LogBroken: anything of the above, each in its own words.
    """
    head = checkpoint_of(shown.note, public)
    if seen and seen.origin == head.origin:
        _grown(seen, head, shown.growth)
    said = opened(shown.line, public)
    if kind_of(said) != "asked" or {"name": site, "digest": {"sha256": sha256(request).hexdigest()}} not in _subjects(
        said
    ):
        raise LogBroken(
            "expected the question that came in the coordinator's log, found another: it was asked off the record"
        )
    if not merkle.included(merkle.leaf_hash(shown.line), shown.leaf, head.size, shown.inclusion, head.root):
        raise LogBroken(
            f"expected a proof that leaf {shown.leaf} is in the coordinator's log, found one that does not fit"
        )
    return head


def rosters_in(shown: Shown, public: bytes) -> tuple[str, ...]:
    """The digests of the rosters that the question was asked under, as the log's leaf about it says. Raises LogBroken."""
    named: Any = opened(shown.line, public)["predicate"].get("rosters", ())
    if not isinstance(named, list | tuple):
        raise LogBroken("expected a list of rosters in the leaf about the question, found something else")
    return tuple(map(str, named))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _grown(seen: Checkpoint, head: Checkpoint, growth: Mapping[int, Sequence[bytes]]) -> None:
    if head.size < seen.size:
        raise LogBroken(
            f"expected at least the {seen.size} leaves of the coordinator's log that were seen before, found {head.size}: it was shortened"
        )
    proof = () if seen.size == head.size else growth.get(seen.size)
    if proof is None:
        raise LogBroken(
            f"expected a proof that the coordinator's log grew from {seen.size} leaves, found none: it is asked for again"
        )
    if not merkle.consistent(seen.size, seen.root, head.size, head.root, proof):
        raise LogBroken(
            f"expected the coordinator's log to grow out of what was seen at {seen.size} leaves, found another history: it was forked"
        )


def _subjects(said: Mapping[str, Any]) -> list[Any]:
    found: Any = said.get("subject")
    return list(found) if isinstance(found, list) else []  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
