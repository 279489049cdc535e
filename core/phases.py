"""The steps of an exchange under masks, as messages: what each is called, what it takes, and what an answer holds."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal, cast

import numpy as np

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import Ask, Request
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import excess, shamir
from fedrounds.core.privacy.epoch import Fields, as_number

Phase = Literal["keys", "shares", "masked", "agree", "open"]
PHASES: frozenset[Ask] = frozenset({"keys", "shares", "agree", "open"})  # what touches no row
TAKES: Mapping[str, tuple[str, ...]] = {
    "keys": ("batch", "epoch"),
    "shares": ("epoch", "identities", "mask_keys", "members", "roster", "seal_keys", "signatures"),
    "agree": ("alive", "digests", "index", "request", "signatures", "subject"),
    "open": ("alive", "asked", "index", "request", "sealed", "signatures", "subject"),
}

SIZES = {"batch": 8, "epoch": 8, "roster": 8, "request": 32, "subject": 32, "index": 4}


def step_of(request: Request) -> int:
    """Where a request stands among those of its visit: exchange by exchange, and under masks phase by phase."""
    return 5 * request.exchange + {"keys": 0, "shares": 1, "agree": 3, "open": 4}.get(request.ask, 2)


def subject_of(request: Request) -> str:
    """What is asked under masks, whatever the model: a round's exchange is opened of one set of sites alone."""
    return f"{request.ask} {request.round} {request.exchange}"


def announced_of(subject: bytes, request: bytes) -> bytes:
    """What masks are about, of both a part: who sent nothing, and is shown both parts later, knows of what subject the sum is too.

    Args:
        subject: SHA-256 of what `subject_of` gives.
        request: SHA-256 of the whole request.
    """
    return sha256(b"fedrounds announced\0" + subject + request).digest()


def require(request: Request, fields: Fields) -> None:
    """Raise UpdateRejected unless a request that touches no row holds what its step takes, as bytes of the right sizes."""
    if tuple(sorted(fields)) != TAKES[request.ask] or any(array.dtype != np.uint8 for array in fields.values()):
        raise UpdateRejected(f"expected {', '.join(TAKES[request.ask])} as bytes, found others: it was refused")
    for name, size in SIZES.items():
        if name in fields and fields[name].shape != (size,):
            raise UpdateRejected(f"expected {name} of {size} bytes, found {fields[name].shape}: it was refused")


def expected(request: Request, words: Mapping[str, tuple[int, str]]) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array that a reply to this request must hold.

    Args:
        words: of masked sums: name -> length and type.
    """
    arrays = cast(Fields, request.arrays)
    signature = {"signature": ((64,), "|u1")}
    match request.ask:
        case "keys":
            keys = ((as_number(arrays["batch"]), 32), "|u1")
            return {"mask_keys": keys, "seal_keys": keys, **signature}
        case "shares":
            n, batch, _ = arrays["mask_keys"].shape
            holders = epochs.degree(n, as_number(arrays["roster"])) + 1
            sealed, marks = (batch, holders, epochs.SEALED), (batch, holders, 2, epochs.MARK)
            return {"sealed": (sealed, "|u1"), "marks": (marks, "|u1"), **signature}
        case "agree":
            return signature
        case "open":
            return {"shares": ((int(arrays["asked"].sum()), shamir.SHARE), "|u1"), "spare": ((excess.LINK,), "|u1")}
        case _:
            return {**{name: ((size,), kind) for name, (size, kind) in words.items()}, **signature}
