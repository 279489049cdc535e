"""A picture in a study's dictionary: one word for its pixels, each of which is a number."""

from __future__ import annotations

from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from fedrounds.core.frozen import Finite, Frozen

MOST = 16_384  # pixels of a picture: each is a column that is agreed on, judged and sent sums of


class Pixels(Frozen):
    """A picture of one channel: `height` rows of `width` numbers, in columns `NAME_row_column` counted from 0."""

    type: Literal["pixels"]
    name: str = Field(min_length=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    unit: str = ""
    range: tuple[Finite, Finite] | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if self.height * self.width > MOST:
            raise ValueError(
                f"expected at most {MOST} pixels, found {self.height} × {self.width}: let the source make the picture smaller"
            )
        return self


def written_out(features: Any) -> Any:
    """The features of a study file with every picture as the numbers that it is, row by row.

    The protocol and its digest know numbers alone, so a picture that is written out is the same protocol.

    >>> [number["name"] for number in written_out([{"type": "pixels", "name": "scan", "height": 1, "width": 2}])]
    ['scan_0_0', 'scan_0_1']

    Raises:
        ValueError: a picture says something that it cannot mean.
    """
    if not isinstance(features, list | tuple):
        return features
    found: list[Any] = []
    for one in cast("list[Any] | tuple[Any, ...]", features):
        picture = isinstance(one, dict) and cast("dict[str, Any]", one).get("type") == "pixels"
        found += _numbers(cast("dict[str, Any]", one)) if picture else [one]
    return found


def _numbers(words: dict[str, Any]) -> list[dict[str, Any]]:
    wrong, picture = "", None
    try:
        picture = Pixels.model_validate(words)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        wrong = f"a feature of type pixels: {'.'.join(map(str, first['loc']))}: {first['msg']}".replace(": : ", ": ")
    if picture is None:
        raise ValueError(wrong)
    kept = {name: value for name, value in (("unit", picture.unit), ("range", picture.range)) if value}
    return [
        {"type": "number", "name": f"{picture.name}_{row}_{column}", **kept}
        for row in range(picture.height)
        for column in range(picture.width)
    ]
