"""An exchange under masks, without any input or output: what `core/round.py` asks, and what a site answers, when a study protects its sums.

    keys → shares           once an epoch: as many exchanges as a batch holds
    masked → agree → open   each exchange; then the coordinator knows the sum of those who were heard, and folds it as one reply

The cryptography is `core/privacy/secagg.py`; here its words become messages. A reply that does not come, or is a refusal, is a site lost
at that phase: as long as ⌊2n/3⌋ + 1 members answer each phase, the exchange closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, cast

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.messages import Ask, Reply, Request, encode
from fedrounds.core.params import Array
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import secagg, shamir, unmask
from fedrounds.core.privacy.epoch import Bytes, Epoch, Fields, as_bytes
from fedrounds.core.privacy.masks import Words
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.sheet import Sheet

Phase = Literal["keys", "shares", "masked", "agree", "open"]
PHASES: frozenset[Ask] = frozenset({"keys", "shares", "agree", "open"})  # what touches no row
ANNOUNCED = ("mask.epoch", "mask.index", "mask.asked")  # what a request for masked sums says besides
TOGETHER = "(all sites)"  # whose the sums are; no site can be called so


def step_of(request: Request) -> int:
    """Where a request stands among those of its visit: exchange by exchange, and under masks phase by phase."""
    return 5 * request.exchange + {"keys": 0, "shares": 1, "agree": 3, "open": 4}.get(request.ask, 2)


@dataclass(frozen=True)
class Keyring:
    """The keys of an epoch as the coordinator holds them, and the first index that is still unused."""

    epoch: Epoch
    dealt: Mapping[str, Fields]
    next: int = 0

    def serves(self, sites: Sequence[str]) -> bool:
        """Whether one more exchange with these sites can be masked by it."""
        members = self.epoch.members
        enough = len(sites) >= self.epoch.threshold
        return self.next < self.epoch.batch and enough and set(sites) <= set(self.dealt) <= set(members)


@dataclass(frozen=True)
class Masking:
    """Where an exchange under masks stands, at the coordinator.

    Args:
        outer: what is asked under masks.
        sites: whom.
        roster: site -> public Ed25519 key.
        number: of the next epoch, should one be needed: higher than any before.
        quorum: sites that the study wants in each sum, whatever the masks need.
    """

    outer: Request
    sites: tuple[str, ...]
    roster: Mapping[str, bytes]
    number: int
    batch: int
    quorum: int
    phase: Phase = "keys"
    keyring: Keyring | None = None
    epoch: Epoch | None = None
    total: Words = field(default_factory=dict[str, Any])
    alive: tuple[str, ...] = ()
    uploads: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict[str, tuple[bytes, bytes]])
    signatures: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    # --- what is asked ------------------------------------------------------------------------------------------------

    @property
    def ring(self) -> Keyring:
        """The keys of this exchange."""
        assert self.keyring is not None
        return self.keyring

    @property
    def announcement(self) -> Request:
        """The request for masked sums: the same for every site, and what the masks are about."""
        members = self.ring.epoch.members
        announced: dict[str, Any] = {
            "mask.epoch": as_bytes(self.ring.epoch.digest),
            "mask.index": as_bytes(self.ring.next.to_bytes(4, "little")),
            "mask.asked": _flags(members, self.sites),
        }
        return replace(self.outer, arrays={**self.outer.arrays, **announced})

    @cached_property
    def announced(self) -> bytes:
        """SHA-256 of the announcement."""
        return sha256(encode(self.announcement)).digest()

    @property
    def request(self) -> Request:
        """What is asked of every site."""
        match self.phase:
            case "keys":
                arrays: Mapping[str, Any] = {"epoch": _word(self.number), "batch": _word(self.batch)}
            case "shares":
                assert self.epoch is not None
                arrays = self.epoch.fields()
            case "masked":
                return self.announcement
            case "agree":
                members = self.ring.epoch.members
                digests = _rows(members, {site: digest for site, (digest, _) in self.uploads.items()}, 32)
                signed = _rows(members, {site: signature for site, (_, signature) in self.uploads.items()}, 64)
                arrays = {**self._about(), "digests": digests, "signatures": signed}
            case "open":
                signed = _rows(self.ring.epoch.members, self.signatures, 64)
                arrays = {**self._about(), "asked": _flags(self.ring.epoch.members, self.sites), "signatures": signed}
        return replace(self.outer, ask=cast(Ask, self.phase), arrays=arrays)

    def private(self, site: str) -> Mapping[str, Array]:
        """What is for one site alone: what the others dealt to it."""
        if self.phase != "open":
            return {}
        ring = self.ring
        sealed = np.zeros((len(ring.epoch.members), epochs.SEALED), np.uint8)
        for dealer in self.sites:
            holders = ring.epoch.holders()[dealer]
            if site in holders:
                row = ring.dealt[dealer]["sealed"][ring.next, holders.index(site)]
                sealed[ring.epoch.members.index(dealer)] = row
        return cast(Mapping[str, Array], {"sealed": sealed})

    def _about(self) -> Mapping[str, Any]:
        return {
            "announced": as_bytes(self.announced),
            "index": as_bytes(self.ring.next.to_bytes(4, "little")),
            "alive": _flags(self.ring.epoch.members, self.alive),
        }

    @property
    def needed(self) -> int:
        """How many must answer this phase."""
        enough = max(epochs.FEWEST, epochs.threshold(len(self.roster)))
        return enough if self.phase in ("agree", "open") else max(self.quorum, enough)

    # --- what comes back ----------------------------------------------------------------------------------------------

    def step(self, replies: Iterable[Reply]) -> Masking | Opened:
        """Take the replies of a phase, in site order: the next phase, or the sum.

        Raises:
            QuorumError: too few are left for the sum to be opened; nothing was.
            UpdateRejected: shares are wrong.
        """
        match self.phase:
            case "keys":
                return self._keys(replies)
            case "shares":
                return self._shares(replies)
            case "masked":
                return self._masked(replies)
            case "agree":
                return self._agreed(replies)
            case "open":
                return self._opened(replies)

    def _keys(self, replies: Iterable[Reply]) -> Masking:
        keys = [(reply.site, cast(Fields, reply.arrays)) for reply in replies]
        _enough(len(keys), self.needed, "keys")
        epoch = epochs.epoch_of(self.outer.study, self.number, keys, self.roster)
        return replace(self, phase="shares", epoch=epoch, sites=epoch.members)

    def _shares(self, replies: Iterable[Reply]) -> Masking:
        assert self.epoch is not None
        dealt = {reply.site: cast(Fields, reply.arrays) for reply in replies}
        for site, fields in dealt.items():
            unmask.dealt_by(self.epoch, site, fields, self.roster)
        _enough(len(dealt), self.needed, "shares")
        return replace(self, phase="masked", keyring=Keyring(self.epoch, dealt), sites=tuple(sorted(dealt)))

    def _masked(self, replies: Iterable[Reply]) -> Masking:
        total: dict[str, Any] = {}
        uploads: dict[str, tuple[bytes, bytes]] = {}
        for reply in replies:
            words = {name: array for name, array in reply.arrays.items() if name != "signature"}
            signature = reply.arrays["signature"].tobytes()
            found = unmask.heard(
                self.ring.epoch, self.announced, reply.site, cast(Words, words), signature, self.roster
            )
            for name, array in words.items():
                if name in total:
                    total[name] += array
                else:
                    total[name] = array.copy()
            uploads[reply.site] = found
        _enough(len(uploads), self.needed, "masked sums")
        return replace(self, phase="agree", total=total, alive=tuple(uploads), uploads=uploads)

    def _agreed(self, replies: Iterable[Reply]) -> Masking:
        said = {reply.site: reply.arrays["signature"].tobytes() for reply in replies}
        signatures = unmask.signatures_over(self.announced, self.alive, said, self.roster)
        _enough(len(signatures), self.needed, "signatures over who was heard")
        return replace(self, phase="open", signatures=signatures)

    def _opened(self, replies: Iterable[Reply]) -> Opened:
        opened = {reply.site: cast(Bytes, reply.arrays["shares"]) for reply in replies}
        _enough(len(opened), self.needed, "shares of masks")
        ring, total = self.ring, {name: array.copy() for name, array in self.total.items()}
        unmask.unmask(ring.epoch, total, self.announced, ring.next, self.sites, self.alive, ring.dealt, opened)
        return Opened(total, self.alive, replace(ring, next=ring.next + 1), len(ring.epoch.members))


@dataclass(frozen=True)
class Opened:
    """The sum of the words of those who were heard."""

    words: Words
    heard: tuple[str, ...]
    keyring: Keyring
    members: int


def expected(request: Request, words: Mapping[str, tuple[int, str]]) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every array that a reply to this request must hold.

    Args:
        words: of masked sums: name -> length and type.
    """
    arrays = request.arrays
    signature = {"signature": ((64,), "|u1")}
    match request.ask:
        case "keys":
            keys = ((int.from_bytes(arrays["batch"].tobytes(), "little"), 32), "|u1")
            return {"mask_keys": keys, "seal_keys": keys, **signature}
        case "shares":
            n, batch, _ = arrays["mask_keys"].shape
            holders = epochs.degree(n, int.from_bytes(arrays["roster"].tobytes(), "little")) + 1
            sealed, marks = (batch, holders, epochs.SEALED), (batch, holders, 2, epochs.MARK)
            return {"sealed": (sealed, "|u1"), "marks": (marks, "|u1"), **signature}
        case "agree":
            return signature
        case "open":
            return {"shares": ((int(arrays["asked"].sum()), shamir.SHARE), "|u1")}
        case _:
            return {**{name: ((size,), kind) for name, (size, kind) in words.items()}, **signature}


