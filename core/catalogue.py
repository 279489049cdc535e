"""Every model and every strategy that a study may name, read off the classes that define the words: nothing is listed twice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_args

from fedrounds.core.combine import Combine
from fedrounds.core.frozen import Frozen
from fedrounds.core.local import Local
from fedrounds.core.models import Model
from fedrounds.core.models.family import Kind
from fedrounds.core.participation import Participation
from fedrounds.core.personal import Personal
from fedrounds.core.server import Server
from fedrounds.core.strategy import COMBINES, PRESETS, Exact

PAPER = re.compile(r" ?\(((?:[A-Z][^()]* )?[^()]*\b(?:19|20)\d\d[^()]*)\)")


@dataclass(frozen=True)
class Word:
    """One word of a study.

    Attributes:
        name: As a study says it.
        part: What it is a word for: preset, local, combine, server, personal, participation, exact or model.
        says: What it is, in a line.
        paper: Where it comes from; empty for what everybody knows.
        options: Each option with its default; one that must be given has none.
        goes: What it goes with: targets and algorithms of a model, parts of a preset.
    """

    name: str
    part: str
    says: str
    paper: str
    options: tuple[str, ...]
    goes: str = ""


def models() -> list[Word]:
    """Every kind of model."""
    found: list[Word] = []
    for kind in words(Model):
        assert issubclass(kind, Kind)
        goes = f"{', '.join(kind.targets)}; {' or '.join(kind.algorithms)}"
        found.append(_word(kind, "model", goes, kind.paper))
    return found


def strategies() -> list[Word]:
    """Presets, the parts that they are made of, and exact fits."""
    parts = {"local": Local, "combine": Combine, "server": Server}
    told = {part: [_word(kind, part) for kind in words(union)] for part, union in parts.items()}
    by_name = {(word.part, word.name): word for words_ in told.values() for word in words_}
    made = {name: dict(zip(("local", "server"), chosen, strict=True)) for name, chosen in PRESETS.items()}
    made |= {name: {"local": "sgd", "combine": kind, "server": "sgd"} for name, kind in COMBINES.items()}
    presets: list[Word] = []
    for name, chosen in made.items():
        named = [by_name[part] for part in chosen.items()]
        telling = [word for word in named if word.name != "sgd"] or named[:1]
        goes = " + ".join(f"{word.part} {word.name}" for word in named)
        paper = "; ".join(dict.fromkeys(word.paper for word in telling if word.paper))
        presets.append(Word(name, "preset", "; ".join(word.says for word in telling), paper, (), goes))
    own = [_word(kind, "personal") for kind in words(Personal)]
    some = _word(Participation, "participation", name="participation")
    return [*presets, _word(Exact, "exact"), *(word for words_ in told.values() for word in words_), *own, some]


def words(union: Any) -> tuple[type[Frozen], ...]:
    """The classes of a discriminated union, in their order."""
    (inside, *_) = get_args(union)
    return get_args(inside) or (inside,)


def _word(kind: type[Frozen], part: str, goes: str = "", paper: str = "", name: str = "") -> Word:
    says = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    cited = PAPER.search(says)
    says = PAPER.sub("", says).rstrip(".")
    fields = kind.model_fields
    name = name or get_args(fields["kind" if "kind" in fields else "preset"].annotation)[0]
    options = tuple(
        option if field.is_required() else f"{option} = {_said(field.get_default(call_default_factory=True))}"
        for option, field in fields.items()
        if option not in ("kind", "preset")
    )
    return Word(name, part, says, paper or (cited.group(1) if cited else ""), options, goes)


def _said(value: object) -> str:
    return (
        f'"{value}"'
        if isinstance(value, str)
        else "none"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
