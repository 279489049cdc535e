"""An epoch of secure aggregation: the public keys of a batch of exchanges, by members who signed for them; and who shares with whom.

All bounds go by the size of the roster, not of the epoch: a coordinator chooses who is in an epoch, and would choose those who are with
it. Up to COMPLETE members everybody shares masks with everybody. In a larger federation each does with as many on a ring (after Bell et al.
2020) that those who lie and those who are lost together, each fewer than a third of the roster, can neither surround a member nor cut the
ring: so whoever draws the ring, and draws it again and again, gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy import shamir

Bytes = NDArray[np.uint8]
Fields = Mapping[str, NDArray[np.uint8]]  # named byte arrays, as a message carries them

FEWEST = 3  # members; with two, each knows the other's part of the sum
COMPLETE = 64  # up to so many members, each shares masks with all others
SHARES = 2 * shamir.SHARE  # bytes: of the own mask's seed, and of the key
SEALED = SHARES + 16
PRIME = 2**255 - 19
EIGHTH = 325606250916557431795983626356110631294008115727848805560023387167927233504
TWISTED = 39382357235489614581723060781553021112529911719440698176882885853963445705823
WEAK = {0, 1, PRIME - 1, EIGHTH, TWISTED}  # X25519 with these gives everybody the same
MARK = 16  # bytes of a share's digest by which it is known again


def threshold(roster: int) -> int:
    """How many of a roster of so many must answer: ⌊2n/3⌋ + 1, so that fewer than a third who lie cannot make two sets of survivors.

    >>> [threshold(n) for n in (3, 4, 7, 10, 50, 200)]
    [3, 3, 5, 7, 34, 134]
    """
    return 2 * roster // 3 + 1


def degree(members: int, roster: int) -> int:
    """With how many others a member shares masks: all, or from 65 members on two thirds of the roster, half of them on either side.

    Guarantees:
        * to surround a member, or to cut the ring in two, takes 2⌈n/3⌉ others; those who lie and those who are lost are 2⌈n/3⌉ - 2 at most.
    """
    return members - 1 if members <= COMPLETE else min(members - 1, 2 * -(-roster // 3))


def quorum_of_shares(members: int, roster: int) -> int:
    """How many shares give a secret.

    Guarantees:
        * more than lie, who are ⌈n/3⌉ - 1 at most; and as many as are left among its holders wherever `threshold` members answer.
    """
    return threshold(roster) if members <= COMPLETE else -(-roster // 3) + 1


@dataclass(frozen=True)
class Epoch:
    """The public keys of a batch of rounds, by those who signed them.

    Args:
        identities: (n, 32) of the members, in name order.
        mask_keys, seal_keys: (n, batch, 32).
        signatures: (n, 64) each member's own, over its keys, the study, the epoch's number and the roster.
        roster: how many the roster names.
    """

    study: str
    number: int
    members: tuple[str, ...]
    identities: Bytes
    mask_keys: Bytes
    seal_keys: Bytes
    signatures: Bytes
    roster: int

    @property
    def threshold(self) -> int:
        """How many must sign and survive."""
        return threshold(self.roster)

    @property
    def batch(self) -> int:
        """How many exchanges it serves."""
        return self.mask_keys.shape[1]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over every word of it."""
        sha = sha256(
            f"fedrounds epoch\0{self.study}\0{self.number}\0{self.roster}\0{chr(0).join(self.members)}\0".encode()
        )
        for part in (self.identities, self.mask_keys, self.seal_keys, self.signatures):
            sha.update(np.ascontiguousarray(part).tobytes())
        return sha.digest()

    def neighbours(self) -> Mapping[str, tuple[str, ...]]:
        """With whom each member shares masks and secrets, itself left out."""
        return _neighbours(self.members, self.digest, degree(len(self.members), self.roster))

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Who holds shares of each member's secrets: its neighbours and itself, in name order."""
        return _holders(self.members, self.digest, degree(len(self.members), self.roster))

    def fields(self) -> Fields:
        """The epoch as the arrays of a message, each of the shape that it has here."""
        return {
            "epoch": as_word(self.number),
            "roster": as_word(self.roster),
            "members": as_bytes("\n".join(self.members).encode()),
            "identities": self.identities,
            "mask_keys": self.mask_keys,
            "seal_keys": self.seal_keys,
            "signatures": self.signatures,
        }


def epoch_of(study: str, number: int, keys: Iterable[tuple[str, Fields]], roster: Mapping[str, bytes]) -> Epoch:
    """Put the members' keys together, in name order.

    Args:
        keys: member -> what `secagg.make_keys` gave.

    Raises:
        UpdateRejected: a key is signed by nobody whom the roster names, or there are too few members.
    """
    listed = sorted(keys, key=lambda one: one[0])
    parts = {name: np.stack([keys[name] for _, keys in listed]) for name in ("mask_keys", "seal_keys", "signature")}
    members = tuple(site for site, _ in listed)
    identities = np.stack([as_bytes(roster[site]) for site in members])
    mask_keys, seal_keys, signatures = (parts[name] for name in ("mask_keys", "seal_keys", "signature"))
    epoch = Epoch(study, number, members, identities, mask_keys, seal_keys, signatures, len(roster))
    verify(epoch, roster)
    return epoch


