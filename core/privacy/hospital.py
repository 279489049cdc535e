"""`[privacy] dp = { unit = "hospital", … }`: how much may be learnt of one hospital from all that a study shows, under masks alone.

Neighbours are two studies in one of which what a hospital sends is zero; that it takes part is public. Every hospital counts as one, however
many patients it has: its statistics are means over its own rows, its update is clipped, and the noise is made together (`noised.Noised`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.privacy.accounting import Budget, Event, multiplier
from fedrounds.core.privacy.noise import Gaussian

Share = Annotated[float, Field(gt=0, lt=1)]
BIT = 0.5  # what the bit beside an update weighs, in clips: it costs 3 % more noise in the update


class Hospitals(Frozen):
    """Differential privacy of a hospital.

    Args:
        unit: who is protected; there is no default.
        epsilon, delta: what this study may spend on a hospital in all, statistics included; δ is 1 / (10 `hospitals`) where it is left out.
        hospitals: how many the study is for: a public number.
        rounds: for which the noise is calibrated; the budget refuses more.
        clip: Euclidean bound on a hospital's update.
        quantile: of the updates' lengths that the clip follows from round to round (Andrew et al. 2021); left out: it stays as it is.
        statistics: round 0's share of ε.
        colluders, spare: as with patients.
    """

    unit: Literal["hospital"]
    epsilon: float = Field(gt=0, le=100)
    delta: float | None = Field(default=None, gt=0, lt=0.1)
    hospitals: int = Field(ge=3)
    rounds: int = Field(ge=1, le=100_000)
    clip: Rate = 1.0
    quantile: Share | None = None
    statistics: Share = 0.3
    colluders: int | None = Field(default=None, ge=0)
    spare: int = Field(default=0, ge=0, le=100_000)
    scores: ClassVar[None] = None  # refused below

    @model_validator(mode="before")
    @classmethod
    def _compares_nothing(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "scores" in given:
            raise ValueError(
                "a mean loss in which one hospital can hide tells too little of two versions: leave out privacy.dp.scores, or protect patients"
                ' (unit = "patient")'
            )
        return cast(Any, given)

    @property
    def budget(self) -> Budget:
        """What may be spent in all."""
        return Budget(self.epsilon, self.delta or 1 / (10 * self.hospitals))

    def statistics_event(self) -> Event:
        """What round 0 costs."""
        return Event(multiplier(Budget(self.statistics * self.epsilon, self.budget.delta), 1.0, 1))

    def training_event(self) -> Event:
        """What one round of training costs: one release that every hospital is in."""
        return Event(multiplier(self.budget, 1.0, self.rounds + self.spare, (self.statistics_event(),)))

    def comparing(self, rounds: int) -> tuple[Event, ...]:
        """Nothing is compared with the champion."""
        del rounds
        return ()

    def mechanism(self, size: int) -> Gaussian:
        """Of so many numbers: an update in clips, and the bit beside it where the clip follows the updates.

        The bit is ± BIT / 2, so both together are √(1 + BIT²/4) long at most: one Gaussian release, and the same noise for either as
        z_Δ = (z⁻² - (2σ_b)⁻²)^(-1/2) of Andrew et al. 2021, theorem 1, gives.
        """
        bit = BIT if self.quantile is not None else 0.0
        return Gaussian(sqrt(1 + bit * bit / 4), self.training_event().multiplier, size)

    def size(self, parameters: int) -> int:
        """How many numbers travel."""
        return parameters + (self.quantile is not None)

    def require_together(self, bits: int) -> None:
        """Raise ValueError where it does not go with masks over words of so many bits."""
        if bits < 32:
            raise ValueError(f"noised numbers need words of 32 or 64 bits, found privacy.protect.bits = {bits}")

    def require_apart(self) -> None:
        """Raise ValueError: without masks there is no sum for a hospital to hide in."""
        raise ValueError(
            "unit 'hospital' needs masked sums: without them the coordinator sees each hospital's own update, and noise that hid it there would"
            ' leave nothing to learn; set privacy.protect = { kind = "masked" }'
        )

    def require_exact(self, unbounded: Sequence[str], plain: bool) -> None:
        """Raise ValueError: sums in which one hospital hides settle no fit."""
        del unbounded, plain
        raise ValueError(
            'differential privacy of a hospital clips each one\'s update, and an exact fit has none: choose a preset such as "fedavg"'
        )

    def require(self, unbounded: Sequence[str], local: str, batches: tuple[int, int | str], weights: object) -> None:
        """Raise ValueError where the rest of the study does not go with it; any local rule does."""
        del local, batches
        if unbounded:
            raise ValueError(
                f"differential privacy needs the range of every number, which bounds what a hospital adds: give one for {', '.join(unbounded[:8])}"
            )
        if weights == "patients":
            raise ValueError(
                "weights 'patients' would tell each hospital's number of patients: under differential privacy of hospitals expected \"uniform\""
                " or stated weights"
            )
