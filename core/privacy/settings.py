"""The `[privacy]` part of a study: what is hidden, from whom."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedrounds.core.frozen import Frozen, Name, NonNegative, Rate
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.patient import Differential


class Plain(Frozen):
    """The coordinator sees what each site sends."""

    kind: Literal["plain"] = "plain"


class _Hidden(Frozen):
    """What hides single sites, whichever way. `margin`: sites whose loss rises by more are counted, where it is given."""

    clip: Rate = 8.0
    bits: Literal[16, 32, 64] = 32
    margin: NonNegative | None = None
    groups: int = Field(default=1, ge=1, le=64)

    @model_serializer(mode="wrap")
    def _older_studies_keep_their_digest(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later: dict[str, Any] = {"margin": None, "groups": 1, "key_holder": None, "holder": None}
        return {name: value for name, value in dump(self).items() if name not in later or value != later[name]}


class Masked(_Hidden):
    """The coordinator sees sums over the sites alone (secure aggregation, Bonawitz et al. 2017).

    `clip`: a number of an update, times its site's share of the weight, is clipped to ±clip and counted; `bits`: of the word that it
    travels in, the wider the finer; `batch`: exchanges for which keys are made at a time; `margin`: where it is set, sites count under masks
    at how many of them the loss rose by more than this above the champion's (`core/worse.py`); `groups`: into how many sums the sites fall,
    for a median of them (`core/groups.py`).
    """

    kind: Literal["masked"]
    batch: int = Field(default=32, ge=4, le=256)


class Ckks(_Hidden):
    """The coordinator adds up encrypted numbers (CKKS, Cheon et al. 2017), and whoever holds the key opens sums alone.

    Either `key_holder`: that one of the sites; or `holder`: a third party that has no patients, and is asked for none. `least`: no sum of
    fewer sites is opened; `clip`, `bits` as for masks; `batch`: exchanges for which a key serves.
    """

    kind: Literal["ckks"]
    key_holder: Name | None = None
    holder: Name | None = None
    least: int = Field(default=3, ge=3)
    batch: int = Field(default=32, ge=1, le=256)

    @model_validator(mode="after")
    def _one_holds_the_key(self) -> Ckks:
        if (self.key_holder is None) == (self.holder is None):
            found = "neither" if self.holder is None else "both"
            raise ValueError(
                f"expected either `key_holder`, a site of the study, or `holder`, a third party without patients, found {found}"
            )
        return self

    @property
    def opener(self) -> str:
        """Who holds the key and opens sums."""
        return self.key_holder or self.holder or ""

    def counted(self, roster: Collection[str]) -> int:
        """How many of a roster have patients: all but a third party that holds the key."""
        return len(roster) - (self.holder in roster)


Protect = Annotated[Plain | Masked | Ckks, Field(discriminator="kind")]
Private = Annotated[Differential | Hospitals, Field(discriminator="unit")]


class Privacy(Frozen):
    """What is hidden, from whom."""

    protect: Protect = Plain()
    dp: Private | None = None

    @property
    def masked(self) -> Masked | Ckks | None:
        """How sums are hidden, None where they are not."""
        return None if isinstance(self.protect, Plain) else self.protect

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
        if isinstance(self.protect, Ckks) and self.protect.groups > 1:
            raise ValueError(
                'groups go with masks: use `protect = { kind = "masked" }`, or leave out privacy.protect.groups'
            )
        if isinstance(self.protect, Ckks) and self.dp:
            raise ValueError(
                'encrypted sums and differential privacy do not go together: use `protect = { kind = "masked" }`, or leave out dp'
            )
        if self.masked and self.dp:
            self.dp.require_together(self.masked.bits)
            if self.masked.margin is not None:
                raise ValueError(
                    "under differential privacy nobody is compared with the champion: leave out privacy.protect.margin"
                )
        elif self.dp:
            self.dp.require_apart()
        if self.masked and codec != "float64":
            raise ValueError(
                "masked sums travel as whole words: set their width by privacy.protect.bits, and leave out the codec"
            )