def read_epoch(study: str, fields: Fields) -> Epoch:
    """The epoch that a message carries. Raises UpdateRejected where its parts do not fit each other."""
    members = tuple(_text(fields["members"]).split("\n"))
    n = len(members)
    if members != tuple(sorted(set(members))) or any(not identity.SITE.fullmatch(site) for site in members):
        raise UpdateRejected("expected the members of an epoch in name order, each once, found others: it was refused")
    batch = fields["mask_keys"].shape[1] if fields["mask_keys"].ndim == 3 else 0
    wanted = {"identities": (n, 32), "mask_keys": (n, batch, 32), "seal_keys": (n, batch, 32), "signatures": (n, 64)}
    for name, shape in wanted.items():
        if fields[name].shape != shape or not batch:
            raise UpdateRejected(f"expected {name} of shape {shape}, found {fields[name].shape}: it was refused")
    return Epoch(
        study,
        _read_number(fields["epoch"]),
        members,
        *(fields[name] for name in wanted),
        roster=_read_number(fields["roster"]),
    )


def verify(epoch: Epoch, roster: Mapping[str, bytes]) -> None:
    """Raise UpdateRejected unless enough of the roster are members, and each has signed its keys for this epoch.

    Guarantees:
        * nothing of the size of the epoch is made before its members are known to be the roster's;
        * weak keys, and keys written in another way than the one that X25519 gives, are refused, and whose they are is said: else one
          member could give itself another's key in other words;
        * no key is there twice.
    """
    if epoch.roster != len(roster) or not max(FEWEST, epoch.threshold) <= len(epoch.members) <= len(roster):
        raise UpdateRejected(
            f"expected at least {max(FEWEST, threshold(len(roster)))} of the {len(roster)} sites of the roster for masked sums,"
            f" found {len(epoch.members)}: the epoch was refused"
        )
    agreed = roster_digest(roster)
    for at, site in enumerate(epoch.members):
        if roster.get(site) != epoch.identities[at].tobytes():
            raise UpdateRejected(f"expected the roster's key of '{site}', found another: the epoch was refused")
        keys = epoch.mask_keys[at], epoch.seal_keys[at]
        _signed(epoch.study, epoch.number, site, *keys, epoch.signatures[at], roster[site], agreed)
    for keys in (epoch.mask_keys, epoch.seal_keys):
        if len({key.tobytes() for key in keys.reshape(-1, 32)}) < keys.size // 32:
            raise UpdateRejected("expected every key of an epoch once, found one twice: the epoch was refused")


def signed_by(study: str, number: int, site: str, keys: Fields, roster: Mapping[str, bytes]) -> None:
    """Raise UpdateRejected unless a member's answer holds keys (batch, 32) that it signed for this epoch, under this roster, none of them weak."""
    parts = keys["mask_keys"], keys["seal_keys"], keys["signature"]
    _signed(study, number, site, *parts, roster.get(site, b""), roster_digest(roster))


def _signed(
    study: str,
    number: int,
    site: str,
    mask_keys: Bytes,
    seal_keys: Bytes,
    signature: Bytes,
    owner: bytes,
    agreed: bytes,
) -> None:
    words = words_of_keys(study, number, site, mask_keys, seal_keys, agreed)
    if not owner or not identity.sealed(owner, words, signature.tobytes()):
        raise UpdateRejected(f"expected keys signed by '{site}', found others: the epoch was refused")
    for key in (*mask_keys, *seal_keys):
        value = as_number(key)
        if value >= PRIME or value in WEAK:
            raise UpdateRejected(f"expected keys that belong to somebody, found a weak one of '{site}': suspend it")


def roster_digest(roster: Mapping[str, bytes]) -> bytes:
    """SHA-256 of a roster: names and public keys, in name order."""
    return sha256(
        b"fedrounds roster\0" + b"".join(name.encode() + b"\0" + roster[name] for name in sorted(roster))
    ).digest()


def words_of_keys(study: str, number: int, site: str, mask_keys: Bytes, seal_keys: Bytes, agreed: bytes) -> bytes:
    """What a member signs when it makes keys (batch, 32): that they are for this epoch, and by the digest of which roster it goes."""
    head = f"fedrounds keys\0{study}\0{number}\0{site}\0".encode()
    return head + sha256(mask_keys.tobytes() + seal_keys.tobytes()).digest() + agreed


def as_bytes(data: bytes) -> Bytes:
    """Bytes as an array of a message, (length,)."""
    return np.frombuffer(data, np.uint8)


def as_word(value: int, size: int = 8) -> Bytes:
    """A number as so many bytes of a message, (size,), the lowest first."""
    return as_bytes(value.to_bytes(size, "little"))


def as_number(array: Bytes) -> int:
    """The number in bytes (size,) of a message, of whatever size."""
    return int.from_bytes(array.tobytes(), "little")


def _read_number(array: Bytes) -> int:
    if array.shape != (8,):
        raise UpdateRejected(f"expected a number of 8 bytes, found {array.shape}: it was refused")
    return as_number(array)


def _text(array: Bytes) -> str:
    try:
        return array.tobytes().decode("ascii") if array.ndim == 1 else ""
    except UnicodeDecodeError:
        raise UpdateRejected("expected the names of members, found other bytes: it was refused") from None


@lru_cache(maxsize=8)
def _neighbours(members: tuple[str, ...], turn: bytes, near: int) -> Mapping[str, tuple[str, ...]]:
    ring = sorted(members, key=lambda site: sha256(turn + site.encode()).digest())
    n = len(members)
    if near >= n - 1:
        return {site: tuple(other for other in ring if other != site) for site in ring}
    steps = [*range(-(near // 2), 0), *range(1, near // 2 + 1)]
    return {site: tuple(ring[(at + step) % n] for step in steps) for at, site in enumerate(ring)}


@lru_cache(maxsize=8)
def _holders(members: tuple[str, ...], turn: bytes, near: int) -> Mapping[str, tuple[str, ...]]:
    return {site: tuple(sorted((*others, site))) for site, others in _neighbours(members, turn, near).items()}
