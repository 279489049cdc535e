"""`fedrounds models` and `fedrounds strategies`: the words that a study may choose from, each with its paper and options."""

from __future__ import annotations

import json
from dataclasses import asdict


def catalogue(what: str, as_json: bool) -> int:
    """Print every word, one to a line, its options beneath."""
    from fedrounds.core import catalogue

    found = catalogue.models() if what == "models" else catalogue.strategies()
    if as_json:
        print(json.dumps([asdict(word) for word in found], ensure_ascii=False))
        return 0
    part = ""
    for word in found:
        if word.part != part:
            part = word.part
            print(f"\n{HEADS[part]}")
        paper = f" [{word.paper}]" if word.paper else ""
        goes = f" ({word.goes})" if word.goes else ""
        print(f"  {word.name:<18} {word.says}{goes}{paper}")
        if word.options:
            print(f"  {'':<18} options: {', '.join(word.options)}")
    return 0


HEADS = {
    "model": "model = { kind = … }",
    "preset": "algorithm = …",
    "exact": 'algorithm = "exact"',
    "local": "algorithm.local = { kind = … }: what a site does",
    "combine": "algorithm.combine = { kind = … }: how updates become one",
    "personal": "algorithm.personal = { kind = … }: a model of its own at each site, scored beside the global one",
    "participation": "algorithm.participation = { … }: which sites a round asks, and how many replies close it",
    "server": "algorithm.server = { kind = … }: what the coordinator does with it",
}
