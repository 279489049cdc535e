"""An exchange under encryption, without any input or output: what `core/round.py` asks, and what a site answers, where sums are encrypted.

    keys (everybody) → shares (the key holder)       once an epoch: as many exchanges as a batch holds
    train, score, … (everybody) → open (the holder)  each exchange; then the coordinator knows the sum of those who were heard

The cryptography is `core/privacy/holder.py`; here its words become messages. A site that is lost on the way is left out of the sum, as long
as there are enough; without the holder nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, cast

import numpy as np

from fedrounds.core import identity
from fedrounds.core.encrypting import names_of
from fedrounds.core.errors import QuorumError, StudyError, UpdateRejected
from fedrounds.core.masked import Opened, enough, noted
from fedrounds.core.messages import Ask, Reply, Request, encode
from fedrounds.core.params import Array
from fedrounds.core.phases import Phase, subject_of
from fedrounds.core.privacy import ckks, digits, holder, tag
from fedrounds.core.privacy.digits import Layout
from fedrounds.core.privacy.epoch import Bytes, Fields, as_bytes, as_number, as_word
from fedrounds.core.privacy.holder import SEALED, Key
from fedrounds.core.privacy.settings import Ckks
from fedrounds.core.study import Study

MOST_PARAMETERS = 2_000_000


def protecting(study: Study) -> Ckks | None:
    """How sums are encrypted, None where they are not."""
    return study.privacy.protect if isinstance(study.privacy.protect, Ckks) else None


def require(study: Study, parameters: int) -> None:
    """Raise StudyError where a study's model is too large to be encrypted."""
    if protecting(study) and parameters > MOST_PARAMETERS:
        raise StudyError(
            f"expected a model of at most {MOST_PARAMETERS:,} parameters for encrypted sums, found {parameters:,}: use masked sums"
        )


def third_party(study: Study) -> str:
    """Who holds the key and has no patients; empty where nobody is so."""
    protect = protecting(study)
    return (protect and protect.holder) or ""


def patients(study: Study, names: Iterable[str]) -> list[str]:
    """Those of some names that have patients: all but a third party that holds the key."""
    holder = third_party(study)
    return [name for name in names if name != holder]


def among(protect: Ckks, sites: Iterable[str]) -> None:
    """Raise StudyError unless the sites are enough and not too many for a sum to be exact, and the key holder is one of them or, if it is a
    third party, none.
    """
    known = set(sites)
    if protect.holder in known:
        raise StudyError(
            f"expected the key holder '{protect.holder}' outside the sites, as `holder` has no patients, found it among them: drop its site"
            " file, or name it by `key_holder`"
        )
    if protect.holder is None and protect.key_holder not in known:
        raise StudyError(
            f"expected the key holder '{protect.key_holder}' among the sites, found {', '.join(sorted(known)[:8])}: name one of them"
        )
    if len(known) < protect.least:
        raise StudyError(
            f"expected at least {protect.least} sites for encrypted sums, found {len(known)}: none would be opened"
        )
    ckks.require(len(known))


@dataclass(frozen=True)
class Keyring:
    """The public side of an epoch, and the first index that is still unused."""

    key: Key
    batch: int
    next: int = 0

    def serves(self, sites: Sequence[str]) -> bool:
        """Whether one more exchange with these sites can be under it."""
        return self.next < self.batch and set(sites) <= set(self.key.members)


