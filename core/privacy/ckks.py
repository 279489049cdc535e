"""Sums of whole numbers under encryption: CKKS (Cheon et al. 2017) by TenSEAL, with parameters under which a sum comes out exactly.

A vector travels as residues: for each 4096 numbers two polynomials of 8192 coefficients modulo a prime of 60 bits, as plain words of 64
bits. Whoever adds up does it on those words, modulo the prime. So no byte that came from elsewhere ever reaches a native parser: residues
are checked to be below their prime, and stand, where TenSEAL needs them, under a header that was written here.

Why a sum is exact. Numbers are whole, and their sum is within 2^31; times the scale, 2^27, that is 2^58, and the prime is near 2^60. An
encryption adds noise to a slot, of a standard deviation of about 2^11 / 2^27 of a step; NOISE is 64 of those. So n sums move a number
by n · 2^-10 at most, and `require` refuses more sites than keep that below a quarter of a step. What leaves is rounded to whole steps:
nothing is left in it of the noise, which would tell of the key (Li and Micciancio 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrounds.core.errors import StudyError, UpdateRejected

Residues = NDArray[np.uint64]  # (chunks, 2, DEGREE) of numbers, (2, 2, DEGREE) of a public key
Digits = NDArray[np.int64]  # (size,) numbers

DEGREE = (
    8192  # with 120 bits of modulus, of 218 that the homomorphic encryption standard allows for 128 bits of security
)
SLOTS = DEGREE // 2
BITS = (60, 60)
PRIMES = (1152921504606748673, 1152921504606830593)  # the first is that of what travels; the other serves keys alone
SCALE = 27
LARGEST = 2**31  # of a sum, in steps
NOISE = 2.0**-10  # steps by which one site's encryption can move a number of the sum
CLOSE = 0.25  # steps from a whole number, within which a sum is one
WORDS = f"fedrounds ckks 1: degree {DEGREE}, bits {BITS}, primes {PRIMES}, scale 2^{SCALE}, sums within {LARGEST}"
PARAMETERS = sha256(WORDS.encode()).digest()
SEAL = bytes.fromhex("5ea110040300")  # what begins an object of SEAL 4.3 that is not compressed
ZSTD = bytes.fromhex("28b52ffd")


def most_sites() -> int:
    """How many sites' encryptions may be added up, and each number still be sure."""
    return int(CLOSE / NOISE) - 1


def require(sites: int) -> None:
    """Raise StudyError where so many sites' noise could move a sum by more than a quarter of a step, or TenSEAL is not there.

    Guarantees:
        * a study whose sums could come out wrong does not begin.
    """
    if sites > most_sites():
        raise StudyError(
            f"expected at most {most_sites()} sites for encrypted sums, found {sites}: more could move a sum off its step; use masked sums"
        )
    _tenseal()


def cipher_shape(size: int) -> tuple[int, int, int]:
    """The shape of so many numbers under encryption: (chunks, 2, DEGREE)."""
    return -(-size // SLOTS), 2, DEGREE


def new_key() -> tuple[bytes, Residues]:
    """A secret key, and the public one as residues (2, 2, 8192).

    Guarantees:
        * it is drawn by SEAL from the operating system's entropy; the public half holds nothing of the secret one.
    """
    context = _fresh()
    secret = context.serialize(False, True, False, False)
    return secret, _public_of(context)


def encrypt(public: Residues, digits: Digits) -> Residues:
    """Whole numbers (size,) under a public key (2, 2, DEGREE): of shape `cipher_shape(size)`.

    Guarantees:
        * the same numbers never give the same residues.

    Raises:
        UpdateRejected: the key is none.
    """
    context = _with_public(public)
    found = np.empty(cipher_shape(digits.size), np.uint64)
    for at, part in enumerate(_parts(digits)):
        vector = _tenseal().ckks_vector(context, part.astype(np.float64).tolist(), scale=2.0**SCALE)
        found[at] = _residues(dict(_fields(vector.serialize()))[2], 2, 1).reshape(2, DEGREE)
    return found


def add(total: Residues, more: Residues) -> None:
    """Add another's numbers to a total, in place, both (chunks, 2, DEGREE) under the same key."""
    for chunk, other in zip(total, more, strict=True):  # they stay in the processor's cache
        chunk += other
        np.minimum(
            chunk, chunk - np.uint64(PRIMES[0]), out=chunk
        )  # what is below the prime wraps around, and is the larger one


def check(cipher: Residues, size: int) -> None:
    """Raise UpdateRejected unless these are residues of so many numbers.

    Guarantees:
        * another number of chunks, another shape, another type or a word that is no residue is refused, before any of it is used.
    """
    if cipher.dtype != np.uint64 or cipher.shape != cipher_shape(size):
        raise UpdateRejected(
            f"expected {cipher_shape(size)[0]} chunks under encryption, found an array of shape {cipher.shape[:4]}: it was refused"
        )
    if cipher.size and int(cipher.max()) >= PRIMES[0]:
        raise UpdateRejected("expected residues under encryption, found words beyond their prime: they were refused")


def decrypt(secret: bytes, cipher: Residues, size: int, most: int = LARGEST) -> Digits:
    """The numbers (size,), whole ones again.

    Args:
        most: the largest that a number can be.

    Guarantees:
        * what comes out is whole: a sum that is further than a quarter of a step from a whole number is refused, and says nothing;
        * so is one beyond `most`, and one with anything where there are no numbers.

    Raises:
        UpdateRejected: as above; or the residues are none.
    """
    check(cipher, size)
    tenseal, key = _tenseal(), _opened(secret)
    found = np.zeros(cipher.shape[0] * SLOTS, np.int64)
    for at, chunk in enumerate(cipher):
        message = _packed(1, _varint(SLOTS)) + _packed(2, _object(_prefix(), chunk)) + _scale()
        vector = tenseal.ckks_vector_from(key, message)
        numbers = np.array(vector.decrypt(), np.float64)
        whole = np.rint(numbers)
        if not np.isfinite(numbers).all() or np.abs(numbers - whole).max() > CLOSE or np.abs(whole).max() > most:
            raise UpdateRejected(
                "expected a sum of whole numbers under encryption, found another: a site's part is no encryption, nothing was opened"
            )
        found[at * SLOTS : (at + 1) * SLOTS] = whole
    if found[size:].any():
        raise UpdateRejected(
            "expected nothing beyond the numbers of a sum, found something: a site's part is no encryption, nothing was opened"
        )
    return found[:size]


# --- TenSEAL's bytes: written here, never read from elsewhere ----------------------------------------------------------


def _tenseal() -> Any:
    try:
        import tenseal  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise StudyError(
            "expected TenSEAL for encrypted sums, found it is not installed: pip install 'fedrounds[ckks]'"
        ) from None
    return tenseal  # pyright: ignore[reportUnknownVariableType]


def _fresh() -> Any:
    tenseal = _tenseal()
    return tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(BITS), n_threads=1)


