"""How many bytes a visit took, each way."""

from __future__ import annotations


class Traffic:
    """What crossed a hospital's wall in the visit that is open."""

    def __init__(self) -> None:
        self._crossed: dict[int, tuple[int, int]] = {}  # step of this visit -> bytes to the site and from it

    def begin(self) -> None:
        """A visit is opened: nothing has crossed in it."""
        self._crossed = {}

    def crossed(self, step: int, to: int, back: int) -> None:
        """Note what a step of a visit took (`core.phases.step_of`); the first one begins anew, one that is repeated counts once."""
        self._crossed = {n: ways for n, ways in self._crossed.items() if n < step} | {step: (to, back)}

    @property
    def bytes_in(self) -> int:
        """To the site, in this visit."""
        return sum(to for to, _ in self._crossed.values())

    @property
    def bytes_out(self) -> int:
        """From the site, in this visit."""
        return sum(back for _, back in self._crossed.values())