# --- a site -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Self:
    """Who a site is under masks: its name, its private Ed25519 key, and the keys of all, as agreed outside the coordinator."""

    site: str
    key: bytes
    roster: Mapping[str, bytes]


def answer_phase(request: Request, vault: Vault, me: Self) -> tuple[Vault, Mapping[str, Array]]:
    """Answer what touches no row: keys, shares, agree, open.

    Raises:
        UpdateRejected: the request is not one that an honest coordinator sends; the vault stays as it was.
    """
    fields = cast(Fields, request.arrays)
    _require(request, fields)
    match request.ask:
        case "keys":
            number, batch = (int.from_bytes(fields[name].tobytes(), "little") for name in ("epoch", "batch"))
            vault, found = secagg.make_keys(vault, me.key, request.study, me.site, number, batch, me.roster)
        case "shares":
            vault, found = secagg.deal(vault, me.key, me.site, epochs.read_epoch(request.study, fields), me.roster)
        case _:
            vault, found = _survivors(request.ask, fields, vault, me)
    return vault, cast(Mapping[str, Array], found)


def _survivors(ask: Ask, fields: Fields, vault: Vault, me: Self) -> tuple[Vault, Fields]:
    members = vault.epoch.members if vault.epoch else ()
    announced, index = fields["announced"].tobytes(), int.from_bytes(fields["index"].tobytes(), "little")
    alive = _named(members, fields["alive"])
    signatures = _by_member(members, fields["signatures"], 64)
    if ask == "agree":
        digests = _by_member(members, fields["digests"], 32)
        uploads = {site: (digests[site], signatures[site]) for site in alive}
        return secagg.agree(vault, me.key, me.site, announced, index, alive, uploads, me.roster)
    asked, sealed = _named(members, fields["asked"]), _by_member(members, fields["sealed"], epochs.SEALED)
    signatures = {site: signature for site, signature in signatures.items() if any(signature)}
    return secagg.disclose(vault, me.site, announced, index, asked, alive, signatures, sealed, me.roster)


