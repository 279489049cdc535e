"""Masked sums by groups: the coordinator sees the sum of each group of sites, so that a median can leave out one that is nonsense.

Sites are dealt to groups once for a study and its roster, by the study's digest, and never again. Were they dealt anew each round, the
coordinator would have as many sums over other groups as rounds: what a site sends every time (its rows, its share) would be solved from
them exactly after about n / (groups - 1) rounds, and what changes slowly (an update near the end) nearly so. With one deal it has the
same groups' sums for ever, and nothing within a group.

Guarantees:
    * each site works out its group by itself, from the roster that its people agreed on: a coordinator cannot put it among others;
    * a group is a masked sum of its own (`masked.py`), with its own roster, keys and threshold of ⌊2k/3⌋ + 1 of its k members;
    * of up to `attackers` sites that send anything, at most as many groups are spoilt, and there are twice as many and one more, or nothing
      is folded.

Not protected, and less than with one sum: ⌈k/3⌉ - 1 members of a group of k may work with the coordinator: none of three, one of four to
six. Statistics of round 0, scores and comparisons with the champion are sums, which one liar can spoil; the median is about the model alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

import numpy as np

from fedrounds.core.algorithm import Folded, Sums, summed
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.evaluate import total
from fedrounds.core.masked import TOGETHER, Keyring, Masking, Opened
from fedrounds.core.messages import Reply, Request
from fedrounds.core.params import Array
from fedrounds.core.phases import Phase
from fedrounds.core.privacy.sheet import Sheet
from fedrounds.core.sheets import together


def deal(sites: Iterable[str], groups: int, study: str) -> tuple[tuple[str, ...], ...]:
    """The members of each group, in name order: sizes differ by one at most.

    Args:
        study: digest of the protocol, which holds its seed.

    >>> [len(members) for members in deal("abcdefghijk", 3, "d1")]
    [4, 4, 3]
    """
    order = sorted(sites, key=lambda site: sha256(f"fedrounds group\0{study}\0{site}".encode()).digest())
    return tuple(tuple(sorted(order[first::groups])) for first in range(groups))


def roster_of(site: str, roster: Mapping[str, bytes], groups: int, study: str) -> Mapping[str, bytes]:
    """The names and keys of a site's own group; all where there is one group, none where the roster does not name it."""
    if groups == 1:
        return roster
    mine = next((members for members in deal(roster, groups, study) if site in members), ())
    return {name: roster[name] for name in mine}


@dataclass(frozen=True)
class Rings:
    """The keys of each group, for the next exchange."""

    rings: Mapping[int, Keyring]


@dataclass(frozen=True)
class Parts:
    """The sum of each group that was opened."""

    parts: Mapping[int, Opened]
    enough: int

    @property
    def keyring(self) -> Rings:
        """The keys of the groups."""
        return Rings({number: one.keyring for number, one in self.parts.items()})


@dataclass(frozen=True)
class Grouped:
    """Where an exchange stands whose groups are each masked by themselves; all are in the same phase.

    Args:
        groups: number -> where it stands, of the groups that are not lost.
        enough: groups without which nothing is folded.
        quorum: sites that the study wants in all.
    """

    outer: Request
    groups: Mapping[int, Masking]
    enough: int
    quorum: int
    roster: Mapping[str, bytes]
    number: int
    before: Mapping[str, tuple[str, ...]]

    @property
    def phase(self) -> Phase:
        """Where all of them are."""
        return next(iter(self.groups.values())).phase

    @property
    def sites(self) -> tuple[str, ...]:
        """Who is asked, in name order."""
        return tuple(sorted(site for one in self.groups.values() for site in one.sites))

    @property
    def alive(self) -> tuple[str, ...]:
        """Who was heard."""
        return tuple(sorted(site for one in self.groups.values() for site in one.alive))

    @cached_property
    def _requests(self) -> Mapping[str, Request]:
        return {site: request for one in self.groups.values() for request in [one.request] for site in one.sites}

    @property
    def request(self) -> Request:
        """That of the first group: study, round, exchange and question are the same for all."""
        return next(iter(self.groups.values())).request

    def request_of(self, site: str) -> Request:
        """What a site's group is asked."""
        return self._requests[site]

    def private(self, site: str) -> Mapping[str, Array]:
        """What is for one site alone, as its group's `Masking.private` has it."""
        return next(one.private(site) for one in self.groups.values() if site in one.sites)

    @property
    def needed(self) -> int:
        """Fewer answers than the smallest groups need that are enough cannot close this phase."""
        return sum(sorted(one.needed for one in self.groups.values())[: self.enough])

    @property
    def waits(self) -> int:
        """How many answers leave nobody to wait for: all, since each group needs its own."""
        return len(self.sites)

    def step(self, replies: Iterable[Reply], refused: dict[str, str]) -> Grouped | Parts:
        """Take the replies of a phase, in site order. A group that cannot go on is left out, and its sites are told why.

        Raises:
            QuorumError: too few groups are left, or sites of all; nothing was opened.
        """
        given: dict[str, Reply] = {reply.site: reply for reply in replies}
        going: dict[int, Masking] = {}
        opened: dict[int, Opened] = {}
        for number, one in self.groups.items():
            try:
                after = one.step([given[site] for site in one.sites if site in given], refused)
            except (QuorumError, UpdateRejected) as error:
                left_out(one.sites, str(error), refused)
                continue
            if isinstance(after, Masking):
                going[number] = after
            else:
                opened[number] = after
        enough(len(going) + len(opened), self.enough)
        if opened:
            return Parts(opened, self.enough)
        found = replace(self, groups=going)
        if found.phase == "agree" and len(found.alive) < self.quorum:
            raise QuorumError(
                f"expected masked sums of at least {self.quorum} sites, found those of {len(found.alive)}: nothing was opened"
            )
        return found


