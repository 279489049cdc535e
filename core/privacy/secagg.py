"""Secure aggregation: the coordinator learns the sum of what the sites send, and nothing else about any one of them.

Double masking by Bonawitz et al. (2017), with keys and shares made in batches ahead of the rounds, every message signed, and a set of
survivors that the sites agree on before any of them opens anything. Five messages of a site, the first two once an epoch:

    keys    make_keys   for each index of a batch: a public key for masks, one for seals
    shares  deal        both secrets of each index, dealt to the other members, sealed
    masked  protect     words + own mask + a mask with every neighbour, signed                    (the only heavy one)
    agree   agree       a signature over who was heard, once each of them is seen to have signed for the very same announcement
    open    disclose    for each member heard: the share of its own mask; for each that was not: the share of its key

The coordinator's half is `unmask.py`. A site's secrets are its `Vault`: it must be on disk before the
message that it goes with leaves, and is never rolled back.

Guarantees, against a coordinator that does what it likes together with fewer than a third of the roster:
    * an index serves one announcement: no two vectors ever get the same masks (`protect`);
    * of each member, a site opens its own mask or its key, never both, and once (`disclose`);
    * nothing is opened unless ⌊2n/3⌋ + 1 members have signed for the very same survivors, of the very same announcement and epoch
      (`disclose`), n of them being on the roster; as an honest site signs once, there are no two such sets;
    * none is a survivor who was told another announcement than those who open (`agree`): its masks would be with others than they think;
    * keys that a member did not sign for this epoch are refused, and so are two members with one key (`deal`);
    * the sum is exact: integers modulo 2^16, 2^32 or 2^64, whoever is lost on the way, as long as enough answer (`unmask.unmask`).

Not protected: the sum itself; what changes from one sum to the next when one site comes or goes; who takes part, when, and with how many
bytes; a member that sends nonsense, or does not send. The argument is in docs/privacy.md; no cryptographer outside has reviewed it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice

import numpy as np

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy import epoch as epochs
from fedrounds.core.privacy import excess, masks, shamir
from fedrounds.core.privacy.epoch import (
    FEWEST,
    MARK,
    SEALED,
    Bytes,
    Epoch,
    Fields,
    as_bytes,
    quorum_of_shares,
)
from fedrounds.core.privacy.masks import Unsigned, Words
from fedrounds.core.privacy.seals import seal_for, unsealed

MOST = 256  # exchanges of one epoch
FURTHEST = 1 << 20  # an epoch's number is at most so far from the last one


@dataclass(frozen=True)
class Secrets:
    """What a site keeps for one index, until it is used up."""

    mask: bytes  # private key for masks with neighbours
    seal: bytes  # private key for seals
    own: bytes  # seed of the own mask


@dataclass(frozen=True, repr=False)
class Vault:
    """A site's secrets for one study. Kept at the site, on disk before the message that goes with them leaves, never rolled back."""

    number: int = 0  # of the last epoch it made keys for; it never goes back
    secrets: Mapping[int, Secrets] = field(default_factory=dict[int, Secrets])
    epoch: Epoch | None = None
    used: Mapping[int, bytes] = field(default_factory=dict[int, bytes])  # index -> digest of its announcement
    signed: Mapping[int, bytes] = field(default_factory=dict[int, bytes])  # index -> survivors it signed for
    opened: Mapping[int, bytes] = field(default_factory=dict[int, bytes])  # index -> survivors it opened
    told: Mapping[str, bytes] = field(
        default_factory=dict[str, bytes]
    )  # SHA-256 of what was asked, hex -> of whom the sum was opened

    def __repr__(self) -> str:
        return f"Vault(epoch {self.number}, {len(self.secrets)} unused)"


