"""`[privacy] dp = { … }`: how much may be learnt of one patient from all that leaves a site, and how that is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.privacy.accounting import Budget, Event, multiplier

UNSTATED = (1, 32)  # epochs and batch of a local rule that states neither
Share = Annotated[float, Field(gt=0, lt=1)]


class Differential(Frozen):
    """Differential privacy: neighbours are two sites of which one has one patient (one row) more.

    Args:
        unit: who is protected; there is no default.
        epsilon, delta: what this study may spend on a site's rows in all, statistics included; δ is 1 / (10 `patients`) where it is left out.
        patients: how many training rows the largest site is taken to have. A public number: an update is divided by
            `sample_rate` × `patients`, never by how many rows there are or were drawn.
        rounds: for which the noise is calibrated; the budget refuses more.
        clip: Euclidean bound on one patient's gradient.
        sample_rate: a patient's chance to be in a step's batch, drawn anew each step.
        steps: of a round.
        statistics: round 0's share of ε.
    """

    unit: Literal["patient", "hospital"]
    epsilon: float = Field(gt=0, le=100)
    delta: float | None = Field(default=None, gt=0, lt=0.1)
    patients: int = Field(ge=10)
    rounds: int = Field(ge=1, le=100_000)
    clip: Rate = 1.0
    sample_rate: float = Field(default=0.25, gt=0, le=1)
    steps: int = Field(default=5, ge=1, le=10_000)
    statistics: Share = 0.3

    @model_validator(mode="after")
    def _offered(self) -> Self:
        if self.unit == "hospital":
            raise ValueError(
                "unit 'hospital' needs masked sums that are noised together, which are not there yet: state unit = \"patient\""
            )
        return self

    @property
    def budget(self) -> Budget:
        """What may be spent in all."""
        return Budget(self.epsilon, self.delta or 1 / (10 * self.patients))

    @property
    def batch(self) -> float:
        """What a step's sum is divided by: public."""
        return self.sample_rate * self.patients

    def statistics_event(self) -> Event:
        """What round 0 costs."""
        return Event(multiplier(Budget(self.statistics * self.epsilon, self.budget.delta), 1.0, 1))

    def training_event(self) -> Event:
        """What one round of training costs: `rounds` of them use up what round 0 leaves."""
        z = multiplier(self.budget, self.sample_rate, self.rounds * self.steps, (self.statistics_event(),))
        return Event(z, self.sample_rate, self.steps)

    def require(self, unbounded: Sequence[str], local: str, batches: tuple[int, int | str], weights: object) -> None:
        """Raise ValueError where the rest of the study does not go with it.

        Args:
            unbounded: numbers of the dictionary that have no range.
            local: the local rule.
            batches: its epochs and batch size, which have no say here and so must be as if they were not stated.
        """
        if unbounded:
            raise ValueError(
                f"differential privacy needs the range of every number, which bounds what a patient adds: give one for {', '.join(unbounded[:8])}"
            )
        if local != "sgd":
            raise ValueError(
                f"differential privacy trains by noised gradient descent: expected local rule 'sgd', found '{local}'"
            )
        if batches != UNSTATED:
            raise ValueError(
                "under differential privacy batches are drawn by privacy.dp.sample_rate, and there are privacy.dp.steps a round:"
                " leave out the local rule's epochs and batch"
            )
        if weights == "patients":
            raise ValueError(
                "weights 'patients' would tell each site's number of patients: under differential privacy expected \"uniform\" or stated"
                " weights (a site with more patients moves the model more by itself: its sum is divided by a public number)"
            )
