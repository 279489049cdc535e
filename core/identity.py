"""Who says it, about what: every request and reply travels in an envelope, signed with Ed25519 (RFC 8032).

    b"FEDS" | version, 2 bytes | statement length, 2 bytes | statement | signature, 64 bytes | payload

The statement is what is signed, and the only form of what it says: fixed fields, little-endian, then the site's name.

    study, 32 | base, 32 | payload's SHA-256, 32 | signer's public key, 32 | payload length, 8
    | round, 4 | attempt, 4 | exchange, 4 | direction, 1 (0 request, 1 reply) | site, UTF-8

Signed are the words `fedrounds envelope`, the version, and the statement, so a signature made here is one nowhere else. To change the
format: raise VERSION, teach `verify` the new number, and keep refusing every number it does not know.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Literal, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedrounds.core.errors import StateError, UpdateRejected
from fedrounds.core.messages import LARGEST_MESSAGE

VERSION = 1
MAGIC = b"FEDS"
PREFIX = struct.Struct("<4sHH")
STATEMENT = struct.Struct("<32s32s32s32sQIIIB")
SIGNATURE = 64
KEY = 32
ENVELOPE = PREFIX.size + STATEMENT.size + 63 + SIGNATURE  # at most this many bytes around a payload
DIGEST = re.compile(r"[0-9a-f]{64}")
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
PRIME = 2**255 - 19
OCTIC = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
WEAK = {0, 1, PRIME - 1, OCTIC, PRIME - OCTIC}  # y of the points of order 1, 2, 4 and 8: anybody can sign for these

Direction = Literal["request", "reply"]


@dataclass(frozen=True)
class About:
    """What a payload is about; the other end checks every word of it.

    Raises UpdateRejected where a word is none: a digest is 64 hex digits, a number is whole and below 2^32, a site is named as in a roster.
    """

    study: str  # digest of the protocol
    round: int
    attempt: int
    exchange: int
    site: str  # whom a request is for, whom a reply is from
    direction: Direction
    base: str  # model digest of what is being asked about

    def __post_init__(self) -> None:
        for name in ("study", "base"):
            if not DIGEST.fullmatch(getattr(self, name)):
                raise UpdateRejected(f"expected {name} as 64 hex digits, found another text: it was refused")
        for name in ("round", "attempt", "exchange"):
            if not 0 <= getattr(self, name) < 1 << 32:
                raise UpdateRejected(f"expected {name} from 0 to 2^32 - 1, found another number: it was refused")
        if not SITE.fullmatch(self.site):
            raise UpdateRejected("expected a site's name as in a roster, found another text: it was refused")
        if self.direction not in get_args(Direction):
            raise UpdateRejected("expected direction request or reply, found another word: it was refused")


def new_key() -> bytes:
    """A private key, 32 bytes of the operating system's entropy. Keep it in a file that its owner alone reads."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(key: bytes) -> bytes:
    """The public half of a private key, 32 bytes. Raises StateError if the key is none."""
    return _private(key).public_key().public_bytes_raw()


def fingerprint(public: bytes) -> str:
    """A public key as two people compare it over the telephone: 128 bits of its SHA-256, in groups of four hex digits.

    >>> fingerprint(bytes(32))
    '2b7e 0f16 5d96 03fe 9372 e976 c9cd fa2b'
    """
    return spoken(sha256(b"fedrounds key\0" + public).digest())


def spoken(digest: bytes) -> str:
    """The first 128 bits of a digest, in groups of four hex digits."""
    return digest[:16].hex(" ", 2)


def sign(key: bytes, about: About, payload: bytes) -> bytes:
    """The payload in its envelope. The same key, words and payload always give the same bytes.

    Raises:
        StateError: the key is none.
        UpdateRejected: the payload is larger than a message may be.
    """
    if len(payload) > LARGEST_MESSAGE:
        raise UpdateRejected(f"expected a payload of at most {LARGEST_MESSAGE} bytes, found {len(payload)}")
    private = _private(key)
    statement = _statement(about, private.public_key().public_bytes_raw(), payload)
    prefix = PREFIX.pack(MAGIC, VERSION, len(statement))
    return b"".join([prefix, statement, private.sign(_signed(statement)), payload])


def verify(public: bytes, about: About, signed: bytes, largest: int = LARGEST_MESSAGE) -> bytes:
    """The payload, if `signed` is an envelope about exactly this, by the owner of this public key.

    Guarantees:
        * a payload that was changed, cut short or lengthened by one bit is refused;
        * an envelope of another study, round, attempt, exchange, site, direction or base is refused: a replay is;
        * an envelope by another key is refused;
        * what is larger than `largest` is refused unread: nothing of its size is copied, hashed or verified;
        * nobody but its signer can make a second envelope out of one, not even about the same words and payload;
        * any bytes at all give a payload or UpdateRejected, never another error.

    The same envelope again is the same answer again, and passes: who has taken it before knows it by its bytes. It hides nothing: the
    payload is as readable as it was.

    Raises:
        UpdateRejected: anything of the above, each in its own words.
        StateError: `public` is no key, or one of the few that anybody can sign for.
    """
    owner = _public(public)
    statement, signature, payload = _parts(signed, largest)
    found = _read(statement)
    if found.key != public:
        raise UpdateRejected(
            f"expected a message signed by key {fingerprint(public)}, found one by key {fingerprint(found.key)}: it was refused"
        )
    try:
        owner.verify(signature, _signed(statement))
    except InvalidSignature:
        raise UpdateRejected(
            f"expected a signature by key {fingerprint(public)}, found one that does not fit: the message was forged or damaged"
        ) from None
    for field in fields(About):
        wanted, said = getattr(about, field.name), getattr(found.about, field.name)
        if wanted != said:
            raise UpdateRejected(
                f"expected a message about {field.name} {str(wanted)[:12]}, found one about {str(said)[:12]}: it was refused"
            )
    if len(payload) != found.size:
        raise UpdateRejected(
            f"expected a payload of {found.size} bytes, found {len(payload)}: it was cut short or lengthened"
        )
    if sha256(payload).digest() != found.digest:
        raise UpdateRejected("expected the payload that was signed, found another: it was changed on its way")
    return payload