@lru_cache(maxsize=1)
def _template() -> tuple[bytes, bytes, bytes, bytes]:
    """Parameters of a context; what stands before and behind a public key, and before a vector's residues. All from a key of nobody."""
    context = _fresh()
    parts = dict(_fields(context.serialize(True, False, False, False)))
    inner = dict(_fields(parts[2]))[1]
    key, rest = _raw(inner), parts[2][len(_packed(1, inner)) :]
    vector = _tenseal().ckks_vector(context, [0.0], scale=2.0**SCALE).serialize()
    cipher = _raw(dict(_fields(vector))[2])
    return parts[1], key[: -8 * 4 * DEGREE], rest, cipher[: -8 * 2 * DEGREE]


def _prefix() -> bytes:
    return _template()[3]


def _public_of(context: Any) -> Residues:
    key = dict(_fields(dict(_fields(context.serialize(True, False, False, False)))[2]))[1]
    return _residues(key, 2, 2)


def _with_public(public: Residues) -> Any:
    wanted = np.array(PRIMES, np.uint64).reshape(1, 2, 1)
    if public.dtype != np.uint64 or public.shape != (2, 2, DEGREE) or (public >= wanted).any():
        raise UpdateRejected("expected a public key for encrypted sums, found other words: it was refused")
    parameters, prefix, rest, _ = _template()
    data = _packed(1, parameters) + _packed(2, _packed(1, _object(prefix, public)) + rest)
    return _tenseal().context_from(data, n_threads=1)


@lru_cache(maxsize=1)
def _opened(secret: bytes) -> Any:
    return _tenseal().context_from(secret, n_threads=1)


def _parts(digits: Digits) -> Iterator[Digits]:
    padded = np.zeros(cipher_shape(digits.size)[0] * SLOTS, np.int64)
    padded[: digits.size] = digits
    return iter(padded.reshape(-1, SLOTS))


def _residues(data: bytes, polynomials: int, primes: int) -> Residues:
    """The residues at the end of what SEAL wrote."""
    size = polynomials * primes * DEGREE
    return np.frombuffer(_raw(data)[-8 * size :], "<u8").reshape(polynomials, primes, DEGREE).astype(np.uint64)


def _object(prefix: bytes, residues: Residues) -> bytes:
    """What SEAL reads: header, what stands before the residues, residues."""
    body = prefix + np.ascontiguousarray(residues, "<u8").tobytes()
    return SEAL + bytes(2) + (16 + len(body)).to_bytes(8, "little") + body


def _raw(data: bytes) -> bytes:
    """What is in an object that SEAL wrote in this process. Residues cannot be compressed, so they stand in Zstandard's raw blocks."""
    frame = data[16:]
    if data[:2] != SEAL[:2] or len(data) != int.from_bytes(data[8:16], "little") or frame[:4] != ZSTD:
        raise _unknown()
    one = frame[4] & 0x20
    at, found = 5 + (0 if one else 1) + ((1 if one else 0), 2, 4, 8)[frame[4] >> 6], list[bytes]()
    last = 0
    while not last:
        head = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        if kind:
            raise _unknown()
        found.append(frame[at + 3 : at + 3 + size])
        at += 3 + size
    return b"".join(found)


def _unknown() -> StudyError:
    return StudyError(
        "expected TenSEAL 0.3.18's bytes for encrypted sums, found others: install that release of it (fedrounds[ckks] does)"
    )


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field of a protocol buffer, as far as TenSEAL's have them."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match key & 7:
            case 0:
                start, (_, at) = at, _read_varint(data, at)
                yield key >> 3, data[start:at]
                continue
            case 2:
                size, at = _read_varint(data, at)
            case _:
                size = 8
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift, more = at + 1, shift + 7, data[at] & 128
        if not more:
            return value, at


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _packed(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _scale() -> bytes:
    return _varint(3 << 3 | 1) + np.array(2.0**SCALE, "<f8").tobytes()
