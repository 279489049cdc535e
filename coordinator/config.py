"""coordinator.toml: what a coordinator's folder runs, and where. Nothing in it is secret; passwords are in secrets.toml beside it.

DIR/coordinator.toml  secrets.toml  study/  keys/  sites/  mlflow/  prefect/  nginx/  log/  deploy/      (docs/coordinator.md)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from fedrounds.coordinator import files
from fedrounds.core.errors import StateError
from fedrounds.core.frozen import Frozen

FILE, SECRETS = "coordinator.toml", "secrets.toml"
Port = Annotated[int, Field(gt=0, lt=65536, strict=True)]
POSTGRES = "postgresql+psycopg2://"


class Ports(Frozen):
    """Where the servers listen: `public` and `staff` is nginx with TLS, `mlflow` and `prefect` are on 127.0.0.1 alone."""

    public: Port
    staff: Port
    mlflow: Port
    prefect: Port

    @model_validator(mode="after")
    def _apart(self) -> Self:
        ports = [self.public, self.staff, self.mlflow, self.prefect]
        if len(set(ports)) < len(ports):
            raise ValueError(f"expected four ports that differ, found {ports}")
        return self


class Config(Frozen):
    """A coordinator.

    Args:
        study: the folder of the study's files.
        public: the address that hospitals reach, `https://host` or `https://host:port`. It may be a gateway's that passes TCP on to
            the port `public`; TLS must end here, since hospitals pin this coordinator's certificates.
        ledger, tracking, mlflow_auth: databases, `postgresql+psycopg2://user@host/name` without a password, or files (SQLite).
        prefect_database: `postgresql+asyncpg://…`; empty: SQLite in `prefect/`.
        mail: where MLflow's server keeps artifacts, and so mailboxes: a folder, or a URL of fsspec.
        staff_listen: the address on which people reach MLflow's pages. Keep it out of hospitals' reach.
    """

    study: str = "study"
    public: str
    ledger: str
    tracking: str
    mlflow_auth: str
    prefect_database: str = ""
    mail: str = "mlflow/artifacts"
    staff_listen: Annotated[str, Field(pattern=r"^[0-9A-Fa-f.:\[\]]+$")] = "127.0.0.1"
    ports: Ports

    @field_validator("public")
    @classmethod
    def _address(cls, url: str) -> str:
        return check_public(url)

    @field_validator("ledger", "tracking", "mlflow_auth", "prefect_database", "mail")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if "://" in url and urlsplit(url).password is not None:
            raise ValueError(
                f"expected an address without a password, found one: put it as `database_password` into {SECRETS}"
            )
        return url

    @property
    def host(self) -> str:
        """The host of the public address, without the port."""
        return urlsplit(self.public).hostname or ""


class Secrets(Frozen):
    """secrets.toml: readable by its owner alone."""

    admin_password: str = Field(min_length=12, repr=False)  # MLflow's user `admin`
    flask_secret: str = Field(min_length=12, repr=False)  # MLflow signs its forms by it
    prefect_password: str = Field(min_length=12, repr=False)
    database_password: str = Field(default="", repr=False)  # of the user in the databases' addresses

    @property
    def prefect_auth(self) -> str:
        """What Prefect's server wants of its clients."""
        return f"fedrounds:{self.prefect_password}"


def check_public(url: str) -> str:
    """The address, if hospitals can be told it. Raises ValueError."""
    parts = urlsplit(url)
    try:
        fine = parts.scheme == "https" and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or url != f"https://{parts.netloc}" or "@" in parts.netloc:
        raise ValueError("expected https://host or https://host:port and nothing more")
    return url


def read(home: Path) -> Config:
    """The configuration of a coordinator's folder. Raises StudyError or StateError with one line."""
    file = home / FILE
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise StateError(
            f"expected a coordinator's folder at {home}, found no {FILE} there ({error.strerror}): `fedrounds coordinator init {home}`"
        ) from None
    return files.typed(text, Config, file)


def read_secrets(home: Path) -> Secrets:
    """Its secrets. Raises StateError where others may read them."""
    return files.typed(files.secret(home / SECRETS), Secrets, home / SECRETS)


def database(home: Path, address: str, password: str) -> str:
    """A database's URL, whole: with its password, or of the SQLite file in the folder. Never to be shown."""
    if "://" not in address:
        return f"sqlite:///{(home / address).absolute()}"
    if not password:
        return address
    from sqlalchemy.engine import make_url

    return make_url(address).set(password=password).render_as_string(hide_password=False)


def mail(home: Path, config: Config, experiment: str) -> str:
    """Where the mailbox of an experiment is for the coordinator, past the server: a path or a URL for `exchange.fsspec.Folder`."""
    root = config.mail if "://" in config.mail else str((home / config.mail).absolute())
    return f"{root.rstrip('/')}/{experiment}/mail"
