"""Under whose keys a study's sums are hidden, as its audit log holds it: each roster, with the signatures of those who go by it.

A member that makes keys signs them together with the digest of the roster that its people agreed on outside the coordinator. These
signatures stand in the log, so that whoever has the log alone can tell who went by which roster, and that no question was asked under another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from fedrounds.core import identity
from fedrounds.core.encrypted import Encrypting
from fedrounds.core.errors import LogBroken, StateError
from fedrounds.core.groups import Grouped
from fedrounds.core.masked import Masking
from fedrounds.core.phases import PHASES
from fedrounds.core.privacy.epoch import FEWEST, roster_digest, threshold
from fedrounds.core.privacy.log import kind_of

Sums = Literal["masked", "ckks"]
WORDS: Mapping[str, str] = {"masked": "fedrounds keys", "ckks": "fedrounds ckks member"}  # that a signature begins with
PLACE = "leaf {} of the log: "


@dataclass(frozen=True)
class Agreed:
    """A roster that a question is asked under.

    Args:
        number: of the epoch whose keys were signed.
        roster: site -> public Ed25519 key.
        signed: site -> what it made (32 bytes: SHA-256 of its keys, or its key) and its signature over that, the epoch and the roster's
            digest; empty where the question is not the one that rests on them first.
    """

    sums: Sums
    number: int
    roster: Mapping[str, bytes]
    signed: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict[str, tuple[bytes, bytes]])

    @property
    def digest(self) -> str:
        """Its SHA-256, hex."""
        return roster_digest(self.roster).hex()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its leaf says."""
        return {
            "digest": self.digest,
            "sums": self.sums,
            "epoch": self.number,
            "keys": {site: key.hex() for site, key in self.roster.items()},
            "signed": {
                site: {"made": made.hex(), "signature": signature.hex()}
                for site, (made, signature) in self.signed.items()
            },
        }


def rosters_of(masking: Masking | Grouped | Encrypting | None) -> list[Agreed]:
    """Under which rosters a step is asked: one, under masks by groups one a group; none where nothing is hidden."""
    if masking is None:
        return []
    if isinstance(masking, Grouped):
        return [agreed for one in masking.groups.values() for agreed in rosters_of(one)]
    if isinstance(masking, Encrypting):
        agreed = Agreed("ckks", masking.number, masking.roster)
        return [replace(agreed, signed=masking.keys) if masking.phase == "shares" else agreed]
    signed = dict[str, tuple[bytes, bytes]]()
    if masking.phase == "shares" and (epoch := masking.epoch):
        for site, masks, seals, signature in zip(
            epoch.members, epoch.mask_keys, epoch.seal_keys, epoch.signatures, strict=True
        ):
            made = sha256(np.ascontiguousarray(masks).tobytes() + np.ascontiguousarray(seals).tobytes()).digest()
            signed[site] = made, signature.tobytes()
    return [Agreed("masked", masking.number, masking.roster, signed)]


def require(statements: Sequence[Mapping[str, Any]]) -> list[str]:
    """The digests of the rosters that a log holds, hex, if all that was asked under cover was asked under one of them.

    Guarantees:
        * a leaf about a roster is refused unless its digest is that of its keys, and enough of these have signed for it: ⌊2n/3⌋ + 1 of n
          where sums are masked, three where they are encrypted;
        * a question under a roster that no leaf before it holds is named. Only the one that asks for keys comes before: its answers are
          those signatures;
        * a question that names no roster is named, in a study that hides its sums.

    Args:
        statements: of a log that adds up (`log.examine`).

    Raises:
        LogBroken: the first leaf that is not so.
    """
    held: list[str] = []
    study, hides = "", False
    for index, said in enumerate(statements):
        kind, facts = kind_of(said), said["predicate"]
        if kind == "begun":
            study, hides = str(facts.get("digest")), "sums" in facts
        elif kind == "roster":
            held.append(_sound(index, facts, study))
            hides = True
        elif kind == "asked":
            _held(index, facts, held, hides)
    return held


def _sound(index: int, facts: Mapping[str, Any], study: str) -> str:
    try:
        keys = {str(site): bytes.fromhex(key) for site, key in facts["keys"].items()}
        agreed, sums, digest = roster_digest(keys), facts["sums"], str(facts["digest"])
        head = f"{WORDS[sums]}\0{study}\0{facts['epoch']}\0"
        signed = [
            identity.sealed(
                keys[site],
                f"{head}{site}\0".encode() + bytes.fromhex(its["made"]) + agreed,
                bytes.fromhex(its["signature"]),
            )
            for site, its in facts["signed"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, StateError):
        raise LogBroken(
            f"{PLACE.format(index)}expected a roster of keys with signatures, found something else"
        ) from None
    if agreed.hex() != digest:
        raise LogBroken(
            f"{PLACE.format(index)}expected the keys of the roster {digest[:12]}, found those of {agreed.hex()[:12]}: they were swapped"
        )
    needed = max(FEWEST, threshold(len(keys))) if sums == "masked" else FEWEST
    if sum(signed) < needed or not all(signed):
        raise LogBroken(
            f"{PLACE.format(index)}expected the roster {digest[:12]} signed by {needed} of its {len(keys)} members or more, found"
            f" {sum(signed)} signatures that fit, of {len(signed)}: they have not agreed on it"
        )
    return digest


def _held(index: int, facts: Mapping[str, Any], held: Iterable[str], hides: bool) -> None:
    ask, named = facts.get("ask"), facts.get("rosters")
    if not named:
        if ask in PHASES or (hides and ask != "gate"):
            raise LogBroken(
                f"{PLACE.format(index)}expected a question that names the roster that it was asked under, found none named"
            )
        return
    for digest in named:
        if digest not in held and ask != "keys":
            raise LogBroken(
                f"{PLACE.format(index)}expected a question under a roster that the log holds, found it asked under {str(digest)[:12]}, which"
                " no leaf before it holds: the roster was swapped"
            )
