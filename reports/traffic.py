"""Bytes that crossed each hospital's wall, visit by visit and each way: the newest as tables of the report, all of them as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from fedrounds.reports.evidence import Evidence
from fedrounds.reports.markup import Markup, table, tag
from fedrounds.reports.result import size

NEWEST, MOST = 10, 50  # visits across and hospitals down that a page can show; the file has them all
HEAD = ("visit", "round", "asked", "site", "bytes_to_site", "bytes_from_site")


def crossed(visits: Sequence[Any]) -> Iterator[tuple[int, int, str, str, int, int]]:
    """(visit, round, what was asked, site, bytes to it, bytes from it), in that order. All exchanges of a visit are in."""
    for visit in visits:
        for site, its in sorted((visit.record.get("sites") or {}).items()):
            yield visit.visit, visit.round, visit.ask, site, its.get("bytes_in", 0), its.get("bytes_out", 0)


def as_csv(of: Evidence) -> str:
    """Every visit and hospital, a line each; the same evidence gives the same text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(crossed(of.visits))
    return text.getvalue()


def grid(of: Evidence) -> Markup | None:
    """Hospital by visit, a table each way: the newest visits."""
    went = [visit for visit in of.visits if visit.record.get("sites")]
    newest = went[-NEWEST:]
    if not newest:
        return None
    cells = {(visit, site): ways for visit, _, _, site, *ways in crossed(newest)}
    names = sorted({site for _, site in cells})
    left_out = (f"the newest {NEWEST} of {len(went)} visits", f"{MOST} of {len(names)} hospitals")
    told = [words for words, there in zip(left_out, (len(went) > NEWEST, len(names) > MOST), strict=True) if there]
    less = f" ({', '.join(told)}; bytes.csv beside this page has all)" if told else ""
    head = ["Hospital", *(_visit(visit) for visit in newest)]

    def way(at: int, caption: str) -> Markup:
        rows = [
            [site, *(_bytes(cells.get((visit.visit, site)), at) for visit in newest)]
            for site in names[:MOST]
        ]  # fmt: skip
        totals = [sum(ways[at] for (visit, _), ways in cells.items() if visit == seen.visit) for seen in newest]
        return table(head, [*rows, ["all hospitals", *map(size, totals)]], caption + less)

    return tag("div", way(0, "Sent to each hospital, visit by visit"), way(1, "Sent by each hospital, visit by visit"))


def summary(visits: Sequence[Any]) -> dict[str, Any]:
    """For a machine: bytes in all, and those of the last visit by site, as [to it, from it]."""
    every = list(crossed(visits))
    last = every[-1][0] if every else None
    return {
        "to_sites": sum(to for *_, to, _ in every),
        "from_sites": sum(back for *_, back in every),
        "last_visit": {site: [to, back] for visit, _, _, site, to, back in every if visit == last},
    }


def line(visits: Sequence[Any]) -> str:
    """For a person: what the last training round took each way, and the most that one hospital took."""
    rounds = [visit for visit in visits if visit.ask == "train" and visit.record.get("sites")]
    if not rounds:
        return ""
    ways = [(to, back) for *_, to, back in crossed(rounds[-1:])]
    to, back = (sum(way) for way in zip(*ways, strict=True))
    most = max(ways, key=sum)
    return (
        f"round {rounds[-1].round} took {size(to)} to {len(ways)} hospitals and {size(back)} from them"
        f" (at most {size(most[0])} and {size(most[1])} at one)"
    )


def _visit(visit: Any) -> str:
    names = {"train": f"round {visit.round}", "statistics": "statistics"}
    return names.get(visit.ask, f"{visit.ask} of {visit.round}")


def _bytes(ways: Sequence[int] | None, at: int) -> str:
    return size(ways[at]) if ways else "–"