def announced_by(request: Request) -> Request:
    """What is asked under masks, without what is said of the masks."""
    return replace(request, arrays={name: array for name, array in request.arrays.items() if name not in ANNOUNCED})


def protect(request: Request, sums: Sums, sheet: Sheet, vault: Vault, me: Self) -> tuple[Vault, Mapping[str, Array]]:
    """The sums under masks.

    Raises:
        UpdateRejected: the epoch is another than the one here, the index was used, or a sum is beyond its grid.
    """
    fields = cast(Fields, request.arrays)
    if vault.epoch is None or any(name not in fields or fields[name].dtype != np.uint8 for name in ANNOUNCED):
        raise UpdateRejected(
            "expected to be asked for masked sums, with keys made before, found neither: it was refused"
        )
    if fields["mask.epoch"].shape != (32,) or fields["mask.epoch"].tobytes() != vault.epoch.digest:
        raise UpdateRejected("expected the epoch of keys that is here, found another: it was refused")
    if fields["mask.index"].shape != (SIZES["index"],):
        raise UpdateRejected(f"expected an index of 4 bytes, found {fields['mask.index'].shape}: it was refused")
    announced, index = sha256(encode(request)).digest(), int.from_bytes(fields["mask.index"].tobytes(), "little")
    asked = _named(vault.epoch.members, fields["mask.asked"])
    words = sheet.words(sums, len(vault.epoch.members))
    vault, found = secagg.protect(vault, me.key, me.site, words, announced, index, asked)
    return vault, cast(Mapping[str, Array], found)