def grouped(whole: Masking, groups: int, fewest: int, rings: Rings | None, refused: dict[str, str]) -> Grouped:
    """An exchange under masks as one of each group.

    Args:
        whole: as it would be with one group.
        fewest: groups without which nothing is folded.
        rings: of the exchange before; new keys are asked for unless they serve every group.
        refused: who is left out since too few of its group take part is added.

    Raises QuorumError where too few groups are left.
    """
    found: dict[int, Masking] = {}
    for number, members in enumerate(deal(whole.roster, groups, whole.outer.study)):
        sites = tuple(site for site in whole.sites if site in members)
        roster = {site: whole.roster[site] for site in members}
        one = replace(whole, sites=sites, roster=roster, quorum=0, before={})
        if len(sites) >= one.needed:
            found[number] = one
        else:
            left_out(sites, f"{one.needed} sites of it are needed, {len(sites)} take part", refused)
    enough(len(found), fewest)
    kept: Mapping[int, Keyring] = rings.rings if rings else {}
    if all(number in kept and kept[number].serves(one.sites) for number, one in found.items()):
        found = {number: replace(one, phase="masked", keyring=kept[number]) for number, one in found.items()}
    return Grouped(whole.outer, found, fewest, whole.quorum, whole.roster, whole.number, whole.before)


def opened_sums(
    after: Parts, sheet: Sheet, scale: float, refused: dict[str, str]
) -> tuple[list[tuple[str, Sums]], tuple[str, ...], int]:
    """What each group's sum says: its name and numbers, of the sheet's shapes; who was heard; how many numbers were clipped.

    A group whose sum its members cannot have sent by the rules is left out. Raises QuorumError where too few are left.
    """
    replies: list[tuple[str, Sums]] = []
    heard: list[str] = []
    clipped = 0
    for number, one in after.parts.items():
        try:
            sheet.require(one.words, one.sites, len(one.heard))
            sums, beyond = sheet.sums(one.words, one.sites)
            _sound(sums, len(one.heard))
        except UpdateRejected as error:
            left_out(one.heard, str(error), refused)
            continue
        replies.append((f"(group {number + 1})", together(sums, scale)))
        heard += one.heard
        clipped += beyond
    enough(len(replies), after.enough)
    return replies, tuple(sorted(heard)), clipped


def merged(folded: Folded) -> Folded:
    """What was learned of the groups, as of all together: nobody looks at a group by itself."""
    training = folded.training.values()
    return replace(
        folded,
        scores={TOGETHER: total(folded.scores)} if folded.scores else {},
        personal={TOGETHER: total(folded.personal)} if folded.personal else {},
        paired={TOGETHER: np.sum(list(folded.paired.values()), axis=0)} if folded.paired else {},
        training={TOGETHER: _added(training)} if training else {},
        explained={TOGETHER: summed(folded.explained.values())} if folded.explained else {},
    )


def _added(training: Iterable[tuple[float, float, float]]) -> tuple[float, float, float]:
    rows, losses, weights = (float(sum(column)) for column in zip(*training, strict=True))
    return rows, losses, weights


def _sound(sums: Sums, heard: int) -> None:
    """Raise UpdateRejected where the counts of a group are none that its sites can have by the rules."""
    if "weight" in sums and float(sums["weight"][0]) != heard:
        raise UpdateRejected(f"expected a weight of {heard}, one for each site, found another")
    if "train" in sums and float(sums["train"][0]) < heard:
        raise UpdateRejected(f"expected updates of {heard} sites trained on patients, found fewer rows")
    if "paired" in sums and float(sums["paired"][0]) != float(sums["scores"][0]):
        raise UpdateRejected("expected both models scored on the same rows, found differences of others")
    if "personal" in sums and float(sums["personal"][0]) != float(sums["scores"][0]):
        raise UpdateRejected("expected both models scored on the same rows, found the sites' own scored on others")


def left_out(sites: Sequence[str], why: str, refused: dict[str, str]) -> None:
    """Note of each site that its group is left out, unless it is known why the site is."""
    for site in sites:
        refused.setdefault(site, f"its group of masked sums is left out: {why}")


def enough(found: int, fewest: int) -> None:
    """Raise QuorumError where there are too few groups for a median."""
    if found < fewest:
        raise QuorumError(
            f"expected masked sums of at least {fewest} groups of sites, found those of {found}: a median of fewer could be an attacker's"
        )
