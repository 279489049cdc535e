"""The only things that cross a hospital's wall, as bytes: a JSON header, then raw little-endian float arrays. Never pickle.

    b"FEDR" | protocol, 2 bytes | header length, 4 bytes | header, UTF-8 JSON | the arrays' bytes, one after another

Version 1 holds float64 arrays alone ("<f8"). Version 2 holds at least one float32 array ("<f4") beside them. Version 3 holds at least one of
unsigned words: bytes of keys and signatures ("|u1"), masked sums ("<u2", "<u4", "<u8"). So every message has one form. An array travels in
the type that it has, and `decode` gives it back in that type; what is float32 is `core/codec.py`'s to say.

To change the format: raise PROTOCOL, teach `unpack` the new number, and keep refusing every number it does not know. A reader never
guesses: a message that is damaged in any way is refused whole, with what was expected and what was found.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array

PROTOCOL = 1
NARROW = 2  # the version of a message that holds a float32 array
WORDS = 3  # and of one that holds unsigned words
KINDS: Mapping[int, tuple[str, ...]] = {
    PROTOCOL: ("<f8",),
    NARROW: ("<f8", "<f4"),
    WORDS: ("<f8", "<f4", "|u1", "<u2", "<u4", "<u8"),
}
MAGIC = b"FEDR"
PREFIX = struct.Struct("<4sHI")
LARGEST_HEADER = 1 << 20
LONGEST_TEXT = 1000
LARGEST_MESSAGE = 1 << 30

Ask = Literal["gate", "statistics", "train", "score", "profile", "explain", "keys", "shares", "agree", "open"]
OF_TABLE: frozenset[Ask] = frozenset(
    {"statistics", "profile", "explain"}
)  # asked about the clean table, before any preprocessing


@dataclass(frozen=True)
class Request:
    """What the coordinator asks, the same bytes for every site: public, and about no patient."""

    study: str  # digest of the protocol
    round: int
    exchange: int
    ask: Ask
    base: str  # model digest of what is being asked about
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Reply:
    """What a site answers: sums over its patients, or a refusal with its reason (then there are no arrays)."""

    study: str
    round: int
    exchange: int
    ask: Ask
    base: str
    site: str
    refusal: str
    arrays: Mapping[str, Array]


def answer_to(request: Request, site: str, refusal: str = "", arrays: Mapping[str, Array] | None = None) -> Reply:
    """What a site answers to this request: sums of the shapes that its algorithm states, or why it gives none."""
    asked = request.study, request.round, request.exchange, request.ask, request.base
    return Reply(*asked, site, refusal, arrays or {})


@dataclass(frozen=True)
class Finding:
    """What a site answers to `gate`: its gate's verdict on its data, or a refusal with its reason (then the verdict is empty).

    `fresh` says that the data are other ones than those it was last profiled on: yes or no, and nothing about them.
    """

    study: str
    round: int
    exchange: int
    ask: Ask
    base: str
    site: str
    refusal: str
    fresh: bool
    verdict: Mapping[str, Any]


Message = Request | Reply | Finding
M = TypeVar("M", Request, Reply, Finding)
TYPES: Mapping[str, type] = {
    "round": int,
    "exchange": int,
    "fresh": bool,
    "verdict": dict,
}  # of header fields; the others are text


def encode(message: Message) -> bytes:
    """The message as bytes; the same message always gives the same bytes."""
    header = {field.name: getattr(message, field.name) for field in fields(message) if field.name != "arrays"}
    arrays: Mapping[str, Array] = {} if isinstance(message, Finding) else message.arrays
    return pack({"kind": type(message).__name__} | header, arrays)


def decode(data: bytes, kind: type[M], largest: int = LARGEST_MESSAGE) -> M:
    """The message in `data`. Raises UpdateRejected on anything but an intact message of that kind."""
    header, arrays = unpack(data, largest)
    if header.pop("kind", None) != kind.__name__:
        raise UpdateRejected(f"expected a {kind.__name__}, found another kind of message: it was refused")
    names = {field.name for field in fields(kind)}
    expected = names - {"arrays"}
    if set(header) != expected:
        raise UpdateRejected(f"expected header fields {sorted(expected)}, found {len(header)} others: it was refused")
    for name, value in header.items():
        wanted = TYPES.get(name, str)
        if type(value) is not wanted:
            raise UpdateRejected(
                f"expected header field '{name}' as {wanted.__name__}, found {type(value).__name__}: it was refused"
            )
        if wanted is int and not 0 <= value < 1 << 32:
            raise UpdateRejected(
                f"expected header field '{name}' from 0 to 2^32 - 1, found another number: it was refused"
            )
        if isinstance(value, str) and not (len(value) <= LONGEST_TEXT and value.isprintable()):
            raise UpdateRejected(
                f"expected header field '{name}' of at most {LONGEST_TEXT} printable characters, found another text: it was refused"
            )
    if header["ask"] not in get_args(Ask):
        raise UpdateRejected(
            f"expected to be asked for one of {', '.join(get_args(Ask))}, found something else: it was refused"
        )
    if "arrays" in names:
        header["arrays"] = arrays
    elif arrays:
        raise UpdateRejected(f"expected a {kind.__name__} without arrays, found {len(arrays)}: it was refused")
    return kind(**header)


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A JSON header and named arrays of any shape as bytes: float32 and unsigned words as they are, all else as float64.

    Raises UpdateRejected if a number is not finite: that never travels.
    """
    parts: list[bytes] = []
    shapes: list[tuple[str, str, tuple[int, ...]]] = []
    for name, given in arrays.items():
        own = np.asarray(given).dtype.newbyteorder("<").str
        kind = own if own in KINDS[WORDS] else "<f8"
        array = np.ascontiguousarray(given, dtype=kind)
        if not np.isfinite(array).all():
            raise UpdateRejected(
                f"expected finite numbers in '{name}', found NaN or infinity: a smaller learning rate may help"
            )
        shapes.append((name, kind, array.shape))
        parts.append(array.tobytes())
    version = _version(kind for _, kind, _ in shapes)
    text = json.dumps({**header, "arrays": shapes}, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(PREFIX.size + len(text)) % 8)  # the arrays start where a processor likes to read them
    return b"".join([PREFIX.pack(MAGIC, version, len(text)), text, *parts])


