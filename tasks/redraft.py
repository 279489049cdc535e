"""A draft meets the file that people have worked on: what they changed, added or took out stays so; what they left alone follows the draft.

A drafted expectation carries a digest of what was drafted (`meta.drafted.as`): while it still fits, nobody has touched it. The file's own
`meta.drafted` lists every id that was ever offered: one that is listed and not there was taken out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Expectation = dict[str, Any]


@dataclass
class Changes:
    """Ids of what a draft did to a file. `edited`, `own` and `removed` are people's doing, and stay."""

    added: list[str] = field(default_factory=list[str])
    updated: list[str] = field(default_factory=list[str])
    unchanged: list[str] = field(default_factory=list[str])
    withdrawn: list[str] = field(default_factory=list[str])  # the dictionary no longer asks for them
    edited: list[str] = field(default_factory=list[str])
    removed: list[str] = field(default_factory=list[str])
    own: list[str] = field(default_factory=list[str])


def merged(
    name: str, before: Mapping[str, Any] | None, drafts: Sequence[Expectation]
) -> tuple[dict[str, Any], Changes]:
    """The suite's document after the draft, and what was done. The same inputs give the same document.

    People's order stays. What is new comes after the one that goes before it in the draft.
    """
    written: list[Expectation] = list(before["expectations"]) if before else []
    about: dict[str, Any] = dict(before.get("meta") or {}) if before else {}
    offered: list[str] = list(about.get("drafted") or [])
    fresh = {_id(one): _signed(one) for one in drafts}
    done = Changes()
    result = [kept for one in written if (kept := _kept(one, fresh, done)) is not None]
    own = {_about(one) for one in written if not _id(one)}
    present = {_id(one) for one in written}
    place = 0
    for name_of, one in fresh.items():
        if name_of in present:
            place = next((n + 1 for n, other in enumerate(result) if _id(other) == name_of), place)
        elif name_of in offered:
            done.removed.append(name_of)
        elif _about(one) not in own:
            result.insert(place, one)
            place += 1
            done.added.append(name_of)
    seen = [one for one in offered if one in fresh] + [one for one in done.added if one not in offered]
    rest = {key: value for key, value in (before or {}).items() if key not in ("name", "meta", "expectations")}
    meta = {**about, "drafted": seen}
    return {"name": (before or {}).get("name", name), **rest, "meta": meta, "expectations": result}, done


def _kept(one: Expectation, fresh: Mapping[str, Expectation], done: Changes) -> Expectation | None:
    """What stands in the file in its place from now on."""
    name = _id(one)
    if not name:
        done.own.append(" · ".join(filter(None, _about(one))))
        return one
    if one["meta"]["drafted"].get("as") != _digest(one):
        done.edited.append(name)
        return one
    if name not in fresh:
        done.withdrawn.append(name)
        return None
    (done.unchanged if one == fresh[name] else done.updated).append(name)
    return fresh[name]


def text(document: Mapping[str, Any]) -> str:
    """The document as it is written: an expectation a line, so that a change is a line of a diff."""
    head = {key: value for key, value in document.items() if key != "expectations"}
    lines = [f"  {_json(key)}: {_json(value)}" for key, value in head.items()]
    body = ",\n".join(f"    {_json(one)}" for one in document["expectations"])
    return "{\n" + ",\n".join([*lines, f'  "expectations": [\n{body}\n  ]']) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _drafted(one: Any) -> Mapping[str, Any]:
    meta = one.get("meta") if isinstance(one, dict) else None
    found = meta.get("drafted") if isinstance(meta, dict) else None
    return found if isinstance(found, dict) else {}


def _id(one: Any) -> str:
    return _drafted(one).get("id", "")


def _about(one: Any) -> tuple[str, ...]:
    """What an expectation is about: its type and its columns."""
    kwargs = one.get("kwargs") or {} if isinstance(one, dict) else {}
    columns = [kwargs.get(key) or "" for key in ("column", "column_A", "column_B")]
    return (str(one.get("type", "")) if isinstance(one, dict) else "", *columns, *(kwargs.get("column_list") or ()))


def _digest(one: Expectation) -> str:
    """Of all that a person may change in it."""
    meta = {key: value for key, value in one["meta"].items() if key != "drafted"}
    content = json.dumps({**one, "meta": meta}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _signed(one: Expectation) -> Expectation:
    drafted = {**_drafted(one), "as": _digest(one)}
    return {**one, "meta": {**one["meta"], "drafted": drafted}}