@dataclass(frozen=True)
class Encrypting:
    """Where an exchange under encryption stands, at the coordinator.

    Args:
        outer: what is asked.
        sites: whom this step asks.
        wanted: whose sums are wanted.
        roster: site -> public Ed25519 key.
        number: of the next epoch, should one be needed: higher than any before.
        quorum: sites that the study wants in each sum.
        layout: of the words that the sums become.
        before: what was asked -> the sites of which it may have been opened already.
    """

    outer: Request
    sites: tuple[str, ...]
    wanted: tuple[str, ...]
    roster: Mapping[str, bytes]
    number: int
    protect: Ckks
    quorum: int
    layout: Layout
    phase: Phase = "keys"
    keyring: Keyring | None = None
    keys: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict[str, tuple[bytes, bytes]])
    total: ckks.Residues | None = None  # (chunks, 2, DEGREE)
    parts: Mapping[str, tuple[bytes, bytes, bytes]] = field(default_factory=dict[str, tuple[bytes, bytes, bytes]])
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    # --- what is asked ------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> tuple[str, ...]:
        """Who was heard."""
        return tuple(sorted(self.parts))

    @property
    def ring(self) -> Keyring:
        """The keys of this exchange."""
        assert self.keyring is not None
        return self.keyring

    @property
    def announcement(self) -> Request:
        """The request for encrypted sums: the same for every site, with all that it takes to encrypt."""
        key = self.ring.key
        announced: dict[str, Any] = {
            "ckks.epoch": as_word(key.number),
            "ckks.index": as_word(self.ring.next, 4),
            "ckks.members": names_of(key.members),
            "ckks.public": key.public,
            "ckks.publics": key.publics,
            "ckks.sealed": key.sealed,
            "ckks.signature": as_bytes(key.signature),
        }
        return replace(self.outer, arrays={**self.outer.arrays, **announced})

    @cached_property
    def announced(self) -> bytes:
        """SHA-256 of the announcement."""
        return sha256(encode(self.announcement)).digest()

    @property
    def request(self) -> Request:
        """What is asked in this step."""
        arrays: dict[str, Any]
        match self.phase:
            case "keys":
                arrays = {"epoch": as_word(self.number)}
            case "shares":
                arrays = {
                    "members": names_of(sorted(self.keys)),
                    "publics": _rows(self.keys[one][0] for one in sorted(self.keys)),
                    "signatures": _rows(self.keys[one][1] for one in sorted(self.keys)),
                }
            case "open":
                said = [self.parts[one] for one in self.alive]
                arrays = {
                    "announced": as_bytes(self.announced),
                    "subject": as_bytes(subject_of(self.outer).encode()),
                    "members": names_of(self.alive),
                    "digests": _rows(digest for digest, _, _ in said),
                    "tags": _rows(mark for _, mark, _ in said),
                    "signatures": _rows(signature for _, _, signature in said),
                    "size": as_word(digits.size(self.layout)),
                    "sum": self.total,
                }
            case _:
                return self.announcement
        return replace(self.outer, ask=cast(Ask, self.phase), arrays=arrays)

    def private(self, _site: str) -> Mapping[str, Array]:
        """What is for one site alone: nothing, unlike under masks."""
        return {}

    @property
    def needed(self) -> int:
        """How many must answer this step."""
        if self.phase in ("shares", "open"):
            return 1
        third = self.phase == "keys" and self.protect.holder is not None  # it makes a key too, and counts for no sum
        return max(self.quorum, self.protect.least) + third

    @property
    def waits(self) -> int:
        """How many answers leave nobody to wait for."""
        return self.needed

    # --- what comes back ----------------------------------------------------------------------------------------------

    def step(self, replies: Iterable[Reply], refused: dict[str, str] | None = None) -> Encrypting | Opened:
        """Take the replies of a step, in site order: the next step, or the sum.

        Args:
            refused: who is lost by a reply that is not what it signed, and why, is added.

        Raises:
            QuorumError: too few are left, or the key holder did not answer; nothing was opened.
        """
        refused = {} if refused is None else refused
        match self.phase:
            case "keys":
                return self._keys(replies, refused)
            case "shares":
                return self._shares(replies, refused)
            case "open":
                return self._opened(replies, refused)
            case _:
                return self._heard(replies, refused)

    def _keys(self, replies: Iterable[Reply], refused: dict[str, str]) -> Encrypting:
        keys: dict[str, tuple[bytes, bytes]] = {}
        for reply in replies:
            public, signature = (reply.arrays[name].tobytes() for name in ("public", "signature"))
            with noted(reply.site, refused):
                holder.member(self.outer.study, self.number, reply.site, public, signature, self.roster)
                keys[reply.site] = public, signature
        enough(len(keys), self.needed, "keys")
        if self.protect.opener not in keys:
            raise self._away(refused)
        return replace(self, phase="shares", keys=keys, sites=(self.protect.opener,))

    def _shares(self, replies: Iterable[Reply], refused: dict[str, str]) -> Encrypting:
        for reply in replies:
            with noted(reply.site, refused):
                members, arrays = tuple(sorted(self.keys)), cast(Any, reply.arrays)
                publics = _rows(self.keys[one][0] for one in members)
                signature = arrays["signature"].tobytes()
                key = Key(self.number, members, publics, arrays["public"], arrays["sealed"], signature)
                holder.verify(key, self.outer.study, reply.site, self.roster)
                ring = Keyring(key, self.protect.batch)
                sites = tuple(one for one in self.wanted if one in self.keys)
                return replace(self, phase="masked", keyring=ring, sites=sites)
        raise self._away(refused)

    def _heard(self, replies: Iterable[Reply], refused: dict[str, str]) -> Encrypting:
        total: ckks.Residues | None = None
        parts: dict[str, tuple[bytes, bytes, bytes]] = {}
        size, subject = digits.size(self.layout), subject_of(self.outer)
        for reply in replies:
            arrays = cast(Any, reply.arrays)
            cipher, mark, signature = arrays["cipher"], arrays["tag"], arrays["signature"].tobytes()
            with noted(reply.site, refused):
                digest = holder.heard(reply.site, self.announced, subject, cipher, mark, signature, size, self.roster)
                parts[reply.site] = digest, mark.tobytes(), signature
                if total is None:
                    total = cipher.copy()
                else:
                    ckks.add(total, cipher)
        enough(len(parts), self.needed, "encrypted sums")
        return replace(self, phase="open", total=total, parts=parts, sites=(self.protect.opener,))

    def _opened(self, replies: Iterable[Reply], refused: dict[str, str]) -> Opened:
        for reply in replies:
            with noted(reply.site, refused):
                found = reply.arrays["digits"].view(np.int64)
                words = holder.words_of_sum(self.announced, reply.site, holder.digest_of_sites(self.alive), found)
                if not identity.sealed(self.roster[reply.site], words, reply.arrays["signature"].tobytes()):
                    raise UpdateRejected(f"expected a sum signed by '{reply.site}', found another: it was refused")
                ring = replace(self.ring, next=self.ring.next + 1)
                return Opened(digits.join(found, self.layout), self.alive, ring, self.protect.counted(self.roster))
        raise self._away(refused)

    def _away(self, refused: Mapping[str, str]) -> QuorumError:
        name = self.protect.opener
        return QuorumError(
            f"expected the key holder '{name}' to answer, without whom no sum is opened, found that it did not:"
            f" {refused.get(name, 'it is away')}"
        )


