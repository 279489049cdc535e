"""An open exchange as bytes, so that whoever goes on after a crash asks the very same thing.

b"FEDA" | format, 2 bytes | lengths of the next three, 4 bytes each | who is asked | state | request | SHA-256 of all before
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np

from fedrounds.core import state as states
from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.messages import Request, decode, encode, pack, unpack
from fedrounds.core.params import Array
from fedrounds.core.round import Asking

MAGIC, FORMAT = b"FEDA", 1
PREFIX = struct.Struct("<4sHIII")


def dump(asking: Asking) -> bytes:
    """The open exchange as bytes; `load` gives it back bit for bit. The same one always gives the same bytes."""
    header: dict[str, Any] = {  # pairs, not mappings: JSON would sort them
        "sites": asking.sites,
        "quorum": asking.quorum,
        "refused": list(asking.refused.items()),
        "factors": list(asking.factors),
    }
    if asking.goal or asking.epochs:  # others are the bytes of before
        header |= {"goal": asking.goal, "epochs": list(asking.epochs.items())}
    factors = np.array(list(asking.factors.values()), dtype=np.float64)
    parts = [pack(header, {"factors": factors}), states.dump(asking.state), encode(asking.request)]
    data = b"".join([PREFIX.pack(MAGIC, FORMAT, *map(len, parts)), *parts])
    return data + hashlib.sha256(data).digest()


def load(data: bytes) -> Asking:
    """The open exchange that `dump` wrote. Raises StateError if the bytes are damaged or another release's."""
    body, end = data[:-32], data[-32:]
    if len(body) < PREFIX.size or hashlib.sha256(body).digest() != end:
        raise _damaged("bytes that differ from their checksum")
    magic, form, *lengths = PREFIX.unpack_from(body)
    if magic != MAGIC or form != FORMAT or PREFIX.size + sum(lengths) != len(body):
        raise _damaged(f"other bytes, of format {form}")
    start, parts = PREFIX.size, list[bytes]()
    for length in lengths:
        parts.append(body[start : start + length])
        start += length
    try:
        return _read(*unpack(parts[0]), states.load(parts[1]), decode(parts[2], Request))
    except (UpdateRejected, KeyError, TypeError, ValueError) as error:
        raise _damaged(str(error)) from None


def _read(header: dict[str, Any], arrays: dict[str, Array], state: states.RunState, request: Request) -> Asking:
    factors = dict(zip(header["factors"], arrays["factors"].tolist(), strict=True))
    refused, goal, epochs = dict(header["refused"]), header.get("goal", 0), dict(header.get("epochs", ()))
    return Asking(state, request, tuple(header["sites"]), header["quorum"], refused, factors, goal=goal, epochs=epochs)


def _damaged(found: str) -> StateError:
    return StateError(
        f"expected a stored open exchange in the ledger, found {found}: restore the ledger from a copy, or install the release that wrote it"
    )
