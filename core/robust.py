"""What each way of combining updates goes together with."""

from __future__ import annotations

from typing import Any

from fedrounds.core.combine import Combine, Median, NormClip, WeightedMean
from fedrounds.core.privacy.settings import Privacy


def require(combine: Combine, privacy: Privacy, weights: Any) -> None:
    """Raise ValueError where the way of combining does not go with the rest of the study."""
    groups = privacy.masked.groups if privacy.masked else 1
    if isinstance(combine, WeightedMean):
        if groups > 1:
            raise ValueError(
                "groups under masks show more than one sum does, and a mean gains nothing by it: set algorithm.combine to"
                ' { kind = "median" }, or leave privacy.protect.groups out'
            )
        return
    what, losses = combine.what, combine.needs == "losses"
    if privacy.dp:
        raise ValueError(
            f"{what} and differential privacy do not go together: noise is counted for a sum, "
            + (
                f"and {what} weighs sites by losses that nobody has noised; choose one"
                if losses
                else f"and {what} of noised updates is neither right in the mean nor safer from one who sends anything; choose one"
            )
        )
    if privacy.masked and not isinstance(combine, Median):
        raise ValueError(
            f"{what} needs the {combine.needs} one by one, which masks hide: leave out privacy.protect, or "
            + (
                "combine by the weighted mean"
                if losses
                else 'set algorithm.combine to { kind = "median" } and privacy.protect.groups'
            )
        )
    if privacy.masked and isinstance(combine, Median) and groups < combine.fewest:
        raise ValueError(
            f"a median needs the updates one by one, which masks hide: set privacy.protect.groups to {combine.fewest} or more for"
            f" {combine.attackers} that may attack (found {groups}), each of three sites or more"
        )
    if privacy.masked and privacy.masked.margin is not None:
        raise ValueError(
            "a count of sites that got worse would be seen group by group, of three sites or so: leave out privacy.protect.margin, or the"
            " groups"
        )
    _require_weights(combine, weights)


def _require_weights(combine: Combine, weights: Any) -> None:
    if combine.alike and weights != "uniform":
        raise ValueError(
            f'{combine.what} counts every site alike, and what a site says of its patients is its own word: set weights to "uniform"'
        )
    if isinstance(combine, NormClip) and weights == "patients":
        raise ValueError(
            f"{combine.what} bounds how far one site moves the model, and one that says it has many patients would move it further: set"
            ' weights to "uniform", or state them'
        )
    if combine.kind == "afl" and weights != "uniform":
        raise ValueError(f'{combine.what} finds the weights itself, from the losses: set weights to "uniform"')
