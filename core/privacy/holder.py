"""Encrypted sums: the coordinator adds up what it cannot read, and one member, the key holder, opens sums alone.

    keys    make_key   once an epoch, everybody: a public key for what the holder tells it and no other
    shares  hold       once an epoch, the holder: the public key of encryption; for each member, sealed, the rows of tags (`tag.py`)
    (sums)  protect    everybody: its numbers under encryption, a tag over them, a signature over both
    open    disclose   the holder: the sum, once it has seen that it is one

The holder is one of the sites, or a third party that is a member and has no rows (`settings.Ckks.holder`). No paper: the protocol is our own,
its parts are those of `ckks.py` (Cheon et al. 2017) and `tag.py` (Agrawal and Boneh 2009).

Guarantees, against a coordinator that does what it likes, but has no member with it:
    * it learns sums alone: all else is under a key that it does not have;
    * the holder opens only what is the sum of the very residues that `least` or more of the roster have signed for one announcement
      (`disclose`), and a round's exchange of one set of sites alone;
    * a key of encryption that the holder did not sign, for this epoch, roster and these parameters, is refused (`verify`).
Against the holder alone: it sees sums, never one site's residues, so it learns no more than the coordinator does.

Not protected: from a holder that says another sum than it found (its signature stays). From a coordinator and the holder together, who are
whoever has the key. From a coordinator and another member together: it knows the rows of tags; and a part that is no encryption can make a
sum tell of the key. Masked sums stand that; these do not.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy import ckks, masks, tag
from fedrounds.core.privacy.ckks import Digits, Residues
from fedrounds.core.privacy.epoch import PRIME, WEAK, Bytes, as_bytes, as_number, roster_digest
from fedrounds.core.privacy.secagg import FURTHEST

FEWEST = 3
SEALED = 32 + 16
REMEMBERED = 256  # exchanges of which a holder knows whose sum it opened


@dataclass(frozen=True, repr=False)
class Safe:
    """A site's secrets for one study of encrypted sums; most are the holder's. On disk before the message that goes with them leaves."""

    number: int = 0  # of the last epoch; it never goes back
    private: bytes = b""  # X25519, of this epoch
    secret: bytes = b""  # the holder's: the key of encryption
    seed: bytes = b""  # the holder's: of the rows of tags
    members: Mapping[str, bytes] = field(default_factory=dict[str, bytes])  # the holder's: member -> its public key
    opened: tuple[bytes, ...] = ()  # announcements whose sum this key has opened
    told: Mapping[str, bytes] = field(default_factory=dict[str, bytes])  # what was asked -> of whom the sum was opened

    def __repr__(self) -> str:
        return f"Safe(epoch {self.number})"


@dataclass(frozen=True)
class Key:
    """The public side of an epoch, as the holder signed it."""

    number: int
    members: tuple[str, ...]
    publics: Bytes  # (n, 32)
    public: Residues  # (2, 2, DEGREE)
    sealed: Bytes  # (n, SEALED)
    signature: bytes

    def words(self, study: str, holder: str, roster: Mapping[str, bytes]) -> bytes:
        """What the holder signs."""
        head = f"fedrounds ckks\0{study}\0{self.number}\0{holder}\0{chr(0).join(self.members)}\0".encode()
        parts = b"".join(np.ascontiguousarray(part).tobytes() for part in (self.publics, self.sealed, self.public))
        return head + sha256(parts).digest() + roster_digest(roster) + ckks.PARAMETERS


def make_key(
    safe: Safe, key: bytes, study: str, site: str, number: int, roster: Mapping[str, bytes]
) -> tuple[Safe, dict[str, Bytes]]:
    """A fresh key of this site for an epoch: public (32,), signature (64,).

    Guarantees:
        * an epoch's number is answered once, and only a higher one; what was secret in older epochs is gone with it.

    Raises:
        UpdateRejected: the number is not higher than the last, or too far from it.
    """
    if not safe.number < number <= safe.number + FURTHEST:
        raise UpdateRejected(f"expected an epoch after {safe.number}, was asked for a key of epoch {number}: replayed?")
    private, public = masks.key_pair()
    signature = identity.seal(key, words_of_key(study, number, site, public, roster))
    return Safe(number, private, told=safe.told), {"public": as_bytes(public), "signature": as_bytes(signature)}


def member(study: str, number: int, site: str, public: bytes, signature: bytes, roster: Mapping[str, bytes]) -> None:
    """Raise UpdateRejected unless a member of the roster signed this key for this epoch, and it is no weak one."""
    words = words_of_key(study, number, site, public, roster)
    if site not in roster or not identity.sealed(roster[site], words, signature):
        raise UpdateRejected(f"expected a key signed by '{site}', found another: it was refused")
    if as_number(as_bytes(public)) >= PRIME or as_number(as_bytes(public)) in WEAK:
        raise UpdateRejected(f"expected a key that belongs to somebody, found a weak one of '{site}': suspend it")


def hold(
    safe: Safe,
    key: bytes,
    study: str,
    site: str,
    keys: Mapping[str, tuple[bytes, bytes]],
    roster: Mapping[str, bytes],
    least: int,
) -> tuple[Safe, Key]:
    """Make the key of encryption of an epoch, and tell each member the rows of tags.

    Args:
        keys: member -> public key and its signature.

    Guarantees:
        * once an epoch, with members of the roster that signed for this very epoch, each with a key of its own;
        * never with fewer than `least` members, three or more.

    Raises:
        UpdateRejected: as above, or this site's own key is another.
    """
    if safe.secret or not safe.private:
        raise UpdateRejected(f"expected an epoch whose key is to be made, found {safe.number}: it was refused")
    if len(keys) < max(FEWEST, least):
        raise UpdateRejected(
            f"expected {max(FEWEST, least)} members or more for encrypted sums, found {len(keys)}: no key was made"
        )
    for one, (public, signature) in keys.items():
        member(study, safe.number, one, public, signature, roster)
    if len({public for public, _ in keys.values()}) < len(keys) or keys.get(site, (b"",))[0] != masks.public_half(
        safe.private
    ):
        raise UpdateRejected("expected every member's own key once, this site's among them, found others: no key made")
    members = tuple(sorted(keys))
    secret, public = ckks.new_key()
    seed, own = secrets.token_bytes(32), masks.opened(safe.private)
    sealed = [
        _seal(masks.shared(own, keys[one][0]), study, safe.number, one).encrypt(bytes(12), seed, None)
        for one in members
    ]
    publics = np.stack([as_bytes(keys[one][0]) for one in members])
    made = Key(safe.number, members, publics, public, np.stack([as_bytes(row) for row in sealed]), b"")
    made = replace(made, signature=identity.seal(key, made.words(study, site, roster)))
    return replace(safe, secret=secret, seed=seed, members={one: keys[one][0] for one in members}), made


def verify(key: Key, study: str, holder: str, roster: Mapping[str, bytes]) -> None:
    """Raise UpdateRejected unless the holder signed this key, for these members and the parameters of this release.

    Guarantees:
        * a coordinator that puts a key of its own in the holder's place is refused;
        * nobody's key is taken but of members of the roster.
    """
    if list(key.members) != sorted(set(key.members)) or not set(key.members) <= set(roster) or holder not in roster:
        raise UpdateRejected("expected members of the roster in name order, each once, found others: it was refused")
    n = len(key.members)
    shapes = key.publics.shape, key.sealed.shape, key.public.shape
    if shapes != ((n, 32), (n, SEALED), (2, 2, ckks.DEGREE)) or key.public.dtype != np.uint64:
        raise UpdateRejected("expected a key for encrypted sums, found other shapes: it was refused")
    if not identity.sealed(roster[holder], key.words(study, holder, roster), key.signature):
        raise UpdateRejected(
            f"expected a key of encryption signed by the key holder '{holder}', found another: nothing was sent"
        )


def protect(
    safe: Safe,
    key: bytes,
    site: str,
    epoch: Key,
    study: str,
    holder: str,
    announced: bytes,
    subject: str,
    digits: Digits,
) -> dict[str, Bytes | Residues]:
    """This site's numbers (size,) under encryption: cipher (chunks, 2, DEGREE), tag (ROWS,), signature (64,).

    Args:
        epoch: verified.
        announced: SHA-256 of the request.
        subject: what is asked, whatever the model.

    Guarantees:
        * nothing leaves under a key that is not of the epoch that this site made its own key for.

    Raises:
        UpdateRejected: the epoch is another than the one here.
    """
    at = epoch.members.index(site) if site in epoch.members else -1
    if at < 0 or epoch.number != safe.number or epoch.publics[at].tobytes() != masks.public_half(safe.private):
        raise UpdateRejected("expected the epoch that this site made a key for, found another: nothing was sent")
    if holder not in epoch.members:
        raise UpdateRejected("expected the key holder among the members, found it is none: nothing was sent")
    theirs = epoch.publics[epoch.members.index(holder)].tobytes()
    secret = masks.shared(masks.opened(safe.private), theirs)
    try:
        seed = _seal(secret, study, epoch.number, site).decrypt(bytes(12), epoch.sealed[at].tobytes(), None)
    except InvalidTag:
        raise UpdateRejected(
            "expected what the key holder sealed for this site, found another: nothing was sent"
        ) from None
    cipher = ckks.encrypt(epoch.public, digits)
    digest = digest_of(cipher)
    mark = tag.of(seed, _pad(secret, announced, site, digest), cipher)
    signature = identity.seal(key, words_of_upload(announced, subject, site, digest, mark.tobytes()))
    return {"cipher": cipher, "tag": mark, "signature": as_bytes(signature)}


def heard(
    site: str, announced: bytes, subject: str, cipher: Residues, mark: tag.Tag, signature: bytes, size: int,
    roster: Mapping[str, bytes],
) -> bytes:  # fmt: skip
    """The digest of a site's residues (chunks, 2, DEGREE), if they are some and it signed for them. Raises UpdateRejected otherwise."""
    ckks.check(cipher, size)
    digest = digest_of(cipher)
    _signed(site, announced, subject, digest, mark.tobytes(), signature, roster)
    return digest


