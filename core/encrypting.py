"""What a site answers where sums are encrypted: keys, its numbers under encryption, and, where it holds the key, sums opened.

All that it takes to encrypt stands in the request, so a site keeps nothing of an exchange but, as the holder, of whom it opened what.
The cryptography is `core/privacy/holder.py`; the coordinator's half is `core/encrypted.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, cast

import numpy as np

from fedrounds.core import identity
from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.masked import Self, by_member
from fedrounds.core.messages import Request, encode
from fedrounds.core.params import Array
from fedrounds.core.phases import subject_of
from fedrounds.core.privacy import ckks, digits, holder, tag
from fedrounds.core.privacy.epoch import Bytes, Fields, as_bytes, as_number
from fedrounds.core.privacy.holder import Key, Safe
from fedrounds.core.privacy.settings import Ckks
from fedrounds.core.privacy.sheet import Sheet

KEY = ("ckks.epoch", "ckks.members", "ckks.public", "ckks.publics", "ckks.sealed", "ckks.signature")
ANNOUNCED = (*KEY, "ckks.index")  # what a request for encrypted sums says besides
TAKES: Mapping[str, tuple[str, ...]] = {
    "keys": ("epoch",),
    "shares": ("members", "publics", "signatures"),
    "open": ("announced", "digests", "members", "signatures", "size", "subject", "sum", "tags"),
}


def answer_phase(request: Request, safe: Safe, me: Self, protect: Ckks) -> tuple[Safe, Mapping[str, Array]]:
    """Answer what touches no row: keys, shares, open; by arrays of the shapes that `encrypted.expected` states.

    Raises:
        UpdateRejected: the request is not one that an honest coordinator sends to this site; the safe stays as it was.
    """
    _takes(request, safe)
    _installed()
    fields = cast(Fields, request.arrays)
    if request.ask == "keys":
        after, made = holder.make_key(safe, me.key, request.study, me.site, as_number(fields["epoch"]), me.roster)
        return after, cast(Mapping[str, Array], made)
    if me.site != protect.opener:
        raise UpdateRejected(f"expected the key holder '{protect.opener}' to be asked, found '{me.site}' was")
    members = _read_names(fields["members"])
    signatures = by_member(members, fields["signatures"], 64)
    if request.ask == "shares":
        publics = by_member(members, fields["publics"], 32)
        keys = {one: (publics[one], signatures[one]) for one in members}
        least = protect.least + (protect.holder is not None)  # members that have patients, and the holder besides
        after, key = holder.hold(safe, me.key, request.study, me.site, keys, me.roster, least)
        signature = as_bytes(key.signature)
        return after, cast(Mapping[str, Array], {"public": key.public, "sealed": key.sealed, "signature": signature})
    if protect.holder in members:
        raise UpdateRejected(
            "expected a sum over sites that have patients, found the key holder among them: nothing was opened"
        )
    digests, tags = (by_member(members, fields[name], size) for name, size in (("digests", 32), ("tags", 8 * tag.ROWS)))
    parts = {one: (digests[one], tags[one], signatures[one]) for one in members}
    subject, size = fields["subject"].tobytes().decode("ascii", "replace"), as_number(fields["size"])
    total = cast(ckks.Residues, request.arrays["sum"])
    after, found, signed = holder.disclose(
        safe, me.key, me.site, fields["announced"].tobytes(), subject, parts, total, size, me.roster, protect.least
    )
    return after, cast(Mapping[str, Array], {"digits": found.view(np.uint64), "signature": as_bytes(signed)})


def opens(request: Request) -> bool:
    """Whether the key holder is asked to open a sum."""
    return request.ask == "open" and "sum" in request.arrays


def announced_by(request: Request) -> Request:
    """What is asked under encryption, without what is said of keys."""
    return replace(request, arrays={name: array for name, array in request.arrays.items() if name not in ANNOUNCED})


def protect_sums(
    request: Request, sums: Mapping[str, Array], sheet: Sheet, safe: Safe, me: Self, protect: Ckks
) -> Mapping[str, Array]:
    """The sums, of the sheet's shapes, under encryption: arrays of the shapes that `encrypted.expected` states.

    Raises:
        UpdateRejected: the key is not the holder's, the epoch another than the one here, or a sum is beyond its grid.
    """
    _installed()
    arrays = cast(Any, request.arrays)
    if any(name not in arrays for name in ANNOUNCED):
        raise UpdateRejected("expected to be asked for encrypted sums, with a key made before, found neither: refused")
    if any(arrays[name].dtype != np.uint8 for name in ANNOUNCED if name != "ckks.public"):
        raise UpdateRejected("expected what is said of keys as bytes, found others: it was refused")
    key = Key(
        as_number(arrays["ckks.epoch"]),
        _read_names(arrays["ckks.members"]),
        arrays["ckks.publics"],
        arrays["ckks.public"],
        arrays["ckks.sealed"],
        arrays["ckks.signature"].tobytes(),
    )
    holder.verify(key, request.study, protect.opener, me.roster)
    words = sheet.words(sums, protect.counted(me.roster))  # as masked sums: a step is the same whoever is away
    announced, subject = sha256(encode(request)).digest(), subject_of(request)
    found = holder.protect(
        safe, me.key, me.site, key, request.study, protect.opener, announced, subject, digits.split(words)
    )
    return cast(Mapping[str, Array], found)


def _installed() -> None:
    """Raise UpdateRejected where TenSEAL is not there: a refusal tells the coordinator, and the agent goes on."""
    try:
        ckks.require(1)
    except StudyError as error:
        raise UpdateRejected(str(error)) from None


def _takes(request: Request, safe: Safe) -> None:
    """Raise UpdateRejected unless a request that touches no row holds what its step takes, in the right types and sizes."""
    if request.ask not in TAKES:
        raise UpdateRejected(f"expected to be asked for {', '.join(TAKES)}, found '{request.ask}': it was refused")
    wanted = TAKES[request.ask]
    kinds = {name: np.uint64 if name == "sum" else np.uint8 for name in wanted}
    if tuple(sorted(request.arrays)) != wanted or any(request.arrays[name].dtype != kinds[name] for name in wanted):
        raise UpdateRejected(f"expected {', '.join(wanted)} as bytes, found others: it was refused")
    for name, size in {"epoch": 8, "announced": 32, "size": 8}.items():
        if name in wanted and request.arrays[name].shape != (size,):
            raise UpdateRejected(
                f"expected {name} of {size} bytes, found {request.arrays[name].shape}: it was refused (epoch {safe.number})"
            )


def names_of(names: Iterable[str]) -> Bytes:
    """Names of sites as bytes of a message, (n,)."""
    return as_bytes("\n".join(names).encode())


def _read_names(array: Bytes) -> tuple[str, ...]:
    try:
        names = tuple(array.tobytes().decode("ascii").split("\n"))
    except UnicodeDecodeError:
        names = ()
    if list(names) != sorted(set(names)) or not names or any(not identity.SITE.fullmatch(one) for one in names):
        raise UpdateRejected("expected names of sites in name order, each once, found others: it was refused")
    return names
