"""study.toml: the protocol of a study. Public, the same at every site; its digest is what a hospital approves and what seeds everything.

A name below is a word; `plan.build` is the only place where it becomes a function.
"""

from __future__ import annotations

import hashlib
import json
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedrounds.core import robust
from fedrounds.core.frozen import Finite, Fraction, Frozen, Name, NonNegative, Rate
from fedrounds.core.privacy.settings import Ckks, Masked, Privacy
from fedrounds.core.robust import Combine, Median, WeightedMean
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


Target = Annotated[Regression | Binary | Multiclass, Field(discriminator="kind")]


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


# --- models -----------------------------------------------------------------------------------------------------------


class Linear(Frozen):
    """Least squares. `l2` here and below is the penalty l2/2 |theta|^2 beside the mean loss, intercepts free."""

    kind: Literal["linear"]
    intercept: bool = True
    l2: NonNegative = 0.0


class Logistic(Frozen):
    """Logistic regression of yes or no."""

    kind: Literal["logistic"]
    l2: NonNegative = 0.0


class Multinomial(Frozen):
    """Logistic regression of one of several classes."""

    kind: Literal["multinomial"]
    l2: NonNegative = 0.0


class Mlp(Frozen):
    """A neural network with one or two hidden layers of so many units."""

    kind: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(16,), min_length=1, max_length=2)
    l2: NonNegative = 0.0


Model = Annotated[Linear | Logistic | Multinomial | Mlp, Field(discriminator="kind")]


# --- algorithms: three orthogonal choices -----------------------------------------------------------------------------

Epochs = Annotated[int, Field(ge=1, le=10_000)]
Batch = Annotated[int, Field(ge=1)] | Literal["all"]


class LocalSgd(Frozen):
    """Plain mini-batch gradient descent at the site."""

    kind: Literal["sgd"]
    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32


class LocalAdam(Frozen):
    """Adam at the site, its memory fresh each round (Kingma and Ba 2015)."""

    kind: Literal["adam"]
    rate: Rate = 0.01
    epochs: Epochs = 1
    batch: Batch = 32
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Rate = 1e-8


class LocalProximal(Frozen):
    """Gradient descent tied to the global model by mu/2 |w - w_global|^2 (Li et al. 2020, FedProx)."""

    kind: Literal["proximal"]
    mu: NonNegative = 0.01
    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32


Local = Annotated[LocalSgd | LocalAdam | LocalProximal, Field(discriminator="kind")]


class ServerSgd(Frozen):
    """theta + rate * delta; rate 1 is the plain average (McMahan et al. 2017)."""

    kind: Literal["sgd"]
    rate: Rate = 1.0


class ServerMomentum(Frozen):
    """FedAvgM (Hsu, Qi and Brown 2019)."""

    kind: Literal["momentum"]
    rate: Rate = 1.0
    beta: Fraction = 0.9


class ServerAdagrad(Frozen):
    """FedAdagrad (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["adagrad"]
    rate: Rate = 0.1
    tau: Rate = 1e-3


class ServerAdam(Frozen):
    """FedAdam (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["adam"]
    rate: Rate = 0.1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99
    tau: Rate = 1e-3


class ServerYogi(Frozen):
    """FedYogi (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["yogi"]
    rate: Rate = 0.1
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.99
    tau: Rate = 1e-3


Server = Annotated[ServerSgd | ServerMomentum | ServerAdagrad | ServerAdam | ServerYogi, Field(discriminator="kind")]

PRESETS: dict[
    str, tuple[str, str]
] = {  # name: (local, server); each combines by the weighted mean unless told otherwise
    "fedavg": ("sgd", "sgd"),
    "fedavgm": ("sgd", "momentum"),
    "fedprox": ("proximal", "sgd"),
    "fedadagrad": ("sgd", "adagrad"),
    "fedadam": ("sgd", "adam"),
    "fedyogi": ("sgd", "yogi"),
}


class Algorithm(Frozen):
    """A preset, the three parts, or a preset with some of its parts' numbers set: `{preset = "fedadam", local = {rate = 0.1}}`."""

    preset: str | None = None
    local: Local
    combine: Combine = WeightedMean(kind="weighted_mean")
    server: Server

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        parts: dict[str, Any] = {"preset": given} if isinstance(given, str) else dict(given)
        preset = parts.get("preset")
        if preset is None:
            return parts
        if preset not in PRESETS:
            raise ValueError(f"expected a preset out of {', '.join(PRESETS)}, found '{preset}'")
        for part, kind in zip(("local", "server"), PRESETS[preset], strict=True):
            options: dict[str, Any] = {"kind": kind} | dict(parts.get(part) or {})
            swaps_local = part == "local" and preset != "fedprox"  # FedAdam with local Adam is still FedAdam
            if options["kind"] != kind and not swaps_local:
                raise ValueError(
                    f"preset '{preset}' means {part} '{kind}', found '{options['kind']}': drop the preset and name the parts"
                )
            parts[part] = options
        return parts


# --- the study --------------------------------------------------------------------------------------------------------


class Study(Frozen):
    """The whole protocol."""

    name: Name
    title: str = ""
    note: str = ""
    seed: int = Field(default=0, ge=0, lt=2**63)
    patient_id: str | None = None
    event_time: str | None = None
    target: Target
    features: tuple[Feature, ...] = Field(min_length=1)
    preprocess: Preprocess = Preprocess()
    validation: Validation = Validation()
    model: Model
    algorithm: Algorithm
    weights: Literal["patients", "uniform"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = "patients"
    protocol: Wire = Wire()
    privacy: Privacy = Privacy()

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
        }
        for role, column in reserved.items():
            if column in names:
                raise ValueError(
                    f"'{column}' is the {role} and cannot be a feature too: that would leak the answer or an identity"
                )
        fits = {
            "regression": ("linear", "mlp"),
            "binary": ("logistic", "mlp"),
            "multiclass": ("multinomial", "mlp"),
        }[self.target.kind]
        if self.model.kind not in fits:
            raise ValueError(
                f"a {self.target.kind} target goes with {' or '.join(fits)}, found model '{self.model.kind}'"
            )
        free = [feature.name for feature in self.features if isinstance(feature, Number) and feature.range is None]
        self.privacy.require(free, self.protocol.codec)
        robust.require(self.algorithm.combine, self.privacy, self.weights)
        if self.privacy.dp:
            local = self.algorithm.local
            self.privacy.dp.require(free, local.kind, (local.epochs, local.batch), self.weights)
        return self

    @property
    def masked(self) -> Masked | Ckks | None:
        """How sums are hidden, by masks or by encryption; None where they are not."""
        return self.privacy.masked

    @property
    def median(self) -> Median | None:
        """How a median combines updates, None where their mean does."""
        return self.algorithm.combine if isinstance(self.algorithm.combine, Median) else None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical protocol. A default written out is the same protocol, and so is other prose about it."""
        prose = {"title", "note"}
        later = {  # studies older than these keys keep their digest
            key for key, default in (("protocol", Wire()), ("privacy", Privacy())) if getattr(self, key) == default
        }
        protocol = self.model_dump(mode="json", exclude=prose | later)
        canonical_json = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical_json.encode()).hexdigest()
