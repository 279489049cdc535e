"""`algorithm.participation`: which sites a round of training asks, how many replies close it, and how far each site walks.

Each round draws sites anew, uniformly and without replacement (McMahan et al. 2017, algorithm 1). It may ask more than it needs, and close
with the first that answer (Bonawitz et al. 2019, section 2.2: 130 %). Round 0, profiles and the visits that only score ask every site.

The draw is public: anybody works it out from the study's digest. So it hides nobody, and no privacy is gained by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from math import ceil
from statistics import median
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedrounds.core.algorithm import Payload, SiteState
from fedrounds.core.combine import Combine
from fedrounds.core.errors import QuorumError, UpdateRejected
from fedrounds.core.frozen import Frozen
from fedrounds.core.local import Local
from fedrounds.core.pace import Epochs, Left, Memory, Rule, Shapes, Work
from fedrounds.core.params import Vector

EPOCHS = "epochs"  # what travels with the model where sites walk at their own pace


class Uneven(Frozen):
    """Epochs of a site in a round: from `least` to `most`, as many as take it about as long as the median site takes for the study's.

    No paper: by the median is a rule of our own. A plain mean would lean to whoever takes more steps (Wang et al. 2020, theorem 1).
    """

    least: Epochs = 1
    most: Epochs

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"expected `least` of at most `most`, found {self.least} above {self.most}: lower it")
        return self


class Participation(Frozen):
    """Which sites a round of training asks, and how many replies close it (McMahan et al. 2017; Bonawitz et al. 2019).

    Args:
        fraction: of the sites that may take part, whose replies a round wants: its goal, rounded up.
        minimum: sites below which the goal never falls, and with fewer replies no round closes.
        over_selection: how many times the goal is asked: the round closes once the goal has answered, and later replies do not count.
        pace: bounds of the epochs that a coordinator asks of each site by its speed; left out: each walks the study's.
    """

    fraction: float = Field(default=1.0, gt=0, le=1)
    minimum: int = Field(default=1, ge=1, le=1_000_000)
    over_selection: float = Field(default=1.0, ge=1, le=10)
    pace: Uneven | None = None

    @model_serializer(mode="wrap")
    def _short(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in plain(self).items() if name != "pace" or value is not None}

    def goal(self, sites: int) -> int:
        """Replies that a round wants, of so many sites.

        >>> Participation(fraction=0.3).goal(10), Participation(fraction=0.1, minimum=3).goal(10)
        (3, 3)
        """
        return min(sites, max(self.minimum, _up(self.fraction * sites)))

    def asked(self, sites: int) -> int:
        """Sites that a round asks, of so many.

        >>> Participation(fraction=0.5, over_selection=1.3).asked(20)
        13
        """
        return min(sites, _up(self.over_selection * self.goal(sites)))

    @property
    def title(self) -> str:
        """In a few words; none where every site is asked and counts."""
        share = f"{100 * self.fraction:g} % of the hospitals a round" if self.fraction < 1 else ""
        more = f"the first of {self.over_selection:g} times as many" if self.over_selection > 1 else ""
        own = f"{self.pace.least} to {self.pace.most} epochs by speed" if self.pace else ""
        return ", ".join(part for part in (share, more, own) if part)


def _up(value: float) -> int:
    return ceil(value - 1e-9)  # 0.3 * 10 is above 3


# --- who is asked -----------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Who is asked in a round, and how many replies count and are needed.

    Attributes:
        asked: in name order.
        goal: replies that count; 0 where every site is asked, and all that answer count.
        quorum: replies without which the round does not close.
    """

    asked: tuple[str, ...]
    goal: int
    quorum: int


def draw(of: Participation, study: str, number: int, sites: Iterable[str], quorum: int) -> Drawn:
    """Draw the sites of a round.

    Guarantees:
        * whoever asks again, after a crash too, draws the same sites, since nothing is drawn from but study, round and names;
        * where one site is away for good, the others' draws move up by at most one.

    Args:
        study: digest of the protocol, which holds its seed.
        number: of the round.
        sites: that may take part.
        quorum: that the operations want.

    Raises QuorumError where a round wants fewer sites than the operations' quorum.
    """
    there = tuple(sorted(sites))
    goal = of.goal(len(there))
    if of.minimum <= len(there) and (said := unreachable(of, len(there), quorum)):
        raise QuorumError(said)
    asked = order(study, number, there)[: of.asked(len(there))]
    return Drawn(tuple(sorted(asked)), goal if goal < len(there) else 0, max(quorum, of.minimum))


def unreachable(of: Participation, sites: int, quorum: int) -> str:
    """Why no round of so many sites could close; empty if one could."""
    if sites < of.minimum:
        return f"expected algorithm.participation.minimum of at most {sites} sites in study.toml, found {of.minimum}: lower it, or add sites"
    if of.fraction < 1 and of.goal(sites) < quorum:
        return (
            f"expected a quorum of at most {of.goal(sites)} sites, as many as a round of {sites} wants, found {quorum}: lower `quorum` in"
            " operations.toml, or set algorithm.participation.minimum to it"
        )
    return ""


