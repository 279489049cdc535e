"""`[privacy] dp = { … }`: how much may be learnt of one patient from all that leaves a site, and how that is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedrounds.core.frozen import Finite, Frozen, Rate
from fedrounds.core.privacy.accounting import Budget, Event, multiplier

UNSTATED = (1, 32)  # epochs and batch of a local rule that states neither
MOST_EXCHANGES = 64  # of a round
LATER = (
    ("colluders", None),
    ("spare", 0),
    ("scores", None),
    ("target", None),
)  # words that some studies are older than, as they say nothing
Share = Annotated[float, Field(gt=0, lt=1)]


class Scores(Frozen):
    """`scores = { … }`: versions are held against the champion by noised sums, so that there can be one.

    Args:
        share: of ε for all comparisons together.
        clip: how far one patient's losses under the two models may be apart; what is beyond is cut.
        every: so many rounds: versions in between are not compared, and none becomes champion.
    """

    share: Share = 0.1
    clip: Rate = 1.0
    every: int = Field(default=5, ge=1)

    def due(self, round: int) -> bool:
        """Whether the version of a round is one that is compared."""
        return round > 0 and round % self.every == 0

    def comparisons(self, rounds: int) -> int:
        """How many are made of so many rounds' versions: the first that is due has nobody to be compared with.

        >>> [Scores(every=5).comparisons(rounds) for rounds in (0, 5, 9, 10, 52)]
        [0, 0, 0, 1, 9]
        """
        return max(rounds // self.every - 1, 0)


class Differential(Frozen):
    """Differential privacy: neighbours are two sites of which one has one patient (one row) more (Dwork et al. 2006).

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
        colluders: under masks, how many sites of a sum may tell the coordinator the noise that they drew; as many as the masks withstand
            (⌈n/3⌉ - 1 of n) where it is left out. The fewer, the less noise.
        spare: under masks, exchanges that may be asked again after a crash or a lost quorum: each costs as the first time did.
        target: of an exact fit, the public range on which the target is cut.
        scores: how versions are compared with the champion; left out: scores stay at the sites, and there is no champion.
    """

    unit: Literal["patient"]
    epsilon: float = Field(gt=0, le=100)
    delta: float | None = Field(default=None, gt=0, lt=0.1)
    patients: int = Field(ge=10)
    rounds: int = Field(ge=1, le=100_000)
    clip: Rate = 1.0
    sample_rate: float = Field(default=0.25, gt=0, le=1)
    steps: int = Field(default=5, ge=1, le=10_000)
    statistics: Share = 0.3
    colluders: int | None = Field(default=None, ge=0)
    spare: int = Field(default=0, ge=0, le=100_000)
    scores: Scores | None = None
    target: tuple[Finite, Finite] | None = None

    @model_validator(mode="after")
    def _leaves_some(self) -> Differential:
        if self.scores is None:
            return self
        if not self.scores.comparisons(self.rounds):
            raise ValueError(
                f"expected two versions or more to compare in privacy.dp.rounds = {self.rounds}, found that one is due every"
                f" {self.scores.every} rounds: lower privacy.dp.scores.every, or leave scores out"
            )
        if self.statistics + self.scores.share >= 1:
            raise ValueError(
                f"expected something of ε left for training, found shares of {self.statistics:g} for privacy.dp.statistics and"
                f" {self.scores.share:g} for privacy.dp.scores: lower one"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies that are older than these words keep their digest."""
        found: dict[str, Any] = plain(self)
        return {key: value for key, value in found.items() if (key, value) not in LATER}

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

    def scores_event(self) -> Event:
        """What one comparison with the champion costs. Its share of ε is for all that `rounds` make."""
        assert self.scores is not None
        share = Budget(self.scores.share * self.epsilon, self.budget.delta)
        return Event(multiplier(share, 1.0, self.scores.comparisons(self.rounds)))

    def comparing(self, rounds: int) -> tuple[Event, ...]:
        """What the comparisons of so many rounds' versions cost together; nothing where there are none."""
        times = self.scores.comparisons(rounds) if self.scores else 0
        return (self.scores_event()._replace(times=times),) if times else ()

    def training_event(self) -> Event:
        """What one round of training costs: `rounds` of them use up what round 0 and comparisons leave."""
        releases = self.rounds * self.steps + self.spare
        z = multiplier(self.budget, self.sample_rate, releases, (self.statistics_event(), *self.comparing(self.rounds)))
        return Event(z, self.sample_rate, self.steps)

    def require_together(self, bits: int) -> None:
        """Raise ValueError where it does not go with masks over words of so many bits."""
        if bits < 32:
            raise ValueError(f"noised numbers need words of 32 or 64 bits, found privacy.protect.bits = {bits}")
        if self.steps > MOST_EXCHANGES:
            raise ValueError(
                f"under masks each step of a round is an exchange: expected at most {MOST_EXCHANGES} privacy.dp.steps, found {self.steps}"
            )

    def require_apart(self) -> None:
        """Raise ValueError where words are stated that mean something under masks alone."""
        if self.colluders is not None or self.spare:
            raise ValueError(
                "without masks each site makes all its noise by itself, and says the same again for nothing: leave out"
                " privacy.dp.colluders and spare, or set privacy.protect to masked"
            )

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
        if self.target is not None:
            raise ValueError(
                "privacy.dp.target bounds the target of an exact fit, and this study descends: leave it out"
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

    def require_exact(self, unbounded: Sequence[str], plain: bool) -> None:
        """Raise ValueError where it does not go with an exact fit, which reads every patient once a round.

        Args:
            plain: whether the model has an intercept, and neither offset nor case weights.
        """
        if unbounded:
            raise ValueError(
                f"differential privacy needs the range of every number, which bounds what a patient adds: give one for {', '.join(unbounded[:8])}"
            )
        if self.target is None or self.target[0] >= self.target[1]:
            raise ValueError(
                "the sums of an exact fit under differential privacy need a public range of the target: state privacy.dp.target = [low, high]"
            )
        if (self.sample_rate, self.steps) != (1.0, 1):
            raise ValueError(
                "an exact fit reads every patient once a round: state privacy.dp.sample_rate = 1.0 and privacy.dp.steps = 1"
            )
        if not plain:
            raise ValueError(
                "an exact fit under differential privacy counts its patients by the intercept and counts each once: leave model.intercept at true,"
                " and offset and case_weights out"
            )