TAKES: Mapping[str, tuple[str, ...]] = {
    "keys": ("batch", "epoch"),
    "shares": ("epoch", "identities", "mask_keys", "members", "roster", "seal_keys", "signatures"),
    "agree": ("alive", "announced", "digests", "index", "signatures"),
    "open": ("alive", "announced", "asked", "index", "sealed", "signatures"),
}

SIZES = {"batch": 8, "epoch": 8, "roster": 8, "announced": 32, "index": 4}


def _require(request: Request, fields: Fields) -> None:
    if tuple(sorted(fields)) != TAKES[request.ask] or any(array.dtype != np.uint8 for array in fields.values()):
        raise UpdateRejected(f"expected {', '.join(TAKES[request.ask])} as bytes, found others: it was refused")
    for name, size in SIZES.items():
        if name in fields and fields[name].shape != (size,):
            raise UpdateRejected(f"expected {name} of {size} bytes, found {fields[name].shape}: it was refused")


def _enough(found: int, needed: int, what: str) -> None:
    if found < needed:
        raise QuorumError(f"expected {what} of at least {needed} sites, found those of {found}: nothing was opened")


def _word(value: int) -> Bytes:
    return as_bytes(value.to_bytes(8, "little"))


def _flags(members: Sequence[str], chosen: Iterable[str]) -> Bytes:
    some = set(chosen)
    return np.array([site in some for site in members], np.uint8)


def _rows(members: Sequence[str], found: Mapping[str, bytes], size: int) -> Bytes:
    return np.stack([as_bytes(found.get(site, bytes(size))) for site in members])


def _by_member(members: Sequence[str], rows: Bytes, size: int) -> dict[str, bytes]:
    if rows.shape != (len(members), size):
        raise UpdateRejected(f"expected {size} bytes for each of {len(members)} members, found others: it was refused")
    return {site: row.tobytes() for site, row in zip(members, rows, strict=True)}


def _named(members: Sequence[str], flags: Bytes) -> list[str]:
    if flags.shape != (len(members),) or (flags > 1).any():
        raise UpdateRejected(f"expected a flag for each of {len(members)} members, found others: it was refused")
    return [site for site, flag in zip(members, flags, strict=True) if flag]
