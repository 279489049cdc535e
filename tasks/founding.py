"""`fedrounds coordinator init`: a coordinator's folder, whole or not at all, and the databases that it needs."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedrounds.coordinator import certificates, deployment, files
from fedrounds.coordinator import config as configs
from fedrounds.coordinator.config import Config, Ports, Secrets
from fedrounds.core import identity
from fedrounds.core.errors import ServiceError, StateError, StudyError
from fedrounds.tasks.folder import read_protocol

PARTS = ("", "_mlflow", "_auth", "_prefect")  # databases: the ledger, MLflow's, its users', Prefect's
TIMEOUT_S = 10


def found(home: Path, study: Path, public: str, postgres: str) -> Config:
    """Make a coordinator's folder.

    Args:
        home: a new or empty folder.
        study: the study's; its site files are not taken over.
        public: the address that hospitals reach.
        postgres: a server's URL, `postgresql+psycopg2://user:password@host/NAME`. The databases are called NAME, NAME_mlflow, …; where
            NAME is `postgres` or none, after the study. Empty: SQLite files, for a trial.

    Guarantees: what was there before is as it was if anything fails: no folder, no database of ours.

    Raises:
        StateError: the folder is in use or cannot be written, or a database holds something.
        StudyError: the study, the address or the URL says what it cannot mean.
        ServiceError: the database's server does not answer, or its user may not.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise StateError(f"expected a new or empty folder, found {home} in use: choose another name")
    name = read_protocol(study).study.name
    with _databases(postgres, name) as addresses:
        kept, password = _without_password(addresses)
        config = _config(home, public, kept)
        hidden = Secrets(
            admin_password=secrets.token_urlsafe(24),
            flask_secret=secrets.token_urlsafe(32),
            prefect_password=secrets.token_urlsafe(24),
            database_password=password,
        )
        scratch = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
        try:
            _write(scratch, home, study, config, hidden)
            if home.exists():
                home.rmdir()  # it is empty: rename would take its place, but not on every system
            scratch.rename(home)
        except OSError as error:
            raise StateError(
                f"expected to make a folder at {home}, found: {error.strerror}: choose another place"
            ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return config


def _config(home: Path, public: str, addresses: dict[str, str]) -> Config:
    try:
        configs.check_public(public)
    except ValueError as error:
        raise StudyError(f"{error}, found another --public: mend it") from None
    port = urlsplit(public).port or 443
    first = 20000 + zlib.crc32(str(home.absolute()).encode()) % 3000 * 4  # the same for a folder, and seldom another's
    usual = (
        8444 if port in (443, 8443) else first + 2
    )  # a machine with a port of its own for one may have several coordinators
    staff, mlflow, prefect = _free([usual, first, first + 1], {port})
    return Config(public=public, **addresses, ports=Ports(public=port, staff=staff, mlflow=mlflow, prefect=prefect))


def _free(wanted: list[int], taken: set[int]) -> list[int]:
    """These ports, or for each the next one that nobody listens on."""
    found: list[int] = []
    for port in wanted:
        while port in taken | set(found) or _listens(port):
            port += 1
        found.append(port)
    return found


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _write(scratch: Path, home: Path, study: Path, config: Config, hidden: Secrets) -> None:
    scratch.mkdir(parents=True, mode=0o700)
    for name in deployment.OWN:
        (scratch / name).mkdir()
    for name in ("study.toml", "operations.toml"):
        shutil.copyfile(study / name, scratch / "study" / name)
    if (study / "expectations").is_dir():
        shutil.copytree(study / "expectations", scratch / "study" / "expectations")
    read_protocol(scratch / "study")
    files.write(
        scratch / configs.FILE,
        _toml(config, "What this coordinator runs, and where: docs/coordinator.md. No secret belongs here."),
    )
    files.write(scratch / configs.SECRETS, _toml(hidden, "For its owner alone."), files.SECRET)
    files.write(scratch / "keys" / "coordinator.key", identity.new_key().hex() + "\n", files.SECRET)
    certificates.renew(scratch / "keys", config.host)
    deployment.write(home, config, hidden, scratch)


def _toml(document: Config | Secrets, comment: str) -> str:
    lines, tables = [f"# {comment}"], list[str]()
    for key, value in document.model_dump().items():
        if isinstance(value, dict):
            tables += ["", f"[{key}]", *(f"{name} = {json.dumps(it)}" for name, it in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, *tables]) + "\n"


@contextlib.contextmanager
def _databases(postgres: str, study: str) -> Iterator[dict[str, Any]]:
    """The databases' addresses. Those that were made for it are taken away again if the block fails."""
    if not postgres:
        yield {"ledger": "ledger.db", "tracking": "mlflow/mlflow.db", "mlflow_auth": "mlflow/auth.db"}
        return
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    server = _server(postgres)
    base = server.database if server.database not in (None, "", "postgres") else f"fedrounds_{study}"
    base = re.sub(r"[^a-z0-9_]+", "_", base.lower())[:50]
    names = [base + part for part in PARTS]
    engine = create_engine(
        server.set(database="postgres"), isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": TIMEOUT_S}
    )
    made: list[str] = []
    try:
        with _one_line(names):
            with engine.connect() as connection:
                there = set(connection.scalars(text("SELECT datname FROM pg_database")))
                for name in names:
                    if name not in there:
                        connection.execute(text(f'CREATE DATABASE "{name}"'))
                        made.append(name)
            _check_empty(server, [name for name in names if name not in made])
        urls = [server.set(database=name) for name in names]
        yield dict(zip(("ledger", "tracking", "mlflow_auth"), urls[:3], strict=True)) | {
            "prefect_database": urls[3].set(drivername="postgresql+asyncpg")
        }
    except BaseException:
        with contextlib.suppress(SQLAlchemyError), engine.connect() as connection:
            for name in made:
                connection.execute(text(f'DROP DATABASE IF EXISTS "{name}"'))
        raise
    finally:
        engine.dispose()


def _server(postgres: str) -> Any:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(postgres)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.get_backend_name() != "postgresql":
        raise StudyError("expected --postgres as postgresql://user:password@host/name, found another address: mend it")
    return url.set(drivername="postgresql+psycopg2")


def _check_empty(server: Any, names: list[str]) -> None:
    from sqlalchemy import create_engine, text

    for name in names:
        engine = create_engine(server.set(database=name), connect_args={"connect_timeout": TIMEOUT_S})
        try:
            with engine.connect() as connection:
                count = connection.scalar(
                    text("SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
                )
        finally:
            engine.dispose()
        if count:
            raise StateError(
                f"expected an empty database '{name}', found {count} tables in it: name another in --postgres, as …/NAME, or drop it"
            )


@contextlib.contextmanager
def _one_line(names: list[str]) -> Iterator[None]:
    """What the database's server says in our words; its own may hold the address."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except OperationalError:
        raise ServiceError(
            "expected PostgreSQL to let us in at --postgres, found it did not: check address, user and password"
        ) from None
    except SQLAlchemyError as error:
        raise ServiceError(
            f"expected databases {', '.join(names)}, or a user who may make them, found {type(error).__name__}: "
            "let an administrator `createdb` them, owned by that user"
        ) from None


def _without_password(addresses: dict[str, Any]) -> tuple[dict[str, str], str]:
    """The addresses as coordinator.toml may show them, and the password that they share."""
    from sqlalchemy.engine import URL

    kept, password = dict[str, str](), ""
    for key, url in addresses.items():
        if isinstance(url, URL):
            password = str(url.password or "")
            bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
            kept[key] = bare.render_as_string(hide_password=False)
        else:
            kept[key] = url
    return kept, password
