"""Tags by which the key holder knows that what it is given is the sum of what the sites sent, and not one site's part.

A linearly homomorphic authenticator (Agrawal and Boneh 2009; Carter and Wegman's hash with one-time pads): the sites and the holder know
rows r of small numbers that the coordinator does not. A site's tag is r · c + pad modulo the prime, c its residues and the pad its own
secret with the holder, for these residues alone. Tags and residues are added up alike, so the tag of a true sum is the sum of the tags.

Guarantees, against a coordinator that knows no site's secret:
    * a sum that is another than that of the very residues that were tagged passes with a chance of 2^-120 (`holds`);
    * a tag says nothing of rows: its pad serves once, so two sites' tags cannot be combined into another's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedrounds.core.privacy import masks
from fedrounds.core.privacy.ckks import PRIMES, Residues

ROWS = 4
SMALL = 30  # bits of a row's numbers: each row catches another sum but for a chance of 2^-30
LIMB = 20  # bits: 2^14 products of 30 and 20 bits fit a word
PRIME = PRIMES[0]
Tag = NDArray[np.uint64]  # (ROWS,)


def of(seed: bytes, pad: bytes, cipher: Residues) -> Tag:
    """The tag (ROWS,) of residues (chunks, 2, DEGREE).

    Args:
        seed: 32 bytes of the rows.
        pad: 32 bytes, which serve these residues alone.
    """
    return np.array([(a + b) % PRIME for a, b in zip(_hashed(seed, cipher), _pads(pad), strict=True)], np.uint64)


def holds(seed: bytes, pads: Iterable[bytes], tags: Iterable[Tag], cipher: Residues) -> bool:
    """Whether residues (chunks, 2, DEGREE) are the sum of those that were tagged, (ROWS,) each.

    Guarantees:
        * one site's residues for a sum, a sum with one left out, or one counted twice, does not pass.
    """
    wanted = [0] * ROWS
    for pad, tag in zip(pads, tags, strict=True):
        wanted = [(w + int(t) - p) % PRIME for w, t, p in zip(wanted, tag, _pads(pad), strict=True)]
    return wanted == _hashed(seed, cipher)


def _hashed(seed: bytes, cipher: Residues) -> list[int]:
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    found = [0] * ROWS
    size = cipher[0].size if len(cipher) else 0
    for chunk in cipher:
        rows = np.frombuffer(stream.update(bytes(4 * ROWS * size)), "<u4") & np.uint32((1 << SMALL) - 1)
        rows = rows.astype(np.uint64).reshape(ROWS, size)
        flat = chunk.reshape(-1)
        for limb in range(3):
            part = flat >> np.uint64(LIMB * limb) & np.uint64((1 << LIMB) - 1)
            found = [one + (int(row @ part) << LIMB * limb) for one, row in zip(found, rows, strict=True)]
    return [one % PRIME for one in found]


def _pads(pad: bytes) -> list[int]:
    wide = b"".join(masks.seed(pad, b"row", bytes([row])) for row in range(ROWS))
    return [int.from_bytes(wide[32 * row : 32 * row + 32], "little") % PRIME for row in range(ROWS)]
