"""The Merkle tree of RFC 6962 and RFC 9162: one hash that stands for a whole log, and short proofs of what is in it.

A leaf is SHA-256(0 | bytes), an inner node SHA-256(1 | left | right); a tree of n leaves splits at the largest power of two below n.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

HASH = 32


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a leaf, 32 bytes (RFC 9162, 2.1.1)."""
    return sha256(b"\0" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


def grow(peaks: Sequence[bytes], size: int, leaf: bytes) -> tuple[bytes, ...]:
    """The peaks of a log with one leaf more.

    Peaks are the roots of the whole subtrees that a log consists of, the largest first: one for each bit of its size. They are all that
    is needed to append.

    Args:
        leaf: the new leaf's hash.
        size: leaves before.
    """
    grown = [*peaks, leaf]
    while size & 1:
        right = grown.pop()
        grown[-1] = _node(grown[-1], right)
        size >>= 1
    return tuple(grown)


def root_of(peaks: Sequence[bytes]) -> bytes:
    """The root over these peaks; that of an empty log is SHA-256 of nothing."""
    if not peaks:
        return sha256(b"").digest()
    *rest, root = peaks
    for peak in reversed(rest):
        root = _node(peak, root)
    return root


class Tree:
    """A log's hashes, from which any root and any proof comes in time that grows with the logarithm of its size.

    Guarantees:
        * the root is that of RFC 6962 for the leaves in their order;
        * the tree of an earlier size has the root that it had then.
    """

    def __init__(self, leaves: Sequence[bytes] = ()) -> None:
        """Args: leaves: hashes of leaves, as `leaf_hash` gives them."""
        self._levels: list[list[bytes]] = [[]]  # of whole subtrees of 1, 2, 4… leaves
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> int:
        """Add a leaf's hash; returns its index."""
        level, index = 0, len(self)
        self._levels[0].append(leaf)
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(_node(*self._levels[level][-2:]))
            level += 1
        return index

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves, of all by default. Raises ValueError where there are not as many."""
        wanted = self._within(size)
        return self._range(0, wanted) if wanted else root_of(())

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Proof that leaf `index` is in the tree of `size` leaves (RFC 9162, 2.1.3.1). Raises ValueError where it is not."""
        wanted = self._within(size)
        if not 0 <= index < wanted:
            raise ValueError(f"expected a leaf below {wanted}, found {index}")
        proof, start, end = list[bytes](), 0, wanted
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start = middle
        return tuple(reversed(proof))

    def consistency(self, first: int, size: int | None = None) -> tuple[bytes, ...]:
        """Proof that the tree of `size` leaves begins with that of `first` (RFC 9162, 2.1.4.1). Raises ValueError where it cannot."""
        wanted = self._within(size)
        if not 0 <= first <= wanted:
            raise ValueError(f"expected a size up to {wanted}, found {first}")
        if first in (0, wanted):
            return ()
        proof, start, end, whole = list[bytes](), 0, wanted, True
        while first != end:
            middle = start + _split(end - start)
            if first <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                start, whole = middle, False
        if not whole:
            proof.append(self._range(start, end))
        return tuple(reversed(proof))

    def _within(self, size: int | None) -> int:
        wanted = len(self) if size is None else size
        if not 0 <= wanted <= len(self):
            raise ValueError(f"expected a size up to {len(self)}, found {wanted}")
        return wanted

    def _range(self, start: int, end: int) -> bytes:
        """The root of leaves start..end-1, which begin where such a subtree may."""
        width = end - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(width)
        return _node(self._range(start, middle), self._range(middle, end))


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether a proof shows that the leaf of this hash is at `index` in the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).

    Guarantees: no other leaf, index or root passes with a true proof, and no proof passes that was changed, cut or lengthened.
    """
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = _node(step, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = _node(found, step)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def consistent(first: int, old: bytes, second: int, new: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof shows that the tree of `second` leaves, root `new`, begins with that of `first`, root `old` (RFC 9162, 2.1.4.2).

    Guarantees: a tree in which one of the first leaves is another, is missing or lies elsewhere does not pass. Of an empty tree nothing
    has to be shown.
    """
    if not 0 <= first <= second:
        return False
    if first == second:
        return old == new and not proof
    if first == 0:
        return old == root_of(()) and not proof
    steps = list(proof)
    if first & (first - 1) == 0:
        steps.insert(0, old)
    if not steps:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    was = now = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            was, now = _node(step, was), _node(step, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = _node(now, step)
        at, last = at >> 1, last >> 1
    return last == 0 and was == old and now == new


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)