def make_keys(
    vault: Vault, key: bytes, study: str, site: str, number: int, batch: int, roster: Mapping[str, bytes]
) -> tuple[Vault, Fields]:
    """Fresh keys for an epoch: mask_keys and seal_keys (batch, 32), signature (64,).

    Args:
        key: the site's Ed25519 private key.
        number: of the epoch: higher than any before, so that nobody can hand an old key on as a new one.
        roster: that this site goes by; it is signed with the keys, so all whose keys are taken go by the same.

    Guarantees:
        * an epoch number is answered once; keys of older epochs are gone with it;
        * numbers cannot be used up: one request takes FURTHEST of 2^64 at most.

    Raises:
        UpdateRejected: the number is not higher than the last, or too far from it, or so is the batch.
    """
    if not 1 <= batch <= MOST:
        raise UpdateRejected(f"expected keys for 1 to {MOST} exchanges, was asked for {batch}: it was refused")
    if number > vault.number + FURTHEST:
        raise UpdateRejected(
            f"expected an epoch from {vault.number} to {FURTHEST} further, was asked for {number}: it was refused"
        )
    if number <= vault.number:
        raise UpdateRejected(f"expected an epoch after {vault.number}, was asked for keys of epoch {number}: replayed?")
    made = {index: Secrets(masks.key_pair()[0], masks.key_pair()[0], secrets.token_bytes(32)) for index in range(batch)}
    mask_keys = np.stack([as_bytes(masks.public_half(one.mask)) for one in made.values()])
    seal_keys = np.stack([as_bytes(masks.public_half(one.seal)) for one in made.values()])
    agreed = epochs.roster_digest(roster)
    signature = identity.seal(key, epochs.words_of_keys(study, number, site, mask_keys, seal_keys, agreed))
    fields = {"mask_keys": mask_keys, "seal_keys": seal_keys, "signature": as_bytes(signature)}
    return Vault(number, made, told=vault.told), fields


def deal(vault: Vault, key: bytes, site: str, epoch: Epoch, roster: Mapping[str, bytes]) -> tuple[Vault, Fields]:
    """Deal both secrets of every index to the neighbours and itself, sealed for each.

    Args:
        roster: site -> public Ed25519 key, as it was agreed outside the coordinator.

    Returns:
        sealed (batch, holders, 148) and marks (batch, holders, 2, 16) by which shares are known again, in name order of the
        holders; signature (64,).

    Guarantees:
        * keys that a member of the roster did not sign for this epoch are refused; so is an epoch without this site's own fresh keys;
        * two members with one key, in whatever words, are refused; weak keys are;
        * fewer than three members, or than ⌊2n/3⌋ + 1 of a roster of n, are.

    Raises:
        UpdateRejected: as above; nothing was dealt.
    """
    if epoch.number != vault.number or not vault.secrets or site not in epoch.members:
        raise UpdateRejected(f"expected epoch {vault.number} with the keys made here, found another: it was refused")
    if vault.epoch is not None:
        raise UpdateRejected(f"expected to deal once in epoch {vault.number}, was asked again: it was refused")
    epochs.verify(epoch, roster)
    at = epoch.members.index(site)
    if len(vault.secrets) != epoch.batch:
        raise UpdateRejected(f"expected keys for {len(vault.secrets)} exchanges, found {epoch.batch}: it was refused")
    for index, one in vault.secrets.items():
        if masks.public_half(one.mask) != epoch.mask_keys[at, index].tobytes():
            raise UpdateRejected("expected the keys made here for this epoch, found older ones: it was refused")
    holders = epoch.holders()[site]
    sealed = np.zeros((epoch.batch, len(holders), SEALED), np.uint8)
    marks = np.zeros((epoch.batch, len(holders), 2, MARK), np.uint8)
    needed = quorum_of_shares(len(epoch.members), epoch.roster)
    for index, one in vault.secrets.items():
        own, mask = (shamir.split(secret, needed, len(holders)) for secret in (one.own, one.mask))
        seal = masks.opened(one.seal)
        for x, holder in enumerate(holders):
            peer = epoch.seal_keys[epoch.members.index(holder), index].tobytes()
            cipher = seal_for(seal, peer, epoch, index, site, holder)
            sealed[index, x] = as_bytes(cipher.encrypt(bytes(12), own[x] + mask[x], None))
            marks[index, x] = [as_bytes(mark(own[x])), as_bytes(mark(mask[x]))]
    signature = identity.seal(key, words_of_shares(epoch, site, sealed, marks))
    return replace(vault, epoch=epoch), {"sealed": sealed, "marks": marks, "signature": as_bytes(signature)}


