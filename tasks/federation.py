"""A coordinator's folder, opened: its study, its ledger and MLflow, its hospitals' desks."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

from fedrounds.coordinator import config as configs
from fedrounds.coordinator import roster
from fedrounds.coordinator.config import Config
from fedrounds.core import encrypted
from fedrounds.core.errors import QuorumError
from fedrounds.core.participation import unreachable
from fedrounds.core.plan import build
from fedrounds.exchange.exchange import Exchange
from fedrounds.exchange.fsspec import Folder as Mail
from fedrounds.tasks import agreed, masks, package
from fedrounds.tasks import folder as folders
from fedrounds.tasks.clock import Clock
from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.desk import Desk
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.inviting import leave_study
from fedrounds.tasks.mailboxes import public_key_of, read_key
from fedrounds.tasks.run import Listener, opened

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Federation:
    """What a coordinator's folder says."""

    home: Path
    config: Config
    folder: Folder
    place: State

    def desks(self) -> Mapping[str, Desk]:
        """The hospitals that are asked, each with the study as it is now in its mailbox.

        Raises QuorumError where there are fewer than the study wants.
        """
        sites, plan = roster.active(self.home), build(self.folder.study)
        keys = agreed.published(self.home) if self.folder.study.masked else {}
        if keys:
            masks.enough(self.folder.study, encrypted.patients(self.folder.study, keys))
        if keys:  # who has joined since is asked once the others know its key
            sites = {name: site for name, site in sites.items() if site.key == keys.get(name, b"").hex()}
        hospitals = encrypted.patients(self.folder.study, sites)
        quorum = self.folder.operations.quorum_of(len(hospitals))
        if (holder := encrypted.third_party(self.folder.study)) and holder not in sites:
            raise QuorumError(
                f"expected the key holder '{holder}' among those in {self.home / 'sites'} that have joined and whose key is on the roster, found"
                " it is not: invite it, and agree on its key"
            )
        if len(hospitals) < quorum or not hospitals:
            raise QuorumError(
                f"expected at least {quorum} hospitals in {self.home / 'sites'} that have joined, found {len(hospitals)}:"
                " `fedrounds coordinator invite` them, `fedrounds coordinator sites` shows who has"
            )
        if said := unreachable(self.folder.study.participation, len(hospitals), quorum):
            raise QuorumError(said)
        key, desks = read_key(self.home / "keys" / "coordinator.key"), dict[str, Desk]()
        data = package.packed(self.folder, self.folder.path)
        for name, site in sites.items():
            box = self.mailbox(site.experiment)
            leave_study(box, key, plan.digest, data, name)
            desks[name] = Desk(name, box, public_key_of(site.key, f"the {name}"), key, plan)
            desks[name].roster = keys
        return desks

    def mailbox(self, experiment: str) -> Exchange:
        """A hospital's mailbox, past the server: on the disk that it serves from."""
        return Exchange(Mail(configs.mail(self.home, self.config, experiment)))

    def opened(self, on_visit: Listener | None, clock: Clock | None) -> AbstractContextManager[Correspondence]:
        """A run with its hospitals, which holds the study's lease."""
        return opened(self.folder, self.place, on_visit, self.desks(), clock, Correspondence)  # type: ignore[return-value]

    def prefect(self) -> Mapping[str, str] | None:
        """Settings that lead to the coordinator's Prefect server, None where it does not answer."""
        port = self.config.ports.prefect
        with closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection:
            try:
                connection.request("GET", "/api/health")
                if connection.getresponse().status != 200:
                    return None
            except (OSError, http.client.HTTPException):
                return None
        auth = configs.read_secrets(self.home).prefect_auth
        return {"PREFECT_API_URL": f"http://{HOST}:{port}/api", "PREFECT_API_AUTH_STRING": auth}


def read(home: Path) -> Federation:
    """A coordinator's folder. Raises StudyError or StateError with one line."""
    home = home.absolute()
    config = configs.read(home)
    folder = folders.read_protocol(home / config.study, roster.active(home))
    password = configs.read_secrets(home).database_password
    tracking = configs.database(home, config.tracking, password)
    own, key = home / "state" / folder.study.name, home / "keys" / "coordinator.key"
    place = State(home / "state", own, _ledger(home, config, folder, password), tracking, key)
    return Federation(home, config, folder, place)


def _ledger(home: Path, config: Config, folder: Folder, password: str) -> str:
    """The ledger's address on a PostgreSQL server; empty for the file in the state folder."""
    if "://" not in config.ledger:
        return ""
    from fedrounds.ledger.postgres import address

    return address(configs.database(home, config.ledger, password), folder.study.name)
