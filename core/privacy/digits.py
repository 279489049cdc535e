"""Words of a masked sum as numbers small enough for an encryption that adds them exactly, and back.

A word of 16 or 32 bits is one number. A word of 64 bits is three, of 22 bits each but for the last: sums of up to 1024 sites' stay within 2^31.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedrounds.core.privacy.ckks import Digits
from fedrounds.core.privacy.masks import Words

LIMB = 22
HALF = 1 << (LIMB - 1)
LIMBS = 3
Layout = Mapping[str, tuple[int, str]]  # name -> length and type of its words


def size(layout: Layout) -> int:
    """How many numbers the words of a sheet become."""
    return sum(length * _limbs(kind) for length, kind in layout.values())


def split(words: Words) -> Digits:
    """Words as numbers (size of their layout,): of each array one after another, its limbs of lowest value first.

    >>> split({"a": np.array([65535, 2], np.uint16), "b": np.array([2**64 - 1, 2**22], np.uint64)}).tolist()
    [-1, 2, -1, 0, 0, 1, 0, 0]
    """
    found: list[Digits] = []
    for array in words.values():
        left = array.view(f"<i{array.itemsize}").astype(np.int64)
        for _ in range(_limbs(array.dtype.str) - 1):
            low = (left + HALF & (2 * HALF - 1)) - HALF
            found.append(low)
            left = left - low >> LIMB
        found.append(left)
    return np.concatenate(found)


def join(digits: Digits, layout: Layout) -> dict[str, Any]:
    """The words again, each array (length,) of its type, from numbers (size of the layout,) or from sums of them.

    Guarantees:
        * the words of a sum of numbers are the sum of the words, modulo 2^16, 2^32 or 2^64.
    """
    found: dict[str, Any] = {}
    start = 0
    for name, (length, kind) in layout.items():
        total = np.zeros(length, np.uint64)
        for limb in range(_limbs(kind)):
            part = digits[start : start + length].view(np.uint64)
            total += part << np.uint64(LIMB * limb)
            start += length
        found[name] = total.astype(kind)
    return found


def _limbs(kind: str) -> int:
    return LIMBS if kind.endswith("8") else 1