def order(study: str, number: int, sites: Iterable[str]) -> tuple[str, ...]:
    """The sites in the order of a round's draw: by a hash of each, so a random order in which a site's leaving moves nobody past another.

    >>> order("d1", 1, "abcdef")[:3], order("d1", 1, "abcde")[:3], order("d1", 2, "abcdef")[:3]
    (('c', 'e', 'f'), ('c', 'e', 'b'), ('d', 'a', 'b'))
    """
    return tuple(sorted(sites, key=lambda site: sha256(f"fedrounds draw\0{study}\0{number}\0{site}".encode()).digest()))


def first(study: str, number: int, answered: Iterable[str], goal: int) -> frozenset[str]:
    """Whose replies count where more than the goal have answered at once, as sites of one process do: the first of the draw."""
    return frozenset(order(study, number, answered)[:goal])


# --- how far each walks -----------------------------------------------------------------------------------------------


def chosen(pace: Uneven, usual: int, per_epoch: Mapping[str, float]) -> dict[str, int]:
    """Epochs of each site whose speed is known: as many as take it as long as the median of them takes for `usual`, within the bounds.

    Args:
        per_epoch: site -> seconds that an epoch takes there.

    >>> chosen(Uneven(least=1, most=8), 4, {"quick": 0.5, "usual": 1.0, "slow": 2.1, "stuck": 60.0, "fast": 0.1})
    {'quick': 8, 'usual': 4, 'slow': 2, 'stuck': 1, 'fast': 8}
    """
    if not per_epoch:
        return {}
    time = usual * median(per_epoch.values())
    return {
        site: int(min(max(round(time / seconds), pace.least), pace.most)) if seconds > 0 else pace.most
        for site, seconds in per_epoch.items()
    }


def paced(local: Local, pace: Uneven) -> Rule:
    """The local rule, whose epochs come with the model: `epochs` (1,). Raises UpdateRejected, at the site, beyond the study's bounds."""
    plain = local.rule()

    def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
        epochs = float(sent[EPOCHS][0])
        if not (epochs.is_integer() and pace.least <= epochs <= pace.most):
            raise UpdateRejected(
                f"expected to be asked for {pace.least} to {pace.most} epochs, as the study says, was asked for {epochs:g}"
            )
        return local.model_copy(update={"epochs": int(epochs)}).rule().visit(work, theta, memory, sent)

    def sends(size: int) -> Shapes:
        return {**plain.sends(size), EPOCHS: (1,)}

    def asks(kept: Memory, number: int, size: int) -> Payload:
        return {**plain.asks(kept, number, size), EPOCHS: np.array([float(local.epochs)])}

    return plain._replace(visit=visit, sends=sends, asks=asks)


# --- what it goes together with ---------------------------------------------------------------------------------------


def require(of: Participation | None, local: Local, combine: Combine, hidden: bool) -> None:
    """Raise ValueError where it does not go with the rest of the study: `hidden`, whether sums are masked or encrypted."""
    if of is None or of == Participation():
        return
    if hidden:
        raise ValueError(
            "sums of other sites in each round would be subtracted from one another until single sites are left, and masks open no sum of few:"
            " leave out privacy.protect, or algorithm.participation"
        )
    if of.fraction < 1 and combine.kind == "afl":
        raise ValueError(
            "agnostic learning weighs sites by the losses of all of them in each round: leave out algorithm.participation.fraction, or combine"
            " by another rule"
        )
    if of.fraction < 1 and of.minimum < combine.fewest:
        raise ValueError(
            f"{combine.kind} needs {combine.fewest} updates in each round, and asks {of.minimum} at least: set algorithm.participation.minimum"
            f" to {combine.fewest} or more"
        )
    if of.over_selection > 1 and of.fraction == 1:
        raise ValueError(
            "over_selection asks more sites than a round wants, and this one wants all: set algorithm.participation.fraction below 1, or leave"
            " over_selection out"
        )
    if of.pace is None:
        return
    if local.kind != "fednova":
        raise ValueError(
            f"a mean of updates leans to sites that take more steps (Wang et al. 2020, theorem 1), and '{local.kind}' does not undo it: set"
            ' algorithm.local to { kind = "fednova" }, or leave out algorithm.participation.pace'
        )
    if local.steps is not None:
        raise ValueError("pace chooses epochs, and this study states steps: leave out algorithm.local.steps, or pace")
    if not of.pace.least <= local.epochs <= of.pace.most:
        raise ValueError(
            f"expected algorithm.local.epochs from {of.pace.least} to {of.pace.most}, as pace says, found {local.epochs}:"
            " it is what a site walks whose speed is not known yet"
        )
