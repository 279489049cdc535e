"""Whose keys count under masks: names and public keys, as the hospitals' people agree on them outside the coordinator.

A file of JSON, `{"name": "64 hex digits", …}`. Whoever hides among others must know that the others are who they seem: a coordinator that
could invent members would be all of them. So its digest is compared by telephone, and every member signs it with each batch of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from fedrounds.core import identity
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.identity import SITE
from fedrounds.core.privacy.epoch import FEWEST, roster_digest

LARGEST = 1 << 20  # bytes


def dump(roster: Mapping[str, bytes]) -> str:
    """The roster as a file; the same one always gives the same text."""
    return json.dumps({name: roster[name].hex() for name in sorted(roster)}, indent=1) + "\n"


def load(text: str) -> dict[str, bytes]:
    """The roster in a text. Raises UpdateRejected where it is none, names too few, or gives two members one key."""
    try:
        found: Any = json.loads(text) if len(text) <= LARGEST else None
        listed = cast(dict[str, str], found) if isinstance(found, dict) else {}
        roster = {name: bytes.fromhex(key) for name, key in listed.items()}
    except (ValueError, TypeError, RecursionError):
        roster = {}
    if any(not SITE.fullmatch(name) or len(key) != 32 for name, key in roster.items()):
        roster = {}
    if len(roster) < FEWEST:
        raise UpdateRejected(
            f"expected a roster of {FEWEST} hospitals or more with a public key each, found another text: ask for the file again"
        )
    if len(set(roster.values())) < len(roster):
        raise UpdateRejected("expected a key of its own for each hospital of the roster, found one twice: refuse it")
    return dict(sorted(roster.items()))


def spoken(roster: Mapping[str, bytes]) -> str:
    """Its digest as two people compare it over the telephone."""
    return identity.spoken(roster_digest(roster))
