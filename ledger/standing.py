"""Who is champion, who waits for a person, and what was last said of each version: decisions of the rule and acts of people, in order.

A pure function of both lists, so that the ledger's word and MLflow's aliases cannot differ in anything but time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedrounds.ledger.rows import Act, Decision


@dataclass(frozen=True)
class Standing:
    """How it stands after some decisions and acts.

    `champions` are rounds in the order in which they came to be champion, the present one last; a rollback takes from the end.
    `challenger` passed the rule and waits for a person. A change of champion ends that, since it was judged against another one.
    `said`: round -> what was last decided of its version (promoted, kept, pending, rejected, rolled back) and why.
    """

    champions: tuple[int, ...] = ()
    challenger: int | None = None
    said: Mapping[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])

    @property
    def champion(self) -> int | None:
        """The round whose model is champion."""
        return self.champions[-1] if self.champions else None

    def after(self, event: Decision | Act) -> Standing:
        """Who is champion and who waits once that happened too; `said` is left to `standing`."""
        if isinstance(event, Decision):
            if event.promoted:
                return Standing((*self.champions, event.round))
            return Standing(self.champions, event.round) if event.pending else self
        if event.act == "reject":
            return Standing(self.champions)
        if event.act == "promote":
            return Standing((*self.champions, event.round))
        back = len(self.champions) - 2 - self.champions[-2::-1].index(event.round)  # the last time before this one
        return Standing(self.champions[: back + 1])

    def words(self, event: Decision | Act) -> dict[int, tuple[str, str]]:
        """What an event says of versions: its own, and the champion that a rollback takes down."""
        if isinstance(event, Decision):
            word = "promoted" if event.promoted else "pending" if event.pending else "kept"
            return {event.round: (word, event.reason)}
        why = said(event)
        if event.act != "rollback":
            return {event.round: ("rejected" if event.act == "reject" else "promoted", why)}
        return {self.champions[-1]: ("rolled back", why), event.round: ("promoted", why)}


def said(act: Act) -> str:
    """An act as a sentence.

    >>> said(Act(1, 5, 0.0, "promote", 4, "abc", "seen by the board", "ada"))
    'promoted by ada: seen by the board'
    """
    words = {"promote": "promoted", "reject": "rejected", "rollback": f"rolled back to round {act.round}"}
    return f"{words[act.act]} by {act.by}" + (f": {act.reason}" if act.reason else "")


def in_order(decisions: Iterable[Decision], acts: Iterable[Act]) -> list[Decision | Act]:
    """Both as they came: an act comes after the visit that it names, whatever the clocks said."""
    events: list[Decision | Act] = [*decisions, *acts]
    return sorted(events, key=lambda event: (event.visit, isinstance(event, Act), getattr(event, "number", 0)))


def standings(events: Sequence[Decision | Act]) -> Iterator[Standing]:
    """How it stood before the first event, and after each."""
    now = Standing()
    yield now
    for event in events:
        now = now.after(event)
        yield now


def standing(decisions: Iterable[Decision], acts: Iterable[Act]) -> Standing:
    """How it stands after all of them.

    >>> ruled = [Decision(1, True, "first", "a", 3), Decision(2, True, "better", "b", 4), Decision(3, False, "passed", "c", 5, True)]
    >>> now = standing(ruled, [])
    >>> now.champion, now.challenger
    (2, 3)
    >>> now = standing(ruled, [Act(1, 5, 0.0, "rollback", 1, "a", "two hospitals complained", "ada")])
    >>> now.champion, now.challenger, now.said[2]
    (1, None, ('rolled back', 'rolled back to round 1 by ada: two hospitals complained'))
    """
    now, told = Standing(), dict[int, tuple[str, str]]()
    for event in in_order(decisions, acts):
        told |= now.words(event)
        now = now.after(event)
    return replace(now, said=told)