def begin(
    outer: Request, sites: tuple[str, ...], roster: Mapping[str, bytes], number: int, protect: Ckks, quorum: int,
    layout: Layout, keyring: object, before: Mapping[str, tuple[str, ...]],
) -> Encrypting:  # fmt: skip
    """An exchange under encryption, at its first step. Raises StudyError where the roster does not name the key holder."""
    if protect.opener not in roster:
        raise StudyError(
            f"expected the key holder '{protect.opener}' on the roster, found {', '.join(sorted(roster)[:8])}: it must join, and all agree on its key"
        )
    among(protect, [name for name in roster if name != protect.holder])
    everybody = tuple(sorted({*sites, protect.opener}))
    opened = Encrypting(outer, everybody, sites, roster, number, protect, quorum, layout, before=before)
    if isinstance(keyring, Keyring) and keyring.serves(sites):
        return replace(opened, phase="masked", keyring=keyring, sites=sites)
    return opened


def expected(request: Request, layout: Layout) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array that a reply to this request must hold."""
    arrays = cast(Fields, request.arrays)
    signature = {"signature": ((64,), "|u1")}
    match request.ask:
        case "keys":
            return {"public": ((32,), "|u1"), **signature}
        case "shares":
            public, sealed = (2, 2, ckks.DEGREE), (arrays["publics"].shape[0], SEALED)
            return {"public": (public, "<u8"), "sealed": (sealed, "|u1"), **signature}
        case "open":
            return {"digits": ((as_number(arrays["size"]),), "<u8"), **signature}
        case _:
            cipher = ckks.cipher_shape(digits.size(layout))
            return {"cipher": (cipher, "<u8"), "tag": ((tag.ROWS,), "<u8"), **signature}


def _rows(rows: Iterable[bytes]) -> Bytes:
    return np.stack([as_bytes(row) for row in rows])
