"""What each way of combining updates goes together with."""

from __future__ import annotations

from typing import Any

from fedrounds.core.combine import Median, WeightedMean
from fedrounds.core.privacy.settings import Privacy


def require(combine: WeightedMean | Median, privacy: Privacy, weights: Any) -> None:
    """Raise ValueError where the way of combining does not go with the rest of the study."""
    groups = privacy.masked.groups if privacy.masked else 1
    if isinstance(combine, WeightedMean):
        if groups > 1:
            raise ValueError(
                "groups under masks show more than one sum does, and a mean gains nothing by it: set algorithm.combine to"
                ' { kind = "median" }, or leave privacy.protect.groups out'
            )
        return
    if privacy.dp:
        raise ValueError(
            "a median and differential privacy do not go together: noise is counted for a sum, and a median of noised updates is neither"
            " right in the mean nor safer from one who sends anything; choose one"
        )
    if privacy.masked and groups < combine.fewest:
        raise ValueError(
            f"a median needs the updates one by one, which masks hide: set privacy.protect.groups to {combine.fewest} or more for"
            f" {combine.attackers} that may attack (found {groups}), each of three sites or more"
        )
    if privacy.masked and privacy.masked.margin is not None:
        raise ValueError(
            "a count of sites that got worse would be seen group by group, of three sites or so: leave out privacy.protect.margin, or the"
            " groups"
        )
    if weights != "uniform":
        raise ValueError(
            'a median counts every site alike, and what a site says of its patients is its own word: set weights to "uniform"'
        )
