"""How a study says that updates become one, and what each way goes together with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrounds.core.frozen import Frozen
from fedrounds.core.privacy.settings import Privacy


class WeightedMean(Frozen):
    """The mean of the updates by the study's weights."""

    kind: Literal["weighted_mean"]


class Median(Frozen):
    """The coordinate-wise median (Yin et al. 2018) of updates, or under masks of the means of groups of sites: as many as `attackers`
    may send what they like, and no number of the result lies outside those of the others."""

    kind: Literal["median"]
    attackers: int = Field(default=1, ge=1, le=31)

    @property
    def fewest(self) -> int:
        """Of how many updates, or groups, the honest ones are more than half."""
        return 2 * self.attackers + 1


Combine = Annotated[WeightedMean | Median, Field(discriminator="kind")]


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