def claim(signed: bytes, largest: int = LARGEST_MESSAGE) -> About:
    """What an envelope says that it is about, whoever signed it: to be given to `verify` once it was found to be what one waits for.

    Raises UpdateRejected where it says nothing that can be read, or is larger than `largest`.
    """
    return _read(_parts(signed, largest)[0]).about


def signer(signed: bytes, largest: int = LARGEST_MESSAGE) -> bytes:
    """The public key that an envelope names as its signer's, 32 bytes; `verify` with it tells whether that is so.

    Raises UpdateRejected where it says nothing that can be read, or is larger than `largest`.
    """
    return _read(_parts(signed, largest)[0]).key


def seal(key: bytes, words: bytes) -> bytes:
    """A signature over words that are in no envelope, 64 bytes. The words must begin with what they are for, which no other words do."""
    return _private(key).sign(words)


def sealed(public: bytes, words: bytes, signature: bytes) -> bool:
    """Whether a signature over words is by the owner of this public key. Raises StateError if it is no key that somebody owns."""
    owner = _public(public)
    try:
        owner.verify(signature, words)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True)
class _Found:
    """What a statement says."""

    about: About
    key: bytes
    digest: bytes
    size: int


def _read(statement: bytes) -> _Found:
    study, base, digest, key, size, number, attempt, exchange, way = STATEMENT.unpack_from(statement)
    if way > 1:
        raise UpdateRejected("expected direction request or reply, found another word: it was refused")
    try:
        site = statement[STATEMENT.size :].decode("ascii")
    except UnicodeDecodeError:
        raise UpdateRejected("expected a site's name as in a roster, found another text: it was refused") from None
    about = About(study.hex(), number, attempt, exchange, site, get_args(Direction)[way], base.hex())
    return _Found(about, key, digest, size)


def _parts(signed: bytes, largest: int) -> tuple[bytes, bytes, bytes]:
    """Statement, signature and payload of an envelope; bounds first."""
    if len(signed) > largest + ENVELOPE:
        raise UpdateRejected(
            f"expected a payload of at most {largest} bytes, found a message of {len(signed)}: it was refused unread"
        )
    if len(signed) < PREFIX.size:
        raise UpdateRejected(f"expected a signed message, found {len(signed)} bytes: it was cut short")
    magic, version, length = PREFIX.unpack_from(signed)
    if magic != MAGIC:
        raise UpdateRejected("expected a signed message of Fedrounds, found other bytes: it was refused")
    if version != VERSION:
        raise UpdateRejected(
            f"expected envelope version {VERSION}, found {version}: install the same Fedrounds at coordinator and sites"
        )
    start = PREFIX.size + length
    if not STATEMENT.size < length <= STATEMENT.size + 63 or start + SIGNATURE > len(signed):
        raise UpdateRejected(
            f"expected a statement and a signature, found {len(signed)} bytes that do not hold them: it was cut short"
        )
    size = len(signed) - start - SIGNATURE
    if size > largest:
        raise UpdateRejected(f"expected a payload of at most {largest} bytes, found {size}: it was refused unread")
    return signed[PREFIX.size : start], signed[start : start + SIGNATURE], signed[start + SIGNATURE :]


def _statement(about: About, public: bytes, payload: bytes) -> bytes:
    way = get_args(Direction).index(about.direction)
    study, base, digest = bytes.fromhex(about.study), bytes.fromhex(about.base), sha256(payload).digest()
    numbers = about.round, about.attempt, about.exchange
    return STATEMENT.pack(study, base, digest, public, len(payload), *numbers, way) + about.site.encode()


def _signed(statement: bytes) -> bytes:
    return b"fedrounds envelope\0" + VERSION.to_bytes(2, "little") + statement


def _private(key: bytes) -> Ed25519PrivateKey:
    if len(key) != KEY:
        raise StateError(f"expected a private key of {KEY} bytes, found {len(key)}: restore the key file from a copy")
    return Ed25519PrivateKey.from_private_bytes(key)


def _public(public: bytes) -> Ed25519PublicKey:
    if len(public) != KEY:
        raise StateError(f"expected a public key of {KEY} bytes, found {len(public)}: ask its owner for it again")
    if (int.from_bytes(public, "little") & ((1 << 255) - 1)) % PRIME in WEAK:
        raise StateError(
            "expected a public key that belongs to somebody, found one that anybody can sign for: refuse it"
        )
    return Ed25519PublicKey.from_public_bytes(public)
