"""study.toml: the protocol of a study. Public, the same at every site; its digest is what a hospital approves and what seeds everything.

What each word means stands beside it: `core/models`, `core/local.py`, `core/combine.py`, `core/server.py`; `plan.build` puts them together.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from math import isfinite
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from fedrounds.core import local, participation, personal, robust, subgroups
from fedrounds.core.combine import Combine, Median
from fedrounds.core.frozen import Finite, Fraction, Frozen, Name
from fedrounds.core.models import Model, fitting
from fedrounds.core.participation import Participation
from fedrounds.core.pixels import written_out
from fedrounds.core.privacy.settings import Ckks, Masked, Privacy
from fedrounds.core.strategy import Algorithm, Averaging, Exact
from fedrounds.core.subgroups import Explain
from fedrounds.core.wire import Wire

Label = str | int | float


# --- the dictionary ---------------------------------------------------------------------------------------------------


class Number(Frozen):
    """A numeric feature. `range` is inclusive and is what the gate checks; a missing code may be text or a number."""

    type: Literal["number"]
    name: str = Field(min_length=1)
    unit: str = ""
    range: tuple[Finite, Finite] | None = None
    missing: tuple[Label, ...] = ()
    impute: Literal["mean"] | Finite = "mean"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.range and self.range[0] >= self.range[1]:
            raise ValueError(f"range of '{self.name}' must go from low to high, found {list(self.range)}")
        return self


class Category(Frozen):
    """A feature with levels.

    `one_hot` gives a column a level and one for every other value; `drop_first` leaves out the first level
    (the reference) and takes a value outside `categories` as missing.
    """

    type: Literal["category"]
    name: str = Field(min_length=1)
    unit: str = ""
    categories: tuple[Label, ...] = Field(min_length=2)
    missing: tuple[Label, ...] = ()
    encode: Literal["one_hot", "drop_first"] = "one_hot"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({canonical(level) for level in self.categories}) < len(self.categories):
            raise ValueError(f"categories of '{self.name}' must differ, found {list(self.categories)}")
        return self


Feature = Annotated[Number | Category, Field(discriminator="type")]


def canonical(value: Label) -> str:
    """One text for one meaning: `63.0`, `63` and 63 are all `63`; other text is only stripped.

    >>> canonical(" 63.0 "), canonical("1_yes")
    ('63', '1_yes')
    """
    text = str(value).strip()
    if "_" in text:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not isfinite(number):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


# --- the target -------------------------------------------------------------------------------------------------------


class Regression(Frozen):
    """Predict a number."""

    kind: Literal["regression"]
    column: str
    unit: str = ""
    missing: tuple[Label, ...] = ()


class Binary(Frozen):
    """Predict yes or no: a number above a cut, or stated labels for each side."""

    kind: Literal["binary"]
    column: str
    positive_above: Finite | None = None
    positive: tuple[Label, ...] = ()
    negative: tuple[Label, ...] = ()
    missing: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        labelled = bool(self.positive) and bool(self.negative)
        if (self.positive_above is not None) == (labelled or bool(self.positive) or bool(self.negative)):
            raise ValueError("a binary target needs either `positive_above`, or both `positive` and `negative` labels")
        if self.positive_above is None and not labelled:
            raise ValueError("a binary target needs labels on both sides: give `positive` and `negative`")
        return self


class Multiclass(Frozen):
    """Predict one of several classes."""

    kind: Literal["multiclass"]
    column: str
    classes: tuple[Label, ...] = Field(min_length=3)
    missing: tuple[Label, ...] = ()


class NoTarget(Frozen):
    """Predict nothing: the features alone are described, by clusters or by principal components."""

    kind: Literal["none"]
    column: ClassVar[str] = ""
    missing: ClassVar[tuple[Label, ...]] = ()


class Steps(Frozen):
    """So many equal steps of time, from 0 to `last`."""

    last: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: int = Field(ge=1, le=1000)


class Survival(Frozen):
    """Predict when something happens: `time` until it does (`event` holds a label of `happened`), or until the patient was last seen.

    Times are known to an interval of a public grid: its ends, or equal steps. Who is followed beyond the last end counts as last seen there.
    """

    kind: Literal["survival"]
    time: str = Field(min_length=1)
    event: str = Field(min_length=1)
    grid: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1000)] | Steps
    happened: tuple[Label, ...] = Field(default=(1,), min_length=1)
    censored: tuple[Label, ...] = Field(default=(0,), min_length=1)
    unit: str = "days"
    missing: tuple[Label, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(low >= high for low, high in pairwise((0.0, *self.ends))):
            raise ValueError("the grid of a survival target must rise from above 0")
        if self.time == self.event:
            raise ValueError("`time` and `event` of a survival target are two columns")
        both = {canonical(label) for label in self.happened} & {canonical(label) for label in self.censored}
        if both:
            raise ValueError("`happened` and `censored` of a survival target must not share a label")
        return self

    @property
    def column(self) -> str:
        """The column that holds what happened."""
        return self.event

    @property
    def ends(self) -> tuple[float, ...]:
        """Where each interval of the grid ends."""
        if isinstance(self.grid, Steps):
            return tuple(self.grid.last * step / self.grid.steps for step in range(1, self.grid.steps + 1))
        return self.grid


Target = Annotated[Regression | Binary | Multiclass | Survival | NoTarget, Field(discriminator="kind")]


# --- rows -------------------------------------------------------------------------------------------------------------


class Preprocess(Frozen):
    """What happens between a clean table and the design matrix. Statistics are agreed in round 0 by sums, then frozen."""

    missing: Literal["impute", "drop_row"] = "impute"
    standardise: Literal["numbers", "all", "none"] = "numbers"


class Validation(Frozen):
    """Which rows only judge: a share drawn at each site by a keyed hash of the patient, or the words of a `fold` column.

    `bins`: of the score histograms from which the area under the ROC curve is computed.
    """

    fraction: Fraction = 0.25
    bins: int = Field(default=50, ge=2, le=10_000)
    fold: str | None = None
    train: tuple[str, ...] = ("train",)
    valid: tuple[str, ...] = ("valid", "test")


class Start(Frozen):
    """The registered version to go on from: its model, and the statistics that its preprocessing goes by, instead of round 0's.

    `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in the MLflow that the study writes to; an alias is looked up once, when a lineage begins.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    version: str = Field(
        alias="from", pattern=r"^models:/[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(@[A-Za-z0-9_.-]{1,255}|/[0-9]{1,9})$"
    )


# --- the study --------------------------------------------------------------------------------------------------------


class Study(Frozen):
    """The whole protocol."""

    name: Name
    title: str = ""
    note: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    patient_id: str | None = None
    event_time: str | None = None
    offset: str | None = None
    case_weights: str | None = None
    target: Target
    features: Annotated[tuple[Feature, ...], BeforeValidator(written_out)] = Field(min_length=1)
    preprocess: Preprocess = Preprocess()
    validation: Validation = Validation()
    model: Model
    start: Start | None = None
    algorithm: Algorithm
    weights: Literal["patients", "uniform"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = "patients"
    protocol: Wire = Wire()
    privacy: Privacy = Privacy()
    explain: Explain = Explain()

    @model_validator(mode="after")
    def _composes(self) -> Self:
        names = [feature.name for feature in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"expected each feature once, found {', '.join(twice)} twice")
        reserved = {
            "target": self.target.column,
            "patient_id": self.patient_id,
            "event_time": self.event_time,
            "fold": self.validation.fold,
            "offset": self.offset,
            "case weight": self.case_weights,
            "time": self.target.time if isinstance(self.target, Survival) else None,
        }
        for role, column in reserved.items():
            if column in names:
                raise ValueError(
                    f"'{column}' is the {role} and cannot be a feature too: that would leak the answer or an identity"
                )
        if self.target.kind not in self.model.targets:
            raise ValueError(
                f"a {self.target.kind} target goes with {' or '.join(fitting(self.target.kind))}, found model '{self.model.kind}'"
            )
        free = [feature.name for feature in self.features if isinstance(feature, Number) and feature.range is None]
        self.privacy.require(free, self.protocol.codec)
        self._fits()
        self._starts()
        subgroups.require(self.explain, {f.name: isinstance(f, Number) for f in self.features})
        if isinstance(self.algorithm, Averaging):
            robust.require(self.algorithm.combine, self.privacy, self.weights)
            own, parts = self.algorithm.personal, self.algorithm
            personal.require(own, parts.local, parts.combine.kind, self.model.layers, self.privacy.dp is not None)
        if self.privacy.dp and isinstance(self.algorithm, Averaging):
            rule = self.averaging.local
            self.privacy.dp.require(free, rule.kind, (rule.epochs, rule.batch), self.weights)
        if isinstance(self.algorithm, Averaging):
            hidden, noised = self.privacy.masked is not None, self.privacy.dp is not None
            local.require(self.algorithm.local, self.algorithm.combine.kind, hidden, noised)
            participation.require(self.algorithm.participation, self.algorithm.local, self.algorithm.combine, hidden)
        return self

    def _fits(self) -> None:
        """Raise ValueError where model and algorithm do not go together, or with what the study says of its rows."""
        exact, model = isinstance(self.algorithm, Exact), self.model
        if ("exact" if exact else "averaging") not in model.algorithms:
            raise ValueError(
                f"a {model.kind} model is "
                + (
                    'averaged, and no sums over patients fit it: choose a preset such as "fedavg"'
                    if exact
                    else 'fitted by sums over patients, and no gradient leads there: set algorithm = "exact"'
                )
            )
        if self.offset and not model.additive:
            raise ValueError(
                f"an offset is added to a linear predictor, and a {model.kind} model has none: leave it out"
            )
        if self.privacy.dp and self.privacy.dp.unit == "patient" and not model.clippable:
            raise ValueError(
                f"differential privacy of patients clips each one's gradient, which nobody has built for {model.kind} models"
            )
        if not exact:
            if self.case_weights:
                raise ValueError(
                    'case weights go with sums over patients: set algorithm = "exact", or leave case_weights out'
                )
            return
        if self.weights != "patients":
            raise ValueError('an exact fit counts every patient alike: leave weights at "patients"')
        if self.privacy.dp:
            if not model.settled:
                raise ValueError(
                    f"the sums of an exact {model.kind} fit have no bound that is known beforehand, or are taken anew at each step, so nobody has"
                    ' noised them: under differential privacy choose a preset such as "fedavg", or a linear model'
                )
            free = [feature.name for feature in self.features if isinstance(feature, Number) and feature.range is None]
            self.privacy.dp.require_exact(
                free, getattr(model, "intercept", False) and not self.offset and not self.case_weights
            )
        if self.protocol.codec != "float64":
            raise ValueError("the sums of an exact fit need all their digits: leave out protocol.codec")

    def _starts(self) -> None:
        """Raise ValueError where a start from a registered version would be for nothing, or would break a promise."""
        if self.start is None:
            return
        if isinstance(self.algorithm, Exact):
            raise ValueError(
                "an exact fit ends at one model wherever it starts: leave out `start`, or choose an algorithm that averages"
            )
        if self.privacy.dp:
            raise ValueError(
                "a version to start from may know patients that no noise hides, and a study under differential privacy would pass it on as its own:"
                " leave out `start`"
            )
        if self.masked:
            raise ValueError(
                "updates under masks are scaled by the patients that round 0 counts, and a start from a version has no round 0: leave out `start`,"
                " or privacy.protect"
            )

    @property
    def masked(self) -> Masked | Ckks | None:
        """How sums are hidden, by masks or by encryption; None where they are not."""
        return self.privacy.masked

    @property
    def grain(self) -> float:
        """By how much a total may be off where sums are hidden: rounded to steps of 2⁻⁹ at most at each of a hundred sites."""
        return 0.1 if self.masked else 0.0

    @property
    def averaging(self) -> Averaging:
        """The parts of its algorithm, which is one that averages."""
        assert isinstance(self.algorithm, Averaging)
        return self.algorithm

    @property
    def combine(self) -> Combine | None:
        """How updates become one, None where there are none."""
        return self.algorithm.combine if isinstance(self.algorithm, Averaging) else None

    @property
    def participation(self) -> Participation:
        """Which sites a round of training asks: all, unless it says so."""
        return (isinstance(self.algorithm, Averaging) and self.algorithm.participation) or Participation()

    @property
    def median(self) -> Median | None:
        """How a median combines updates, None where another rule does."""
        return self.combine if isinstance(self.combine, Median) else None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical protocol. A default written out is the same protocol, and so is other prose about it."""
        prose = {"title", "note"}
        later = {  # studies older than these keys keep their digest
            key
            for key, default in (("protocol", Wire()), ("privacy", Privacy()), ("explain", Explain()))
            if getattr(self, key) == default
        }
        later |= {key for key in ("offset", "case_weights", "start") if getattr(self, key) is None}
        protocol = self.model_dump(mode="json", exclude=prose | later)
        canonical_json = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical_json.encode()).hexdigest()
