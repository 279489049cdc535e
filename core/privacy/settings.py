"""The `[privacy]` part of a study: what is hidden, from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.patient import Differential


class Plain(Frozen):
    """The coordinator sees what each site sends."""

    kind: Literal["plain"] = "plain"


class Masked(Frozen):
    """The coordinator sees sums over the sites alone (secure aggregation, Bonawitz et al. 2017).

    `clip`: a number of an update, times its site's share of the weight, is clipped to ±clip and counted; `bits`: of the word that it
    travels in, the wider the finer; `batch`: exchanges for which keys are made at a time.
    """

    kind: Literal["masked"]
    clip: Rate = 8.0
    bits: Literal[16, 32, 64] = 32
    batch: int = Field(default=32, ge=4, le=256)


Protect = Annotated[Plain | Masked, Field(discriminator="kind")]
Private = Annotated[Differential | Hospitals, Field(discriminator="unit")]


class Privacy(Frozen):
    """What is hidden, from whom."""

    protect: Protect = Plain()
    dp: Private | None = None

    @property
    def masked(self) -> Masked | None:
        """How sums are masked, None where they are not."""
        return self.protect if isinstance(self.protect, Masked) else None

    def require(self, unbounded: Sequence[str], codec: str) -> None:
        """Raise ValueError where the rest of the study does not go with it.

        Args:
            unbounded: numbers of the dictionary that have no range.
            codec: in which the study's messages are written.
        """
        if self.masked and unbounded:
            raise ValueError(
                f"masked sums need the range of every number, which bounds its sum: give one for {', '.join(unbounded[:8])}"
            )
        if self.masked and self.dp:
            self.dp.require_together(self.masked.bits)
        elif self.dp:
            self.dp.require_apart()
        if self.masked and codec != "float64":
            raise ValueError(
                "masked sums travel as whole words: set their width by privacy.protect.bits, and leave out the codec"
            )
