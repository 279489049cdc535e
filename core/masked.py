"""An exchange under masks, without any input or output: what `core/round.py` asks, and what a site answers, when a study protects its sums.

    keys → shares           once an epoch: as many exchanges as a batch holds
    masked → agree → open   each exchange; then the coordinator knows the sum of those who were heard, and folds it as one reply

The cryptography is `core/privacy/secagg.py`; here its words become messages. A reply that does not come, or is a refusal, is a site lost
at that phase: as long as ⌊2n/3⌋ + 1 members answer each phase, the exchange closes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, cast

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.messages import Ask, Reply, Request, encode
from fedrounds.core.params import Array
from fedrounds.core.phases import SIZES, Phase, announced_of, require, subject_of
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import excess, secagg, unmask
from fedrounds.core.privacy.epoch import Bytes, Epoch, Fields, as_bytes, as_number, as_word
from fedrounds.core.privacy.masks import Words
from fedrounds.core.privacy.secagg import Vault
from fedrounds.core.privacy.sheet import Sheet

ANNOUNCED = ("mask.epoch", "mask.index", "mask.asked")  # what a request for masked sums says besides
REMEMBERED = 256  # exchanges of which a site knows whose sum it opened
TOGETHER = "(all sites)"  # whose the sums are; no site can be called so


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
        before: what was asked -> the sites of which it may have been opened already, before a crash: it is never opened of others.
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
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

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
            "mask.index": as_word(self.ring.next, 4),
            "mask.asked": _flags(members, self.sites),
        }
        return replace(self.outer, arrays={**self.outer.arrays, **announced})

    @cached_property
    def parts(self) -> tuple[bytes, bytes]:
        """SHA-256 of the subject and of the announcement."""
        return _parts(self.announcement)

    @property
    def announced(self) -> bytes:
        """What the masks are about."""
        return announced_of(*self.parts)

    @property
    def request(self) -> Request:
        """What is asked of every site."""
        match self.phase:
            case "keys":
                arrays: Mapping[str, Any] = {"epoch": as_word(self.number), "batch": as_word(self.batch)}
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
        """What is for one site alone: `sealed` (members, SEALED), what the others dealt to it; nothing before `open`."""
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
        subject, request = self.parts
        return {
            "subject": as_bytes(subject),
            "request": as_bytes(request),
            "index": as_word(self.ring.next, 4),
            "alive": _flags(self.ring.epoch.members, self.alive),
        }

    @property
    def needed(self) -> int:
        """How many must answer this phase."""
        enough = max(epochs.FEWEST, epochs.threshold(len(self.roster)))
        return enough if self.phase in ("agree", "open") else max(self.quorum, enough)

    @property
    def waits(self) -> int:
        """How many answers leave nobody to wait for."""
        return self.needed

    # --- what comes back ----------------------------------------------------------------------------------------------

    def step(self, replies: Iterable[Reply], refused: dict[str, str] | None = None) -> Masking | Opened:
        """Take the replies of a phase, in site order: the next phase, or the sum.

        Args:
            refused: who is lost by a reply that is not what it signed, and why, is added.

        Raises:
            QuorumError: too few are left for the sum to be opened; nothing was.
            UpdateRejected: shares are wrong.
        """
        refused = {} if refused is None else refused
        match self.phase:
            case "keys":
                return self._keys(replies, refused)
            case "shares":
                return self._shares(replies, refused)
            case "masked":
                return self._masked(replies, refused)
            case "agree":
                return self._agreed(replies)
            case "open":
                return self._opened(replies)

    def _keys(self, replies: Iterable[Reply], refused: dict[str, str]) -> Masking:
        keys: list[tuple[str, Fields]] = []
        for reply in replies:
            fields = cast(Fields, reply.arrays)
            with noted(reply.site, refused):
                epochs.signed_by(self.outer.study, self.number, reply.site, fields, self.roster)
                keys.append((reply.site, fields))
        enough(len(keys), self.needed, "keys")
        epoch = epochs.epoch_of(self.outer.study, self.number, keys, self.roster)
        return replace(self, phase="shares", epoch=epoch, sites=epoch.members)

    def _shares(self, replies: Iterable[Reply], refused: dict[str, str]) -> Masking:
        assert self.epoch is not None
        dealt: dict[str, Fields] = {}
        for reply in replies:
            fields = cast(Fields, reply.arrays)
            with noted(reply.site, refused):
                unmask.dealt_by(self.epoch, reply.site, fields, self.roster)
                dealt[reply.site] = fields
        enough(len(dealt), self.needed, "shares")
        return replace(self, phase="masked", keyring=Keyring(self.epoch, dealt), sites=tuple(sorted(dealt)))

    def _masked(self, replies: Iterable[Reply], refused: dict[str, str]) -> Masking:
        total: dict[str, Any] = {}
        uploads: dict[str, tuple[bytes, bytes]] = {}
        for reply in replies:
            words = {name: array for name, array in reply.arrays.items() if name != "signature"}
            signature = reply.arrays["signature"].tobytes()
            with noted(reply.site, refused):
                uploads[reply.site] = unmask.heard(
                    self.ring.epoch, self.announced, reply.site, cast(Words, words), signature, self.roster
                )
                for name, array in words.items():
                    if name in total:
                        total[name] += array
                    else:
                        total[name] = array.copy()
        enough(len(uploads), self.needed, "masked sums")
        return replace(self, phase="agree", total=total, alive=tuple(uploads), uploads=uploads)

    def _agreed(self, replies: Iterable[Reply]) -> Masking:
        said = {reply.site: reply.arrays["signature"].tobytes() for reply in replies}
        signatures = unmask.signatures_over(self.announced, self.alive, said, self.roster)
        enough(len(signatures), self.needed, "signatures over who was heard")
        return replace(self, phase="open", signatures=signatures)

    def _opened(self, replies: Iterable[Reply]) -> Opened:
        opened: dict[str, Bytes] = {}
        spare: list[bytes] = []
        for reply in replies:
            opened[reply.site] = cast(Bytes, reply.arrays["shares"])
            link = reply.arrays["spare"].tobytes()
            spare += [link] if reply.site in self.alive and link != excess.NOTHING else []
        enough(len(opened), self.needed, "shares of masks")
        ring, total = self.ring, {name: array.copy() for name, array in self.total.items()}
        unmask.unmask(ring.epoch, total, self.announced, ring.next, self.sites, self.alive, ring.dealt, opened)
        return Opened(total, self.alive, replace(ring, next=ring.next + 1), len(self.roster), tuple(spare))


@dataclass(frozen=True)
class Opened:
    """The sum of the words of those who were heard."""

    words: Words
    heard: tuple[str, ...]
    keyring: Any  # a Keyring, of masks or of encryption
    sites: int  # of the roster, by which a step is as wide as it is
    spare: tuple[bytes, ...] = ()  # of each who told it: the link of the noise that the sum can do without


@contextmanager
def noted(site: str, refused: dict[str, str]) -> Generator[None]:
    """A reply that is not what it should be is one lost, and ends nothing for the others."""
    try:
        yield
    except UpdateRejected as error:
        refused[site] = str(error)


# --- a site -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Self:
    """Who a site is under masks: its name, its private Ed25519 key, and the keys of all, as agreed outside the coordinator."""

    site: str
    key: bytes
    roster: Mapping[str, bytes]


def answer_phase(request: Request, vault: Vault, me: Self) -> tuple[Vault, Mapping[str, Array]]:
    """Answer what touches no row: keys, shares, agree, open; by arrays of the shapes that `phases.expected` states.

    Raises:
        UpdateRejected: the request is not one that an honest coordinator sends; the vault stays as it was.
    """
    fields = cast(Fields, request.arrays)
    require(request, fields)
    match request.ask:
        case "keys":
            number, batch = (as_number(fields[name]) for name in ("epoch", "batch"))
            vault, found = secagg.make_keys(vault, me.key, request.study, me.site, number, batch, me.roster)
        case "shares":
            vault, found = secagg.deal(vault, me.key, me.site, epochs.read_epoch(request.study, fields), me.roster)
        case _:
            vault, found = _survivors(request.ask, fields, vault, me)
    return vault, cast(Mapping[str, Array], found)


def _survivors(ask: Ask, fields: Fields, vault: Vault, me: Self) -> tuple[Vault, Fields]:
    members = vault.epoch.members if vault.epoch else ()
    subject, index = fields["subject"].tobytes(), as_number(fields["index"])
    announced = announced_of(subject, fields["request"].tobytes())
    alive = _named(members, fields["alive"])
    signatures = by_member(members, fields["signatures"], 64)
    survivors = secagg.digest_of(alive)
    if vault.told.get(subject.hex(), survivors) != survivors:
        raise UpdateRejected(
            "expected the sum of the same sites as it was opened of before, found others: their difference would be one site's, so it was refused"
        )
    if ask == "agree":
        digests = by_member(members, fields["digests"], 32)
        uploads = {site: (digests[site], signatures[site]) for site in alive}
        return secagg.agree(vault, me.key, me.site, announced, index, alive, uploads, me.roster)
    asked, sealed = _named(members, fields["asked"]), by_member(members, fields["sealed"], epochs.SEALED)
    signatures = {site: signature for site, signature in signatures.items() if any(signature)}
    vault, found = secagg.disclose(vault, me.site, announced, index, asked, alive, signatures, sealed, me.roster)
    told = {**vault.told, subject.hex(): survivors}
    return replace(vault, told={one: told[one] for one in list(told)[-REMEMBERED:]}), found


def announced_by(request: Request) -> Request:
    """What is asked under masks, without what is said of the masks."""
    return replace(request, arrays={name: array for name, array in request.arrays.items() if name not in ANNOUNCED})


def protect(request: Request, sums: Sums, sheet: Sheet, vault: Vault, me: Self) -> tuple[Vault, Mapping[str, Array]]:
    """The sums, of the sheet's shapes, under masks: words as the sheet's `layout` has them, and the signature (64,).

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
    announced, index = announced_of(*_parts(request)), as_number(fields["mask.index"])
    asked = _named(vault.epoch.members, fields["mask.asked"])
    link = secagg.link_of(vault, me.site, announced, index)
    words = sheet.words(sums, len(me.roster), link)  # not the epoch's members: a step is the same whoever is away
    vault, found = secagg.protect(vault, me.key, me.site, words, announced, index, asked)
    return vault, cast(Mapping[str, Array], found)