def protect(
    vault: Vault, key: bytes, site: str, words: Words, announced: bytes, index: int, members: Sequence[str]
) -> tuple[Vault, dict[str, Unsigned]]:
    """Mask the words that this site adds to the sum: they come back, with a signature (64,) over them.

    Args:
        words: as the sheet's `layout` has them; they are masked in place.
        announced: SHA-256 of the request: what is asked, of whom, about which model. Sites that were told different things get masks
            that do not cancel.
        members: who is asked, in name order.

    Guarantees:
        * an index serves once: a second announcement, or the same one again, is refused. Who has lost the reply must not train again;
        * nor does it serve once this site has signed that others were heard, and it was not.

    Raises:
        UpdateRejected: the index was used, is none, or fewer are asked than must answer.
    """
    epoch = _epoch(vault)
    if index in vault.used or index in vault.signed or index not in vault.secrets:
        raise UpdateRejected(f"expected an index that was not used, found {index}: it was refused")
    asked = set(members)
    if len(asked) < epoch.threshold or site not in asked or not asked <= set(epoch.members):
        raise UpdateRejected(
            f"expected {epoch.threshold} members of the epoch or more, found {len(asked)}: it was refused"
        )
    mine = vault.secrets[index]
    seeds: list[tuple[bytes, masks.Sign]] = [(own_seed(mine.own, announced), 1)]
    at, key_of_masks = {one: row for row, one in enumerate(epoch.members)}, masks.opened(mine.mask)
    for other in epoch.neighbours()[site]:
        if other in asked:
            theirs = epoch.mask_keys[at[other], index].tobytes()
            seeds.append(
                (pair_seed(masks.shared(key_of_masks, theirs), announced, site, other), 1 if site < other else -1)
            )
    masks.mask(words, seeds)
    signature = identity.seal(key, words_of_upload(announced, site, digest_of_words(words)))
    used = {**vault.used, index: announced}
    return replace(vault, used=used), {**words, "signature": as_bytes(signature)}


def agree(
    vault: Vault,
    key: bytes,
    site: str,
    announced: bytes,
    index: int,
    alive: Sequence[str],
    uploads: Mapping[str, tuple[bytes, bytes]],
    roster: Mapping[str, bytes],
) -> tuple[Vault, Fields]:
    """Sign for the survivors, those whose words were heard: signature (64,).

    Args:
        uploads: survivor -> SHA-256 of its masked words, and its signature over them.

    Guarantees:
        * one set of survivors an index, ever;
        * only of those who have signed words for this announcement: as each does so once, their masks are with each other;
        * a site that has answered another announcement signs nothing; one that has answered none is not among them.

    Raises:
        UpdateRejected: too few survived, one of them has not signed, or another set was signed for.
    """
    _survived(vault, site, announced, index, alive)
    if index not in vault.secrets:
        raise UpdateRejected(f"expected an index that is still closed, found {index}: it was refused")
    for one in alive:
        digest, signature = uploads.get(one, (b"", b""))
        if one not in roster or not identity.sealed(roster[one], words_of_upload(announced, one, digest), signature):
            raise UpdateRejected(
                f"expected survivors who signed for this announcement, found '{one}' who did not: nothing was signed"
            )
    survivors = digest_of(alive)
    if vault.signed.get(index, survivors) != survivors:
        raise UpdateRejected("expected the survivors that were signed for, found others: it was refused")
    signature = identity.seal(key, words_of_survivors(announced, survivors))
    return replace(vault, signed={**vault.signed, index: survivors}), {"signature": as_bytes(signature)}


def disclose(
    vault: Vault,
    site: str,
    announced: bytes,
    index: int,
    asked: Sequence[str],
    alive: Sequence[str],
    signatures: Mapping[str, bytes],
    sealed: Mapping[str, bytes],
    roster: Mapping[str, bytes],
) -> tuple[Vault, Fields]:
    """Open what this site holds of the others: of a survivor the share of its own mask, of one that was lost the share of its key.

    Args:
        signatures: of members, over these survivors.
        sealed: member -> what it dealt to this site for this index.

    Returns:
        shares (members that were asked, 66), in name order; zeros where one dealt nothing to this site, or its seal does not open.
        spare (32,): the link of this site's noise that the sum can do without; zeros where it needs all, or this site is not in it.

    Guarantees:
        * nothing without ⌊2n/3⌋ + 1 valid signatures of members over the very same survivors;
        * of its noise no more than those survivors, and no fewer, can do without;
        * once: then the secrets of the index are erased, and another set of survivors is refused for ever.

    Raises:
        UpdateRejected: as above; nothing was opened.
    """
    epoch = _epoch(vault)
    _survived(vault, site, announced, index, alive)
    if not set(alive) <= set(asked) <= set(epoch.members):
        raise UpdateRejected("expected survivors among those who were asked, found others: nothing was opened")
    survivors = digest_of(alive)
    if index in vault.opened or index not in vault.secrets:
        raise UpdateRejected(f"expected index {index} still closed, was asked to open it again: it was refused")
    if vault.signed.get(index, survivors) != survivors:
        raise UpdateRejected("expected the survivors that were signed for, found others: it was refused")
    words = words_of_survivors(announced, survivors)
    members = (one for one in epoch.members if one in signatures and one in roster)
    good = (one for one in members if identity.sealed(roster[one], words, signatures[one]))
    valid = list(islice(good, epoch.threshold))  # more say nothing more
    if len(valid) < epoch.threshold:
        raise UpdateRejected(
            f"expected {epoch.threshold} signatures over the survivors, found {len(valid)}: nothing was opened"
        )
    holders, dealers, seal = epoch.holders(), sorted(asked), masks.opened(vault.secrets[index].seal)
    shares = np.zeros((len(dealers), shamir.SHARE), np.uint8)
    for row, dealer in enumerate(dealers):
        if site not in holders[dealer]:
            continue
        both = unsealed(seal, sealed.get(dealer, b""), epoch, index, dealer, site)
        if both:
            half = both[: shamir.SHARE] if dealer in alive else both[shamir.SHARE :]
            shares[row] = as_bytes(half)
    spare = excess.NOTHING
    if site in alive:
        spare = excess.spare(link_of(vault, site, announced, index), len(alive), epoch.roster)
    kept = {number: one for number, one in vault.secrets.items() if number != index}
    opened = {"shares": shares, "spare": as_bytes(spare)}
    return replace(vault, secrets=kept, opened={**vault.opened, index: survivors}), opened


