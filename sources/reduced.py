"""What a site file says of a column that is made of a patient's events: which of them, and what becomes of several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from fedrounds.sources.frozen import Options

ColumnName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
When = Literal["first", "last", "mean", "min", "max", "count", "any"]
COUNTED: tuple[When, ...] = ("count", "any")
NUMERIC: tuple[When, ...] = ("mean", "min", "max")


class Reduced(Options):
    """A column with one cell a patient, out of the events of a window of days around the patient's index day.

    `first` and `last` are by time, `mean`, `min` and `max` are of numbers, `count` is how many there are, `any` is 1 or 0.
    """

    column: ColumnName
    when: When
    window_days: tuple[int, int] = (-36525, 0)
    """The first and the last day that count; 0 is the index day. By default a hundred years, up to and with that day."""
    words: dict[str, str] = Field({})
    """A code -> the word for it in the study; "" is a missing value."""
    other: str | None = None
    """The word for every code that `words` does not have; without it, such a code does not fit."""
    rare: bool = False
    """Whether it may be that nobody here ever had such an event; without it, a column that finds none at all is refused."""
    misfits: float = Field(0.0, ge=0, lt=1)
    """The largest share of the events that may not fit what is declared (another unit, say); these are left out."""

    @field_validator("window_days")
    @classmethod
    def _in_order(cls, window: tuple[int, int]) -> tuple[int, int]:
        if window[0] > window[1]:
            raise ValueError("expected `window_days` from the earlier day to the later one, such as [-365, 0]")
        return window

    @model_validator(mode="after")
    def _worded(self) -> Self:
        if self.other is not None and not self.words:
            raise ValueError("expected `other` beside `words`")
        return self


def distinct(names: Iterable[str], patient_id: str, event_time: str) -> None:
    """Raise ValueError where two columns of the table would have one name."""
    all_ = [patient_id, event_time, *names]
    if len(set(all_)) < len(all_):
        raise ValueError("expected every `column` once, and none called as `patient_id` or `event_time` are")
