"""The coordinator's half of secure aggregation (`secagg.py`): who was heard, who has signed, and the sum with every mask taken off
(Bonawitz et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.privacy import masks, shamir
from fedrounds.core.privacy.epoch import Bytes, Epoch, Fields, quorum_of_shares
from fedrounds.core.privacy.masks import Words
from fedrounds.core.privacy.secagg import (
    digest_of,
    digest_of_words,
    mark,
    own_seed,
    pair_seed,
    words_of_shares,
    words_of_survivors,
    words_of_upload,
)


def dealt_by(epoch: Epoch, site: str, fields: Fields, roster: Mapping[str, bytes]) -> None:
    """Raise UpdateRejected unless the site has signed these shares (what `secagg.deal` gave), for this epoch."""
    words = words_of_shares(epoch, site, fields["sealed"], fields["marks"])
    if site not in epoch.members or not identity.sealed(roster[site], words, fields["signature"].tobytes()):
        raise UpdateRejected(f"expected shares signed by '{site}', found others: they were refused")


def heard(
    epoch: Epoch, announced: bytes, site: str, words: Words, signature: bytes, roster: Mapping[str, bytes]
) -> tuple[bytes, bytes]:
    """The digest of the words, arrays of any shape, and its signature, by which the others know that this site was told the same.

    Raises UpdateRejected unless these words are what the site signed for this announcement.
    """
    digest = digest_of_words(words)
    if site not in epoch.members or not identity.sealed(
        roster[site], words_of_upload(announced, site, digest), signature
    ):
        raise UpdateRejected(f"expected masked words signed by '{site}', found others: they were refused")
    return digest, signature


def signatures_over(
    announced: bytes, alive: Sequence[str], replies: Mapping[str, bytes], roster: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Of the replies to `agree`, those that hold a valid signature."""
    words = words_of_survivors(announced, digest_of(alive))
    return {site: one for site, one in replies.items() if identity.sealed(roster[site], words, one)}


def unmask(
    epoch: Epoch,
    total: Words,
    announced: bytes,
    index: int,
    asked: Sequence[str],
    alive: Sequence[str],
    dealt: Mapping[str, Fields],
    opened: Mapping[str, Bytes],
) -> None:
    """Take every mask off the sum of the survivors' words, in place.

    Args:
        total: the survivors' words, added up, as the sheet's `layout` has them.
        dealt: member -> what `deal` gave; a share that its dealer's mark does not know is left out.
        opened: member -> its answer to `open`.

    Guarantees:
        * a share that its dealer does not know again is left out, and its holder named if too few are left;
        * shares that do not give one secret, or not the key that was published, are its dealer's fault, who is named.

    Raises:
        UpdateRejected: of some member too few right shares came: the sum stays closed.
    """
    holders, neighbours = epoch.holders(), epoch.neighbours()
    needed = quorum_of_shares(len(epoch.members), epoch.roster)
    seeds: list[tuple[bytes, masks.Sign]] = []
    for row, member in enumerate(sorted(asked)):
        lost = member not in alive
        if lost and not any(other in alive for other in neighbours[member]):
            continue
        shares: dict[int, bytes] = {}
        wrong: list[str] = []
        for site, rows in opened.items():
            if site in holders[member]:
                x = holders[member].index(site)
                share = rows[row].tobytes()
                if mark(share) == dealt[member]["marks"][index, x, int(lost)].tobytes():
                    shares[x + 1] = share
                else:
                    wrong.append(site)
        if len(shares) < needed:
            found = f"; wrong ones came of {', '.join(sorted(wrong)[:8])}" if wrong else ""
            raise UpdateRejected(
                f"expected {needed} right shares of the secret of '{member}', found {len(shares)}{found}: the sum stays closed"
            )
        try:
            secret = shamir.combine(shares, needed)
        except UpdateRejected:
            raise UpdateRejected(
                f"expected shares of one secret, found others of '{member}': it dealt wrong ones"
            ) from None
        if not lost:
            seeds.append((own_seed(secret, announced), -1))
            continue
        if masks.public_half(secret) != epoch.mask_keys[epoch.members.index(member), index].tobytes():
            raise UpdateRejected(f"expected shares of the key of '{member}', found others: it dealt wrong ones")
        key = masks.opened(secret)
        for other in neighbours[member]:
            if other in alive:  # `other` added its mask with the lost one: take that away
                theirs = epoch.mask_keys[epoch.members.index(other), index].tobytes()
                seeds.append(
                    (pair_seed(masks.shared(key, theirs), announced, member, other), -1 if other < member else 1)
                )
    masks.mask(total, seeds)