def link_of(vault: Vault, site: str, announced: bytes, index: int) -> bytes:
    """The first link of this site's noise for one announcement (`excess.first_link`), from a key that nobody else ever holds a share of.

    Raises UpdateRejected where the index is none, or used up.
    """
    if index not in vault.secrets:
        raise UpdateRejected(f"expected an index that was not used, found {index}: it was refused")
    return excess.first_link(vault.secrets[index].seal, announced, site)


def _survived(vault: Vault, site: str, announced: bytes, index: int, alive: Sequence[str]) -> None:
    epoch = _epoch(vault)
    if vault.used.get(index, announced) != announced:
        raise UpdateRejected("expected the announcement that was answered, found another: it was refused")
    if list(alive) != sorted(set(alive)) or not set(alive) <= set(epoch.members):
        raise UpdateRejected("expected survivors in name order, each once, found others: it was refused")
    if site in alive and index not in vault.used:
        raise UpdateRejected("expected this site among the lost, as it sent nothing: it was refused")
    if len(alive) < max(FEWEST, epoch.threshold):
        raise UpdateRejected(
            f"expected {max(FEWEST, epoch.threshold)} survivors of {len(epoch.members)}, found {len(alive)}: nothing was opened"
        )


def _epoch(vault: Vault) -> Epoch:
    if vault.epoch is None:
        raise UpdateRejected("expected an epoch of keys, found none here: ask for keys first")
    return vault.epoch


# --- words ------------------------------------------------------------------------------------------------------------


def digest_of(alive: Sequence[str]) -> bytes:
    """SHA-256 of who survived."""
    return sha256(b"fedrounds alive\0" + "\0".join(alive).encode()).digest()


def own_seed(secret: bytes, announced: bytes) -> bytes:
    """The seed of a member's own mask, for one announcement."""
    return masks.seed(secret, b"own", announced)


def pair_seed(secret: bytes, announced: bytes, one: str, other: str) -> bytes:
    """The seed of the mask of these two members, for one announcement."""
    return masks.seed(secret, b"pair", announced, *(site.encode() for site in sorted((one, other))))


def mark(share: bytes) -> bytes:
    """By what a share is known again."""
    return sha256(b"fedrounds share\0" + share).digest()[:MARK]


def words_of_shares(epoch: Epoch, site: str, sealed: Bytes, marks: Bytes) -> bytes:
    """What a member signs when it deals: sealed (batch, holders, 148) and marks (batch, holders, 2, 16)."""
    return b"fedrounds shares\0" + epoch.digest + site.encode() + sha256(sealed.tobytes() + marks.tobytes()).digest()


def digest_of_words(words: Words) -> bytes:
    """SHA-256 of masked words, arrays of any shape: names, types and every byte."""
    sha = sha256()
    for name, array in words.items():
        sha.update(name.encode() + b"\0" + array.dtype.str.encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).data)
    return sha.digest()


def words_of_upload(announced: bytes, site: str, digest: bytes) -> bytes:
    """What a member signs when it sends masked words of this digest."""
    return b"fedrounds words\0" + announced + digest + site.encode()


def words_of_survivors(announced: bytes, survivors: bytes) -> bytes:
    """What a member signs when it agrees."""
    return b"fedrounds survivors\0" + announced + survivors
