"""Noise that is taken away again: what a site adds for those who may be lost, and the sum can do without once they were heard.

XNoise of Jiang, Wang and Chen (2024), "Dordis: Efficient Federated Learning with Dropout-Resilient Differential Privacy". A site's noise is
a sum of independent parts. With c sites that may tell theirs, the first parts up to rung j make σ² of any sum of `rungs[j]` sites or more:

    variance of parts 0..j  =  σ² / (rungs[j] - c)         rungs: all of the roster, fewer and fewer, the fewest that masks let through

Part 0 is drawn from the operating system and never told. Each other part is the stream of a seed, and the seeds hang on a chain of hashes,
so that one link tells all parts after it and none before. Which link a site tells hangs on the survivors that ⌊2n/3⌋ + 1 have signed for:
there is one such set an announcement, ever, so no sum is opened of fewer than its noise was lightened for (`secagg.disclose`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256

from fedrounds.core.privacy.epoch import threshold
from fedrounds.core.privacy.masks import seed

MOST = 16  # rungs: of more, each part is small, and what is left of the excess with these is too
LINK = 32  # bytes
NOTHING = bytes(LINK)


@lru_cache
def rungs(sites: int) -> tuple[int, ...]:
    """For how many of so many sites noise is made ready: all of them first, the fewest that can be opened last.

    >>> rungs(3), rungs(4), rungs(10), len(rungs(200))
    ((3,), (4, 3), (10, 9, 8, 7), 16)
    """
    lost = sites - threshold(sites)
    steps = min(lost, MOST - 1)
    return tuple(sites - lost * at // max(steps, 1) for at in range(steps + 1))


def rung(heard: int, sites: int) -> int:
    """By which rung there is noise enough in a sum of `heard`: the last one, which is all of it, where they are too few for a sum.

    >>> [rung(heard, 10) for heard in (10, 9, 7)], rung(190, 200)
    ([0, 1, 3], 3)
    """
    found = rungs(sites)
    return next((at for at, many in enumerate(found) if many <= heard), len(found) - 1)


def first_link(secret: bytes, announced: bytes, site: str) -> bytes:
    """The chain's beginning, for one announcement: it tells every part but part 0, and stays at its site.

    Args:
        secret: of the site, for one index, and erased when the sum is opened.
    """
    return seed(secret, b"noise", announced, site.encode())


def spare(link: bytes, heard: int, sites: int) -> bytes:
    """Of a chain that begins with this link, the one that tells what a sum of `heard` can do without: zeros where it needs all.

    Guarantees:
        * it tells no part up to the rung of `heard`: those come of links before it, and a hash does not run back.
    """
    at = rung(heard, sites)
    if at == len(rungs(sites)) - 1:
        return NOTHING
    for _ in range(at):
        link = _next(link)
    return link


def seeds(link: bytes, name: str) -> Iterator[bytes]:
    """The seed of each part from this link on, for the numbers of one name: without an end."""
    while True:
        yield seed(link, b"part", name.encode())
        link = _next(link)


def _next(link: bytes) -> bytes:
    return sha256(b"fedrounds link\0" + link).digest()