def unpack(data: bytes, largest: int = LARGEST_MESSAGE) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of `data`; every array is finite, of its stated type and shape, and no byte is left over.

    Raises UpdateRejected where that is not so, or there are more than `largest` bytes.
    """
    if len(data) > largest:
        raise UpdateRejected(f"expected a message of at most {largest} bytes, found {len(data)}: it was refused unread")
    if len(data) < PREFIX.size:
        raise UpdateRejected(f"expected a message of at least {PREFIX.size} bytes, found {len(data)}: it was cut short")
    magic, protocol, length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise UpdateRejected("expected a Fedrounds message, found other bytes: it was refused")
    if protocol not in KINDS:
        raise UpdateRejected(
            f"expected message version {PROTOCOL} to {WORDS}, found {protocol}: install the same Fedrounds at coordinator and sites"
        )
    if length > LARGEST_HEADER or PREFIX.size + length > len(data):
        raise UpdateRejected(
            f"expected a header of {length} bytes, found {len(data) - PREFIX.size} bytes in all: it was cut short"
        )
    header = _header(data[PREFIX.size : PREFIX.size + length])
    arrays: dict[str, Array] = {}
    start = PREFIX.size + length
    for name, kind, shape in _shapes(header.pop("arrays", None), protocol):
        size = int(kind[2:]) * prod(shape)
        if start + size > len(data):
            raise UpdateRejected(
                f"expected {size} bytes for array {name[:40]!r} {shape}, found {len(data) - start}: the message was cut short"
            )
        array = np.require(np.frombuffer(data, kind, prod(shape), start), requirements="A").reshape(shape)
        if not np.isfinite(array).all():
            raise UpdateRejected(
                f"expected finite numbers in array {name[:40]!r}, found NaN or infinity: it was refused"
            )
        arrays[name] = array
        start += size
    if start != len(data):
        raise UpdateRejected(f"expected a message of {start} bytes, found {len(data)}: it was refused")
    return header, arrays


def _version(kinds: Iterable[str]) -> int:
    """The first version whose messages may hold all of these."""
    found = set(kinds)
    return next(version for version, known in KINDS.items() if found <= set(known))


def _header(text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise UpdateRejected("expected each header field once, found one twice: the message was refused")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise UpdateRejected("expected a JSON header, found bytes that are not JSON: the message was refused") from None
    if not isinstance(header, dict):
        raise UpdateRejected("expected a JSON object as header, found something else: the message was refused")
    return cast(dict[str, Any], header)


def _shapes(listed: Any, version: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes as the header lists them, each checked before a byte of an array is read."""
    kinds = KINDS[version]
    if not isinstance(listed, list):
        raise UpdateRejected("expected a list of arrays in the header, found none: the message was refused")
    shapes: list[tuple[str, str, tuple[int, ...]]] = []
    for entry in cast(list[Any], listed):
        match entry:
            case [str(name), str(dtype), list()] if dtype in kinds and _plain(cast(list[Any], entry[2])):
                shapes.append((name, dtype, tuple(cast(list[int], entry[2]))))
            case [str(name), str(dtype), list()]:
                raise UpdateRejected(
                    f"expected array {name[:40]!r} as {' or '.join(kinds)} with a plain shape, found {dtype[:20]!r} or another shape: it was refused"
                )
            case _:
                raise UpdateRejected(
                    "expected arrays listed as [name, dtype, shape], found another form: the message was refused"
                )
    if len({name for name, *_ in shapes}) != len(shapes):
        raise UpdateRejected("expected each array once, found a name twice: the message was refused")
    if version != _version(kind for _, kind, _ in shapes):
        raise UpdateRejected(
            f"expected message version {_version(kind for _, kind, _ in shapes)} for the types of its arrays, found {version}:"
            " the message was refused"
        )
    return shapes


def _plain(shape: list[Any]) -> bool:
    """Up to four whole numbers; their product is bounded even where one of them is 0."""
    return (
        len(shape) <= 4
        and all(type(length) is int and length >= 0 for length in shape)
        and prod(max(length, 1) for length in shape) <= LARGEST_MESSAGE
    )
