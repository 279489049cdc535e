"""Shamir's secret sharing (1979): a secret of 32 bytes is dealt to n holders so that any t of them can tell it, and fewer know nothing.

The secret is the value at 0 of a random polynomial of degree t - 1 over the prime field of 2^521 - 1; holder j gets its value at j.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

from fedrounds.core.errors import UpdateRejected

PRIME = 2**521 - 1
SECRET = 32  # bytes
SHARE = 66  # bytes


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """A share for each holder, 66 bytes; the first is the value at 1.

    The coefficients are drawn from the operating system.

    Guarantees:
        * any `threshold` shares give the secret (`combine`);
        * fewer are independent of it: for every secret there is exactly one polynomial through them.

    Raises:
        ValueError: the secret is not 32 bytes, or the threshold is not from 1 to the number of holders.
    """
    if len(secret) != SECRET or not 1 <= threshold <= holders:
        raise ValueError(f"expected 32 bytes and a threshold from 1 to {holders}, found {len(secret)} and {threshold}")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "little")
    shares: list[bytes] = []
    for x in range(1, holders + 1):
        value = 0
        for coefficient in coefficients:  # of the highest power first
            value = (value * x + coefficient) % PRIME
        shares.append(((value * x + constant) % PRIME).to_bytes(SHARE, "little"))
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the shares of at least `threshold` holders (by number, from 1); the rest are not looked at.

    Raises:
        UpdateRejected: there are too few shares, or those at hand are not of one secret of 32 bytes (one of them is wrong).
    """
    if len(shares) < threshold:
        raise UpdateRejected(
            f"expected the shares of {threshold} holders, found {len(shares)}: the secret stays closed"
        )
    holders = tuple(sorted(shares))[:threshold]
    weights = _weights(holders)
    value = sum(w * int.from_bytes(shares[x], "little") for x, w in zip(holders, weights, strict=True)) % PRIME
    if value >> (8 * SECRET):
        raise UpdateRejected(
            "expected shares of one secret, found some that do not belong together: one of them is wrong"
        )
    return value.to_bytes(SECRET, "little")


@lru_cache(maxsize=64)
def _weights(holders: Sequence[int]) -> tuple[int, ...]:
    """Lagrange's weights at 0: the same holders answer for every secret of a round, so they are worked out once."""
    weights: list[int] = []
    for x in holders:
        others = [other for other in holders if other != x]
        top, bottom = prod(others) % PRIME, prod(other - x for other in others) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(weights)
