"""The hospitals of a study, a file each in `sites/`: public facts, written in one step. The only place that says who takes part.

invited   a token is out        active   it joined, and is asked        suspended   not asked, not let in        removed   for good
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedrounds.coordinator import files
from fedrounds.core import identity
from fedrounds.core.errors import StateError, StudyError, UpdateRejected
from fedrounds.core.frozen import Frozen, Name
from fedrounds.core.identity import About
from fedrounds.core.invitation import nonce_hash
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.name import Name as ObjectName
from fedrounds.exchange.name import folder

FOLDER = "sites"
JOIN = (0, 0, "join")  # where in its mailbox a site enrols
LARGEST = 1 << 12  # bytes of an enrolment
MOST = 8  # enrolments of one site that are looked at in one go

Hash = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Status = Literal["invited", "active", "suspended", "removed"]


class Site(Frozen):
    """One hospital of the roster.

    Args:
        key: its public key, 64 hex digits; empty until it joined.
        experiment, user: its mailbox on MLflow, and who may use it.
        nonce_hash: of the invitation that is out; empty when none is.
        expires: until when that holds, Unix seconds.
        joined: when it joined, Unix seconds; 0 until then.
    """

    name: Name
    key: Hash = ""
    experiment: Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]
    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
    status: Status
    nonce_hash: Hash = ""
    expires: int = 0
    joined: int = 0

    def but(self, **fields: object) -> Site:
        """The same with other fields."""
        return Site(**{**self.model_dump(), **fields})


def read(home: Path) -> dict[str, Site]:
    """Every site of the roster, in order. Raises StudyError or StateError with one line."""
    found = dict[str, Site]()
    for file in sorted((home / FOLDER).glob("*.toml")):
        if file.name.startswith("."):  # one that is being written
            continue
        try:
            site = files.typed(file.read_text(encoding="utf-8"), Site, file)
        except OSError as error:
            raise StateError(
                f"expected a site of the roster in {file}, found: {error.strerror}: check its rights"
            ) from None
        if site.name != file.stem:
            raise StudyError(
                f"expected site '{file.stem}' in {file}, found '{site.name}': a file is named after its site"
            )
        found[site.name] = site
    return found


def find(home: Path, name: str) -> Site:
    """One site. Raises StateError where it is not in the roster."""
    sites = read(home)
    if name not in sites:
        known = ", ".join(sites) or "none yet"
        raise StateError(
            f"expected a site of the roster, found '{name}' (it has: {known}): `fedrounds coordinator invite` adds one"
        )
    return sites[name]


def active(home: Path) -> dict[str, Site]:
    """Those who are asked."""
    return {name: site for name, site in read(home).items() if site.status == "active"}


def write(home: Path, site: Site, before: Site | None) -> None:
    """Put a site into the roster, in one step, if it still stands there as `before` (None: not at all). No other site is touched.

    Raises StateError where somebody else has changed it meanwhile.
    """
    (home / FOLDER).mkdir(exist_ok=True)
    with (home / FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read(home).get(site.name) != before:
            raise StateError(
                f"expected site '{site.name}' as it was a moment ago, found it changed by another command: try again"
            )
        lines = [f"{key} = {json.dumps(value)}" for key, value in site.model_dump().items()]
        files.write(home / FOLDER / f"{site.name}.toml", "\n".join(lines) + "\n")


@dataclass(frozen=True)
class Admission:
    """What became of an enrolment."""

    site: str
    admitted: bool
    said: str  # the fingerprint of the site's key, or why it was refused


def admit(home: Path, mailbox: Callable[[Site], Exchange], study: str, now: float) -> list[Admission]:
    """Take in every invited site that has enrolled: its key goes into the roster, its enrolment out of the mailbox.

    Args:
        mailbox: a site's, as the coordinator reaches it.
        study: the digest of the protocol that the invitation named.
        now: Unix seconds.

    Guarantees:
        * the first enrolment that holds is taken and none after it: an active site's key changes by nobody's message;
        * killed at any instant, the next call goes on: the roster is written first, and then says what is left to drop;
        * what does not hold is dropped, told, and changes nothing.

    Raises ServiceError where a mailbox does not do its part; the others come again at the next call.
    """
    return [
        it
        for site in read(home).values()
        if site.status != "removed"
        for it in _enrolments(home, site, mailbox(site), study, now)
    ]


def _enrolments(home: Path, site: Site, box: Exchange, study: str, now: float) -> list[Admission]:
    found: list[Admission] = []
    for name in box.list(folder(*JOIN))[:MOST]:
        if site.status == "invited":
            try:
                key = _key(site, box, name, study, now)
            except (UpdateRejected, StateError) as error:
                found.append(Admission(site.name, False, str(error)))
            else:
                before, site = site, site.but(key=key.hex(), status="active", joined=int(now), nonce_hash="", expires=0)
                write(home, site, before)
                found.append(Admission(site.name, True, identity.fingerprint(key)))
        box.drop(name)
    return found


def _key(site: Site, box: Exchange, name: ObjectName, study: str, now: float) -> bytes:
    """The public key of an enrolment that holds. Raises UpdateRejected or StateError."""
    signed = box.get(name, LARGEST)
    if signed is None:
        raise UpdateRejected("expected an enrolment, found it gone: it was dropped")
    public = identity.signer(signed, LARGEST)
    about = About(study, 0, 0, 0, site.name, "reply", study)
    said = _said(identity.verify(public, about, signed, LARGEST))
    if said["site"] != site.name or said["key"] != public.hex():
        raise UpdateRejected(f"expected an enrolment of '{site.name}' by its own key, found another: it was refused")
    if nonce_hash(said["nonce"]) != site.nonce_hash:
        raise UpdateRejected("expected the nonce of the invitation that is out, found another: invite the site anew")
    if now >= site.expires:
        raise UpdateRejected("expected an enrolment while the invitation held, found it over: invite the site anew")
    return public


def _said(payload: bytes) -> Mapping[str, str]:
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        said = None
    if (
        not isinstance(said, dict)
        or set(said) != {"site", "key", "nonce"}
        or not all(isinstance(it, str) for it in said.values())
    ):
        raise UpdateRejected("expected an enrolment with site, key and nonce, found another message: it was refused")
    return said