def disclose(
    safe: Safe,
    key: bytes,
    site: str,
    announced: bytes,
    subject: str,
    parts: Mapping[str, tuple[bytes, bytes, bytes]],
    total: Residues,
    size: int,
    roster: Mapping[str, bytes],
    least: int,
) -> tuple[Safe, Digits, bytes]:
    """Open a sum: its numbers (size,), and this site's signature over them.

    Args:
        parts: site -> digest of its residues, its tag, its signature over both.
        total: (chunks, 2, DEGREE) the sum, as the coordinator made it.

    Guarantees:
        * never of fewer than `least` sites, three or more, each on the roster and each with its own signature for this announcement;
        * only what is the sum of the very residues that they signed: one site's alone, or a sum with one counted twice, stays closed;
        * a round's exchange is opened of one set of sites alone, an announcement once;
        * what leaves is whole numbers, within what sums can be (2^31).

    Raises:
        UpdateRejected: as above; nothing was opened.
    """
    if not safe.secret:
        raise UpdateRejected("expected an epoch whose key is here, found none: nothing was opened")
    if len(parts) < max(FEWEST, least) or not set(parts) <= set(safe.members):
        raise UpdateRejected(
            f"expected a sum of {max(FEWEST, least)} members or more, found one of {len(parts)}: nothing was opened"
        )
    for one, (digest, mark, signature) in parts.items():
        _signed(one, announced, subject, digest, mark, signature, roster)
    whose = digest_of_sites(parts)
    if announced in safe.opened:
        raise UpdateRejected("expected a sum that is still closed, was asked to open one again: it was refused")
    if safe.told.get(subject, whose) != whose:
        raise UpdateRejected(
            "expected the sum of the same sites as it was opened of before, found others: their difference would be one site's, so it was refused"
        )
    ckks.check(total, size)
    own = masks.opened(safe.private)
    pads = [_pad(masks.shared(own, safe.members[one]), announced, one, digest) for one, (digest, _, _) in parts.items()]
    tags = [np.frombuffer(mark, np.uint64) for _, mark, _ in parts.values()]
    if not tag.holds(safe.seed, pads, tags, total):
        raise UpdateRejected("expected the sum of what the sites have signed, found another: nothing was opened")
    digits = ckks.decrypt(safe.secret, total, size)
    told = {**safe.told, subject: whose}
    safe = replace(safe, opened=(*safe.opened, announced), told={one: told[one] for one in list(told)[-REMEMBERED:]})
    return safe, digits, identity.seal(key, words_of_sum(announced, site, whose, digits))


