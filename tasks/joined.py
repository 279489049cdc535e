"""A study as a hospital has it: fetched from the mailbox, checked, made whole by the hospital's own site.toml."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from fedrounds.core import identity
from fedrounds.core.errors import ServiceError, StudyError, UpdateRejected
from fedrounds.core.identity import ENVELOPE, About
from fedrounds.core.plan import build
from fedrounds.core.study import Study, Survival
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.name import folder
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import package
from fedrounds.tasks.folder import Folder
from fedrounds.tasks.gates import Gates
from fedrounds.tasks.remembered import Remembered
from fedrounds.tasks.ward import Ward
from fedrounds.tasks.withheld import withheld

STUDY = (0, 0, "study")  # where the coordinator leaves the study itself


class Joined:
    """A study's files, the hospital's rows, and what it remembers of its gate."""

    def __init__(self, read: Folder, site: SiteFile, home: Path) -> None:
        self.folder, self.plan = read, build(read.study)
        self.ward = Ward(site, self.plan, read.data, site.policy)
        self.memory = Remembered(
            read, read.path / "verdicts.json"
        )  # the study's own: rows that another's suite set aside are not its
        self.gates = Gates(read, home / "agent.log", {})
        self.statistics: dict[str, bytes] = {}  # that the rows were encoded by


def join(digest: str, mailbox: Exchange, coordinator: bytes, site: SiteFile, home: Path) -> Joined | str:
    """The study of this digest; a text says why the site takes no part in it.

    Args:
        coordinator: its public key; nothing that another has signed is read.
        home: the folder of site.toml; the study's own folder is `state/studies/` in it.

    Raises:
        ServiceError: the mailbox cannot be reached, or the study is not there yet.
    """
    try:
        read = _fetched(digest, mailbox, coordinator, site, home)
    except UpdateRejected as error:
        return f"the study cannot be used here: {error}"
    except StudyError:  # its text may quote the site's own file
        return "the study does not fit the site's own file"
    refusal = columns_closed(read.study, site) or read.study.model.barred(site.policy.modules)
    if refusal:
        return refusal
    with withheld("to set the study up"):
        return Joined(read, site, home / "state")


def columns_of(study: Study) -> list[str]:
    """Every column that a study names."""
    roles = (
        study.target.column,
        study.target.time if isinstance(study.target, Survival) else None,
        study.patient_id,
        study.event_time,
        study.validation.fold,
        study.offset,
        study.case_weights,
    )
    return [feature.name for feature in study.features] + [name for name in roles if name]


def columns_closed(study: Study, site: SiteFile) -> str:
    """Why a study names more of the table than the hospital opens; empty if it does not."""
    allowed = site.policy.columns
    foreign = sorted(set(columns_of(study)) - set(allowed)) if allowed else []
    return (
        f"the study names {len(foreign)} columns that the site does not open, such as '{foreign[0]}'" if foreign else ""
    )


def newest(mailbox: Exchange, coordinator: bytes, site: str) -> str:
    """The digest of the study that the coordinator has left in the mailbox. Raises StudyError where there is none of its own."""
    for name in mailbox.list(folder(*STUDY)):
        signed = mailbox.get(name, package.LARGEST + ENVELOPE)
        try:
            if signed is not None:
                digest = identity.claim(signed, package.LARGEST).study
                identity.verify(coordinator, _about(digest, site), signed, package.LARGEST)
                return digest
        except UpdateRejected:
            continue
    raise StudyError("expected a study in the mailbox that the coordinator signed, found none: ask the coordinator")


def stale(digest: str, mailbox: Exchange, home: Path) -> bool:
    """Whether the coordinator has left another package of the study than the one that is used here: its suite or its gate's rules changed."""
    kept = _kept(digest, home)
    there = {name.digest for name in mailbox.list(folder(*STUDY))}
    return kept.is_file() and bool(there) and sha256(kept.read_bytes()).hexdigest() not in there


def forget(digest: str, home: Path) -> None:
    """Have the study fetched again when it is next asked about."""
    _kept(digest, home).unlink(missing_ok=True)


def _kept(digest: str, home: Path) -> Path:
    """The package as it came, signature and all."""
    return home / "state" / "studies" / digest[:12] / "package.signed"


def _fetched(digest: str, mailbox: Exchange, coordinator: bytes, site: SiteFile, home: Path) -> Folder:
    kept = _kept(digest, home)
    known = kept.is_file()
    signed = kept.read_bytes() if known else _package(digest, mailbox, coordinator, site.name)
    data = identity.verify(coordinator, _about(digest, site.name), signed, package.LARGEST)
    read = package.unpack(data, digest, kept.parent, home / "site.toml", site)
    if not known:
        scratch = kept.with_name(".package.new")
        scratch.write_bytes(signed)
        scratch.replace(kept)
    return read


def _package(digest: str, mailbox: Exchange, coordinator: bytes, site: str) -> bytes:
    """The signed package of a study. Raises ServiceError where there is none that the coordinator signed."""
    why = ""
    for name in mailbox.list(folder(*STUDY)):
        signed = mailbox.get(name, package.LARGEST + ENVELOPE)
        try:
            if signed is not None:
                identity.verify(coordinator, _about(digest, site), signed, package.LARGEST)
                return signed
        except UpdateRejected as error:  # of another protocol, or not the coordinator's
            why = f" ({error})"
    raise ServiceError(
        f"expected study {digest[:12]} in the mailbox, found none that the coordinator signed{why}: ask the coordinator"
    )


def _about(digest: str, site: str) -> About:
    return About(digest, 0, 0, 0, site, "request", digest)