def _parts(announcement: Request) -> tuple[bytes, bytes]:
    return sha256(subject_of(announcement).encode()).digest(), sha256(encode(announcement)).digest()


def enough(found: int, needed: int, what: str) -> None:
    """Raise QuorumError where too few answered."""
    if found < needed:
        raise QuorumError(f"expected {what} of at least {needed} sites, found those of {found}: nothing was opened")


def _flags(members: Sequence[str], chosen: Iterable[str]) -> Bytes:
    some = set(chosen)
    return np.array([site in some for site in members], np.uint8)


def _rows(members: Sequence[str], found: Mapping[str, bytes], size: int) -> Bytes:
    return np.stack([as_bytes(found.get(site, bytes(size))) for site in members])


def by_member(members: Sequence[str], rows: Bytes, size: int) -> dict[str, bytes]:
    """Member -> its row of bytes (members, size). Raises UpdateRejected where they are not one for each, of this size."""
    if rows.shape != (len(members), size):
        raise UpdateRejected(f"expected {size} bytes for each of {len(members)} members, found others: it was refused")
    return {site: row.tobytes() for site, row in zip(members, rows, strict=True)}


def _named(members: Sequence[str], flags: Bytes) -> list[str]:
    if flags.shape != (len(members),) or (flags > 1).any():
        raise UpdateRejected(f"expected a flag for each of {len(members)} members, found others: it was refused")
    return [site for site, flag in zip(members, flags, strict=True) if flag]
