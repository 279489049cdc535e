"""Who takes part: invite, admit, suspend, resume, remove. The roster is the truth; MLflow's users and permissions follow it.

Every act may be done again, also after it was killed: it then does the rest. What concerns one site changes nothing for another.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from fedrounds.coordinator import config as configs
from fedrounds.coordinator import roster
from fedrounds.coordinator.config import Config
from fedrounds.coordinator.roster import Admission, Site
from fedrounds.core import identity, invitation
from fedrounds.core.errors import StateError, StudyError
from fedrounds.core.identity import SITE, About
from fedrounds.core.invitation import Invitation
from fedrounds.core.study import Study
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.fsspec import Folder
from fedrounds.exchange.name import Name, folder
from fedrounds.tasks import package
from fedrounds.tasks.folder import read_protocol
from fedrounds.tasks.mailboxes import read_key
from fedrounds.tasks.mlflow_users import Administrator

DAY_S = 86400
USER = "site-"  # begins a site's user on MLflow: nginx keeps those from people's pages


def mailbox(home: Path, config: Config, site: Site) -> Exchange:
    """A site's mailbox as the coordinator reaches it: on disk, whether or not MLflow's server is up."""
    return Exchange(Folder(configs.mail(home, config, site.experiment)))


def invite(home: Path, name: str, days: int = 7, now: float | None = None) -> tuple[Invitation, str]:
    """Have a mailbox, a user and the study ready for a site; returns its invitation, and that as text. An earlier one ends by it.

    Raises:
        StudyError: the name is none.
        StateError: the site takes part already.
        ServiceError: MLflow does not do its part.
    """
    if not SITE.fullmatch(name):
        raise StudyError("expected a site's name of letters, digits, and _.- (at most 63), found another: choose one")
    known = roster.read(home)
    _unlike(name, known)
    site = known.get(name)
    if site is not None and site.status in ("active", "suspended"):
        raise StateError(
            f"expected a site that has not joined, found '{name}' {site.status}: remove it first if it shall join anew"
        )
    config, key, study = configs.read(home), _key(home), _study(home)
    password, nonce = secrets.token_urlsafe(32), secrets.token_hex(16)
    expires = int((time.time() if now is None else now) + days * DAY_S)
    with _administrator(home, config) as admin:
        experiment = admin.experiment(f"mailbox · {name}")
        user = USER + name
        admin.user(user, password)
        admin.allow(user, experiment)
    invited = Site(
        name=name,
        experiment=experiment,
        user=user,
        status="invited",
        nonce_hash=invitation.nonce_hash(nonce),
        expires=expires,
    )
    leave_study(mailbox(home, config, invited), key, study.digest, package.pack(home / config.study), name)
    roster.write(home, invited, site)
    ca = home / "keys" / "ca.pem"
    said = Invitation(
        coordinator=identity.public_key(key).hex(),
        url=config.public,
        ca=ca.read_text() if ca.exists() else "",
        site=name,
        experiment=experiment,
        user=user,
        password=password,
        nonce=nonce,
        expires=expires,
        study=study.name,
        digest=study.digest,
    )
    return said, invitation.dump(said, key)


def admit(home: Path, now: float | None = None) -> list[Admission]:
    """Take in whoever has enrolled; see `roster.admit`."""
    config = configs.read(home)
    digest = _study(home).digest
    return roster.admit(home, lambda site: mailbox(home, config, site), digest, time.time() if now is None else now)


def suspend(home: Path, name: str) -> Site:
    """Ask a site no more, and let it in no more, until it is resumed. Others notice nothing."""
    site = _taking_part(home, name, "suspended")
    shut = site.but(status="suspended")
    roster.write(home, shut, site)
    with _administrator(home, configs.read(home)) as admin:
        admin.forbid(site.user, site.experiment)
    return shut


def resume(home: Path, name: str) -> Site:
    """Let a suspended site in, and ask it, again."""
    site = _taking_part(home, name, "active")
    with _administrator(home, configs.read(home)) as admin:
        admin.allow(site.user, site.experiment)
    back = site.but(status="active")
    roster.write(home, back, site)
    return back


def remove(home: Path, name: str) -> Site:
    """Take a site out for good: its user is no more, its key no more known. What it sent before is part of the models made with it."""
    before = roster.find(home, name)
    site = before.but(status="removed", key="", nonce_hash="", expires=0)
    roster.write(home, site, before)
    config = configs.read(home)
    with _administrator(home, config) as admin:
        admin.forget(site.user)
    box = mailbox(home, config, site)
    for left in box.list():
        box.drop(left)
    return site


def _taking_part(home: Path, name: str, to: str) -> Site:
    site = roster.find(home, name)
    if site.status not in ("active", "suspended"):
        raise StateError(f"expected a site that has joined, found '{name}' {site.status}: it cannot become {to}")
    return site


def _unlike(name: str, known: dict[str, Site]) -> None:
    """MLflow takes users' names as alike whose letters differ in case alone, and so do some file systems."""
    same = [other for other in known if other.lower() == name.lower() and other != name]
    if same:
        raise StudyError(
            f"expected a name unlike those in the roster, found '{name}' beside '{same[0]}': choose another"
        )


def _study(home: Path) -> Study:
    return read_protocol(home / configs.read(home).study).study


def _key(home: Path) -> bytes:
    return read_key(home / "keys" / "coordinator.key")


def leave_study(box: Exchange, key: bytes, digest: str, data: bytes, name: str) -> None:
    """Put the study into a site's mailbox, signed for it, in place of what was there. The same study is the same bytes.

    Args:
        digest: of the protocol.
        data: its package.
    """
    signed = identity.sign(key, About(digest, 0, 0, 0, name, "request", digest), data)
    new = Name.of(signed, 0, 0, "study")
    for old in [*box.list(folder(0, 0, "join")), *box.list(folder(0, 0, "study"))]:
        if old != new:
            box.drop(old)
    box.put(new, signed)


def _administrator(home: Path, config: Config) -> Administrator:
    return Administrator(config.ports.mlflow, configs.read_secrets(home).admin_password)
