"""`algorithm = …` in a study: how a round is run. A preset's name, its parts, or `exact`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from fedrounds.core.combine import Combine, WeightedMean
from fedrounds.core.frozen import Frozen
from fedrounds.core.local import Local
from fedrounds.core.pace import Own
from fedrounds.core.params import Layout
from fedrounds.core.participation import Participation
from fedrounds.core.personal import Layers, Personal
from fedrounds.core.server import Server

PRESETS: dict[
    str, tuple[str, str]
] = {  # name: (local, server); each combines by the weighted mean unless told otherwise
    "fedavg": ("sgd", "sgd"),
    "fedavgm": ("sgd", "momentum"),
    "fedprox": ("proximal", "sgd"),
    "fedadagrad": ("sgd", "adagrad"),
    "fedadam": ("sgd", "adam"),
    "fedyogi": ("sgd", "yogi"),
    "scaffold": ("scaffold", "sgd"),
    "fednova": ("fednova", "sgd"),
    "feddyn": ("feddyn", "sgd"),
    "ditto": ("ditto", "sgd"),
}
COMBINES: dict[str, str] = {  # name: how updates combine; local and server as in fedavg
    "fedmedian": "median",
    "fedtrimmedavg": "trimmed_mean",
    "krum": "krum",
    "multikrum": "multi_krum",
    "bulyan": "bulyan",
    "rfa": "geometric_median",
    "qfedavg": "q_ffl",
    "afl": "afl",
}


class Averaging(Frozen):
    """A preset, the three parts, or a preset with some of its parts' numbers set: `{preset = "fedadam", local = {rate = 0.1}}`.

    `personal`: a model of each site's own, made of the global one and scored beside it.
    `participation`: which sites a round asks, and how many replies close it; all where it is left out.
    """

    preset: str | None = None
    local: Local
    combine: Combine = WeightedMean(kind="weighted_mean")
    server: Server
    personal: Personal | None = None
    participation: Participation | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Studies that are older than these words keep their digest."""
        later = [("personal", self.personal is None), ("participation", self.participation in (None, Participation()))]
        unsaid = {name for name, left_out in later if left_out}
        return {name: value for name, value in plain(self).items() if name not in unsaid}

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        parts: dict[str, Any] = {"preset": given} if isinstance(given, str) else dict(given)
        preset = parts.get("preset")
        if preset is None:
            return parts
        if preset not in {**PRESETS, **COMBINES}:
            raise ValueError(f"expected a preset out of {', '.join([*PRESETS, *COMBINES, 'exact'])}, found '{preset}'")
        means = dict(zip(("local", "server"), PRESETS.get(preset, PRESETS["fedavg"]), strict=True))
        means |= {"combine": COMBINES[preset]} if preset in COMBINES else {}
        for part, kind in means.items():
            options: dict[str, Any] = {"kind": kind} | dict(parts.get(part) or {})
            swaps_local = part == "local" and kind == "sgd"  # FedAdam with local Adam is still FedAdam
            if options["kind"] != kind and not swaps_local:
                raise ValueError(
                    f"preset '{preset}' means {part} '{kind}', found '{options['kind']}': drop the preset and name the parts"
                )
            parts[part] = options
        return parts

    @model_validator(mode="after")
    def _one_own(self) -> Self:
        if self.personal and self.local.own():
            raise ValueError(
                f"a site under '{self.local.kind}' has a model of its own already: leave out algorithm.personal, or name another local rule"
            )
        return self

    @property
    def remembers(self) -> bool:
        """Whether a site keeps state between rounds."""
        return self.local.remembers or isinstance(self.personal, Layers)

    @property
    def stays(self) -> str:
        """How much of a site's own model stays there, as a sentence goes on."""
        if isinstance(self.personal, Layers):
            return f"whose own layers ({', '.join(self.personal.layers)}) leave in its updates"
        return "that never leaves it"

    def own(self, layout: Layout) -> Own | None:
        """What makes a site's own model, None where it has none."""
        return self.personal.own(layout) if self.personal else self.local.own()

    @property
    def names(self) -> tuple[str, ...]:
        """What a hospital may know it by."""
        return (*([self.preset] if self.preset else []), self.local.kind)

    @property
    def title(self) -> str:
        """In a line."""
        how = "" if isinstance(self.combine, WeightedMean) else f"{self.combine.title} and "
        own = ", and a model of its own at each hospital" if self.personal or self.local.own() else ""
        some = f"; {self.participation.title}" if self.participation and self.participation.title else ""
        return f"{self.preset or 'own rule'}: {self.local.kind} at each hospital, {how}{self.server.kind} at the coordinator{own}{some}"


class Exact(Frozen):
    """Sums over patients, exchanged until what is fitted to them moves no more: the fit to all patients in one place.

    `tolerance`: of the relative change at which it is done; `exchanges`: of a round at most. No paper: each model names that of its fit.
    """

    preset: Literal["exact"]
    tolerance: float = Field(default=1e-10, gt=0, le=0.1)
    exchanges: int = Field(default=50, ge=1, le=10_000)

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"preset": given}
        if isinstance(given, Mapping) and {"local", "personal"} & cast(Mapping[str, Any], given).keys():
            raise ValueError(
                "an exact fit solves for one model of all patients, and no site descends to one of its own: leave out algorithm.local and"
                ' algorithm.personal, or name a preset such as "ditto"'
            )
        if isinstance(given, Mapping) and "participation" in cast(Mapping[str, Any], given):
            raise ValueError(
                "an exact fit is that to the patients of all sites, and no round of it asks some: leave out algorithm.participation"
            )
        return cast(Any, given)

    @property
    def names(self) -> tuple[str, ...]:
        """What a hospital may know it by."""
        return (self.preset,)

    @property
    def title(self) -> str:
        """In a line."""
        return "exact: sums over patients, as many exchanges a round as it takes"


def _which(given: Any) -> str:
    preset = cast(Mapping[str, Any], given).get("preset") if isinstance(given, Mapping) else given
    return "exact" if preset == "exact" or isinstance(given, Exact) else "averaging"


Algorithm = Annotated[Annotated[Averaging, Tag("averaging")] | Annotated[Exact, Tag("exact")], Discriminator(_which)]
