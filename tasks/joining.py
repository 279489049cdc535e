"""How a hospital joins: everything is tried before anything is promised, and nothing is half-written.

check    the invitation, the connection, the study, the table, the gate, the policy: nothing has changed anywhere
enrol    a key, a password that the invitation does not hold, the enrolment in the mailbox; then the folder stands
"""

from __future__ import annotations

import json
import secrets
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrounds.core import identity
from fedrounds.core.encrypted import third_party
from fedrounds.core.errors import ServiceError, StateError, StudyError
from fedrounds.core.identity import About
from fedrounds.core.invitation import Invitation
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.mlflow import Artifacts
from fedrounds.exchange.name import Name
from fedrounds.sources.site_file import Coordinator
from fedrounds.tasks.folder import read_site
from fedrounds.tasks.hospital import Hospital
from fedrounds.tasks.joined import Joined, columns_of, join
from fedrounds.tasks.mailboxes import mailbox_of, write_secret
from fedrounds.tasks.verdict import Verdict, line

KINDS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True)
class Checked:
    """What was found at the hospital, for a person to read before anything is enrolled."""

    site: str
    study: str
    digest: str
    coordinator: str  # the fingerprint of its key
    columns: list[str]
    patients: int  # shown here alone
    verdict: Verdict | None  # None of who has no patients
    refusal: str  # of the policy; empty if the site can take part

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "site": self.site,
            "study": self.study,
            "digest": self.digest,
            "coordinator": self.coordinator,
            "columns": self.columns,
            "patients": self.patients,
            "gate": line(self.verdict) if self.verdict else "",
            "refusal": self.refusal,
        }


def prepared(
    invitation: Invitation, home: Path, data: Path | None, site_file: Path | None, holder: bool = False
) -> Path:
    """A folder beside `home` with all that the hospital's own will hold; what an earlier try left there is used on.

    Args:
        data: a table (CSV, Parquet), or the folder where the paths of `site_file` start.
        site_file: a site.toml with [source], and whatever else the hospital wants to say.
        holder: it has no patients, and holds the key of a study's sums.

    Raises:
        StudyError: they are not there, or say what they cannot mean.
        StateError: `home` is there already, or cannot be written.
    """
    if home.exists():
        raise StateError(
            f"expected no folder at {home}, found one: name another, or remove it if this hospital shall join anew"
        )
    scratch = home.with_name(f".{home.name}.joining")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        scratch.chmod(0o700)
        (scratch / "site.toml").write_text(_site_toml(invitation, data, site_file, holder), encoding="utf-8")
        if invitation.ca:
            (scratch / "ca.pem").write_text(invitation.ca)
        if not (scratch / "site.key").exists():
            write_secret(scratch / "site.key", identity.new_key().hex())
        if not (scratch / "password").exists():
            write_secret(scratch / "password", invitation.password)
    except OSError as error:
        raise StateError(
            f"expected a folder that can be written at {scratch}, found: {error.strerror}: name another one"
        ) from None
    site = read_site(scratch / "site.toml")
    if site.name != invitation.site:
        raise StudyError(
            f"expected site '{invitation.site}', which was invited, found '{site.name}' in {site_file}: mend its `name`"
        )
    return scratch


def check(scratch: Path, invitation: Invitation) -> Checked:
    """Try everything: the mailbox, the study in it, the table, the gate, the policy. Nothing has changed anywhere when this returns.

    Raises:
        ServiceError: the mailbox cannot be reached, or holds no study.
        StudyError: the study does not fit this site file.
        DataContractError: the table does not keep to the study's dictionary.
    """
    site = read_site(scratch / "site.toml")
    assert site.coordinator is not None
    mailbox = mailbox_of(site.coordinator, scratch)
    joined = join(invitation.digest, mailbox, bytes.fromhex(invitation.coordinator), site, scratch)
    if not isinstance(joined, Joined):
        raise StudyError(
            f"expected a study that this hospital can take part in, found that {joined}: mend the site file, or ask the coordinator"
        )
    study = joined.folder.study
    shown = identity.fingerprint(bytes.fromhex(invitation.coordinator))
    if (site.source is None) != (third_party(study) == site.name):
        raise StudyError(
            f"expected --holder of the third party that holds the key, and of nobody else, found '{third_party(study) or 'none'}' as `holder` in the"
            f" study and '{site.name}' {'without' if site.source is None else 'with'} rows: ask the coordinator"
        )
    if site.source is None:
        return Checked(site.name, study.name, study.digest, shown, [], 0, None, "")
    patients = joined.ward.load()  # raises what breaks the contract, in its own words: they stay here
    hospital = Hospital(scratch)
    try:
        verdict = hospital.verdict(joined)
    finally:
        joined.gates.kill()
        hospital.close()
    return Checked(
        site.name, study.name, study.digest, shown, columns_of(study), patients, verdict, joined.ward.refusal()
    )


