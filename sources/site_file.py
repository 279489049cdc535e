"""site.toml: a hospital's own file. Local and secret: where its rows are, what it allows. It is never merged with the study."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints, field_validator

from fedrounds.core.answer import Policy
from fedrounds.core.operations import Window
from fedrounds.core.study import Name
from fedrounds.sources.options import Options, Source

PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Coordinator(Options):
    """Who asks, and where the mailbox is that both reach.

    Args:
        key: the coordinator's public key; a request by any other is refused.
        exchange: an MLflow server (`https://host`), or a folder or any URL of fsspec (`sftp://north@host/mail`).
        experiment, user, ca: on an MLflow server: the mailbox's experiment, the site's user, the certificates to trust (a file
            beside site.toml; none: the system's). The password is in the file `password` beside it.
        host_key: on SFTP: the server's, "ssh-ed25519 AAAA…". The private key is in the file `ssh.key`.
    """

    key: PublicKey
    exchange: str
    experiment: str = ""
    user: str = ""
    ca: str | None = None
    host_key: str = ""


class Agent(Options):
    """How the hospital's agent works.

    Args:
        poll: seconds between two looks into the mailbox; it looks less often while nothing comes.
        windows: hours in which it may work, by the clock on the wall in `timezone` ("nights only"); none named: always.
        prefect: "own" shows each visit as a flow run on a Prefect server of the hospital's own, "off" does without.
    """

    poll: float = Field(default=2.0, ge=0.05, le=3600)
    windows: tuple[Window, ...] = ()
    timezone: str = "UTC"
    prefect: Literal["own", "off"] = "own"

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError("expected a time zone such as Europe/Zurich, found another word: correct it") from None
        return timezone


class SiteFile(Options):
    """One hospital.

    `absent` lists features that it does not record; `split_key` is the secret by which it draws validation rows (two runs with the same
    key draw the same); `simulated` says that the hospital is made up, though its patients may be real. `coordinator` and `agent` are of a
    hospital that takes part from afar, and so is `data`: the folder where the source's relative paths start, if it is not this file's. Who
    holds a study's key as a third party has no patients, and no `source`.
    """

    name: Name
    source: Source | None = None
    data: str = ""
    absent: tuple[str, ...] = ()
    split_key: str = ""
    simulated: bool = False
    policy: Policy = Policy()
    coordinator: Coordinator | None = None
    agent: Agent = Agent()
