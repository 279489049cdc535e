"""Masks: random words that are added to what a site sends, and cancel in the sum (Bonawitz et al. 2017).

A mask is the key stream of AES-256 in counter mode under a seed that serves once, read as little-endian words. Words wrap around, so
addition modulo 2^16, 2^32 or 2^64 hides a word perfectly as far as the stream is random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy.grid import Unsigned

Words = Mapping[str, Unsigned]  # arrays of <u2, <u4 or <u8, in one order at every site
Sign = Literal[1, -1]

CHUNK = 1 << 17  # bytes of key stream at a time: they stay in the processor's cache
NOTHING = bytes(CHUNK)


def seed(secret: bytes, *words: bytes) -> bytes:
    """A seed of 32 bytes out of a secret, for one purpose (HKDF-SHA256, RFC 5869)."""
    info = b"".join(len(word).to_bytes(2, "little") + word for word in (b"fedrounds", *words))
    return HKDF(SHA256(), 32, None, info).derive(secret)


def opened(private: bytes) -> X25519PrivateKey:
    """A private key, ready for use: that costs as much as one exchange, so who has many exchanges with it does it once."""
    return X25519PrivateKey.from_private_bytes(private)


def shared(private: X25519PrivateKey, public: bytes) -> bytes:
    """What two sites know that nobody else does (X25519, RFC 7748): 32 bytes.

    Raises:
        UpdateRejected: the public key is one of the few that give everybody the same.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise UpdateRejected(
            "expected a public key that belongs to somebody, found a weak one: it was refused"
        ) from None


def key_pair() -> tuple[bytes, bytes]:
    """A private and a public X25519 key, from the operating system's entropy."""
    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw()


def public_half(private: bytes) -> bytes:
    """The public key of a private one."""
    return opened(private).public_key().public_bytes_raw()


def mask(words: Words, seeds: Iterable[tuple[bytes, Sign]]) -> None:
    """Add the stream of every seed to the words, arrays of any shape, or take it away, in place.

    Guarantees:
        * what one call adds another takes away exactly, whatever the words: the arithmetic is modulo 2^16, 2^32 or 2^64;
        * a seed's stream runs on from one array to the next: no two words get the same part of it.
    """
    streams = [
        (Cipher(AES(seed), CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract) for seed, sign in seeds
    ]
    buffer = bytearray(CHUNK + 16)
    for array in words.values():
        flat = array.reshape(-1)
        step = CHUNK // flat.itemsize
        stream = np.frombuffer(buffer, flat.dtype, step)
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            for encryptor, apply in streams:
                encryptor.update_into(memoryview(NOTHING)[: part.nbytes], buffer)
                apply(part, stream[: part.size], out=part)