def enrol(scratch: Path, home: Path, invitation: Invitation) -> None:
    """Make the folder the hospital's own: a password of its own, the enrolment in the mailbox, its place.

    Killed at any instant, the same command again goes on: what is in the folder is what the coordinator knows, or will.
    """
    site = read_site(scratch / "site.toml")
    assert site.coordinator is not None
    _own_password(scratch, site.coordinator, invitation)
    key = bytes.fromhex((scratch / "site.key").read_text().strip())
    said = {"site": site.name, "key": identity.public_key(key).hex(), "nonce": invitation.nonce}
    payload = json.dumps(said, sort_keys=True).encode()
    about = About(invitation.digest, 0, 0, 0, site.name, "reply", invitation.digest)
    signed = identity.sign(key, about, payload)
    mailbox_of(site.coordinator, scratch).put(Name.of(signed, 0, 0, "join"), signed)
    shutil.rmtree(scratch / "state", ignore_errors=True)  # of the checks; the agent makes its own
    scratch.rename(home)


def _own_password(scratch: Path, coordinator: Coordinator, invitation: Invitation) -> None:
    """Change the one-time password; the new one is on disk before the server has it."""
    if not coordinator.exchange.startswith(("https://", "http://")):
        return
    new = scratch / "password.new"
    if not new.exists():
        write_secret(new, secrets.token_urlsafe(32))
    ca = str(scratch / coordinator.ca) if coordinator.ca else None
    fresh = new.read_text().strip()
    known = Artifacts(coordinator.exchange, coordinator.experiment, coordinator.user, fresh, ca)
    try:
        Exchange(known).folders()  # an earlier try got as far as that
    except ServiceError:
        Artifacts(
            coordinator.exchange, coordinator.experiment, coordinator.user, invitation.password, ca
        ).change_password(fresh)
    new.replace(scratch / "password")


def _site_toml(invitation: Invitation, data: Path | None, site_file: Path | None, holder: bool) -> str:
    """The hospital's own file: what it says of its rows, then whom it answers and how."""
    if holder and (data or site_file):
        raise StudyError(
            "expected --holder without rows, found --data or --site-file: who has patients names no --holder"
        )
    if holder:
        said = f"name = {json.dumps(invitation.site)}"
    else:
        said = _described(invitation.site, data, site_file) if site_file else _table(invitation.site, data)
    about = {
        "key": invitation.coordinator,
        "exchange": invitation.url,
        "experiment": invitation.experiment,
        "user": invitation.user,
    } | ({"ca": "ca.pem"} if invitation.ca else {})
    return "\n".join([said, "", "[coordinator]", *(f"{key} = {json.dumps(value)}" for key, value in about.items()), ""])


def _table(site: str, data: Path | None) -> str:
    """A site file about one table."""
    kind = KINDS.get(data.suffix.lower()) if data else None
    if data is None or kind is None or not data.is_file():
        raise StudyError(
            f"expected a table as .csv or .parquet, found {data or 'none'}: name it with --data, or describe it with --site-file"
        )
    lines = [
        f"name = {json.dumps(site)}",
        f'split_key = "{secrets.token_hex(16)}"  # secret: by it the validation rows are drawn',
        "",
        "[source]",
        f'kind = "{kind}"',
        f"path = {json.dumps(str(data.resolve()))}",
    ]
    return "\n".join([*lines, 'separator = "\\t"'] if data.suffix.lower() == ".tsv" else lines) + "\n"


def _described(site: str, data: Path | None, file: Path) -> str:
    """The hospital's own site file, with its name and where its relative paths start."""
    known = read_site(file)
    if known.coordinator is not None:
        raise StudyError(f"expected a site file without [coordinator], found one in {file}: the invitation says it")
    if known.source is None:
        raise StudyError(
            f"expected [source] in {file}, found none: say there where the rows are, or join with --holder"
        )
    if data is not None and not data.is_dir():
        raise StudyError(f"expected the folder where paths in {file} start, found none at {data}: mend --data")
    text = file.read_text(encoding="utf-8").rstrip()
    given = tomllib.loads(text)
    own = {"name": given.get("name", site), "data": str((data or file.parent).resolve())}
    return "\n".join([*(f"{key} = {json.dumps(value)}" for key, value in own.items() if key not in given), text, ""])
