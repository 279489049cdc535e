"""How the sums of one exchange become words that can be masked, and how their sum becomes numbers again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fedrounds.core.algorithm import Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.params import Array
from fedrounds.core.privacy.grid import SIGNED, Grid, Unsigned
from fedrounds.core.privacy.masks import Words
from fedrounds.core.privacy.noised import Noised


@dataclass(frozen=True)
class Sheet:
    """How the sums of one exchange become words: the update as words of its own, all else as one array of 64 bits.

    Args:
        grids: name -> its grid, in the order in which they travel.
        shapes: name -> its shape.
    """

    grids: Mapping[str, Grid]
    shapes: Mapping[str, tuple[int, ...]]

    def layout(self) -> Mapping[str, tuple[int, str]]:
        """Length and type of each array of words, (length,)."""
        sizes = {name: prod(self.shapes[name]) for name in self.grids}
        rest = sum(size for name, size in sizes.items() if name != "delta")
        found = {"words.delta": (sizes["delta"], f"<u{self.grids['delta'].bits // 8}")} if "delta" in sizes else {}
        return {**found, "words.sums": (rest + 1, "<u8")}

    def words(self, sums: Sums, sites: int, link: bytes = b"") -> dict[str, Any]:
        """The sums of one of so many sites as words, as `layout` has them; the last one counts what was clipped.

        Args:
            link: the first of the site's noise (`excess.first_link`), where there is noise.

        Raises UpdateRejected where a sum is beyond its grid.
        """
        found: dict[str, Any] = {}
        rest: list[Any] = []
        clipped = 0
        for name, grid in self.grids.items():
            words, beyond = grid.words(name, sums[name].reshape(-1), sites, link)
            clipped += beyond
            if name == "delta":
                found["words.delta"] = words
            else:
                rest.append(words)
        rest.append(np.array([clipped], np.uint64))
        return {**found, "words.sums": np.concatenate(rest)}

    def lighten(self, words: Words, sites: int, heard: int, links: Collection[bytes]) -> None:
        """Take out of a sum the noise that it can do without, in place.

        Args:
            words: of the sum of `heard`, as `layout` has them.
            links: of each of those who told theirs (`excess.spare`).
        """
        for name, grid, part in self._parts(words):
            if isinstance(grid, Noised) and links:
                np.subtract(part, grid.excess(name, part.size, sites, heard, links), out=part)

    def require(self, words: Words, sites: int, heard: int) -> None:
        """Raise UpdateRejected where a sum is beyond what so many sites can have sent, each within its bound: |sum| <= heard * bound.

        Words of 16 and 32 bits hold little more than that, so there it is the word that bounds the sum; of 64 bits hold far more.

        Args:
            words: of the sum, as `layout` has them.
        """
        for name, grid, part in self._parts(words):
            steps, most = part.view(SIGNED[grid.bits]), heard * grid.levels(sites)
            if part.size and (int(steps.max()) > most or int(steps.min()) < -most):
                raise UpdateRejected(
                    f"expected a sum of '{name}' within what {heard} sites can send, found a larger one: one of them sent what it must not"
                )

    def sums(self, words: Words, sites: int) -> tuple[dict[str, Array], int]:
        """The sums of all, of their `shapes`, from the sum of their words, and how many numbers were clipped."""
        found = {name: grid.numbers(part, sites).reshape(self.shapes[name]) for name, grid, part in self._parts(words)}
        return found, int(words["words.sums"][-1])

    def _parts(self, words: Words) -> Iterator[tuple[str, Grid, Unsigned]]:
        """The words of each sum."""
        start = 0
        for name, grid in self.grids.items():
            if name == "delta":
                yield name, grid, words["words.delta"]
            else:
                end = start + prod(self.shapes[name])
                yield name, grid, words["words.sums"][start:end]
                start = end