# --- words ------------------------------------------------------------------------------------------------------------


def words_of_key(study: str, number: int, site: str, public: bytes, roster: Mapping[str, bytes]) -> bytes:
    """What a member signs when it makes a key."""
    return f"fedrounds ckks member\0{study}\0{number}\0{site}\0".encode() + public + roster_digest(roster)


def words_of_upload(announced: bytes, subject: str, site: str, digest: bytes, mark: bytes) -> bytes:
    """What a site signs when it sends residues of this digest under this tag."""
    return b"fedrounds ckks part\0" + announced + digest + mark + f"{subject}\0{site}".encode()


def words_of_sum(announced: bytes, site: str, whose: bytes, digits: Digits) -> bytes:
    """What the holder signs when it has opened a sum, its numbers (size,)."""
    return b"fedrounds ckks sum\0" + announced + whose + sha256(digits.tobytes()).digest() + site.encode()


def digest_of_sites(sites: Iterable[str]) -> bytes:
    """SHA-256 of whose sum it is."""
    return sha256("\0".join(sorted(sites)).encode()).digest()


def digest_of(cipher: Residues) -> bytes:
    """SHA-256 of residues (chunks, 2, DEGREE)."""
    return sha256(np.ascontiguousarray(cipher).data).digest()


def _signed(
    site: str, announced: bytes, subject: str, digest: bytes, mark: bytes, signature: bytes, roster: Mapping[str, bytes]
) -> None:
    words = words_of_upload(announced, subject, site, digest, mark)
    if site not in roster or len(mark) != 8 * tag.ROWS or not identity.sealed(roster[site], words, signature):
        raise UpdateRejected(
            f"expected a part that '{site}' signed for this announcement, found another: it was refused"
        )


def _pad(secret: bytes, announced: bytes, site: str, digest: bytes) -> bytes:
    return masks.seed(secret, b"pad", announced, site.encode(), digest)


def _seal(secret: bytes, study: str, number: int, site: str) -> ChaCha20Poly1305:
    """The cipher for what the holder tells one member in one epoch: a key that serves this once, so the nonce may be zero."""
    return ChaCha20Poly1305(masks.seed(secret, b"rows", study.encode(), number.to_bytes(8, "little"), site.encode()))
