"""`fedrounds serve`: a registered version of a study that answers in MLflow's scoring protocol, on this machine alone by default."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrounds.core.errors import ServiceError, StateError

if TYPE_CHECKING:
    from fedrounds.tasks.scoring import Version

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serving(arguments: argparse.Namespace) -> int:
    """`fedrounds serve` or `fedrounds score`."""
    registry = Registry.of(arguments.dir, arguments.state, arguments.version)
    if arguments.command == "score":
        from fedrounds.cli.score import score

        return score(registry.version(), arguments.file, arguments.out, arguments.json)
    return _serve(registry, arguments)


class Registry:
    """The registered versions of one study. `pinned`: the number of one, None for whichever is champion."""

    def __init__(self, tracking: str, study: str, pinned: int | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a lost server is told of, not waited for
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient

        self.client, self.study, self.pinned = MlflowClient(tracking, tracking), study, pinned
        self.tracking = tracking

    @classmethod
    def of(cls, directory: Path, state: Path | None, pinned: int | None) -> Registry:
        """Where a study's versions are: in its own store or, if it has none here, where MLFLOW_TRACKING_URI says."""
        from fedrounds.cli.study import opened

        folder, place = opened(directory, None, state)
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not place.tracking and not (place.mlruns / "mlflow.db").is_file():
            if not elsewhere:
                raise StateError(
                    f"expected a study that has run, found no MLflow store at {place.mlruns}: `fedrounds run {directory}` first, or"
                    " set MLFLOW_TRACKING_URI to where its versions are"
                )
            return cls(elsewhere, folder.study.name, pinned)
        return cls(place.tracking_uri, folder.study.name, pinned)

    def wanted(self) -> Any:
        """The version to serve, as MLflow describes it.

        Raises:
            StateError: there is none.
            ServiceError: the registry does not answer.
        """
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        which = f"version {self.pinned}" if self.pinned else "champion"
        file = self.tracking.removeprefix("sqlite:///")
        if (
            file != self.tracking and not Path(file).is_file()
        ):  # SQLite would make an empty one, for the next run to stumble over
            raise ServiceError(f"expected MLflow's store at {file}, found none")
        try:
            if self.pinned:
                return self.client.get_model_version(self.study, str(self.pinned))
            return self.client.get_model_version_by_alias(self.study, "champion")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise ServiceError(
                    f"expected MLflow's registry to tell of '{self.study}', found {error.error_code}: see that it runs"
                ) from None
        except (OSError, SQLAlchemyError) as error:  # its own words may hold the store's address, and so a password
            raise ServiceError(
                f"expected MLflow's registry to tell of '{self.study}', found {type(error).__name__}: see that it runs"
            ) from None
        raise StateError(
            f"expected a {which} of '{self.study}' in MLflow's registry, found none: `fedrounds status` tells which rounds there are"
        )

    def version(self) -> Version:
        """That version, loaded."""
        return self._loaded(self.wanted())

    def newer(self, than: Version) -> Version | None:
        """The version to serve, where it is another one."""
        wanted = self.wanted()
        return None if str(wanted.version) == than.number else self._loaded(wanted)

    def _loaded(self, wanted: Any) -> Version:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        from fedrounds.tasks.scoring import Version

        scratch = tempfile.mkdtemp(prefix="fedrounds-version-")
        try:
            place = self.client.get_model_version_download_uri(self.study, wanted.version)
            folder = download_artifacts(place, dst_path=scratch, tracking_uri=self.tracking)
            return Version.load(Path(folder), str(wanted.version), dict(wanted.tags))
        except (OSError, MlflowException) as error:
            raise ServiceError(
                f"expected the files of version {wanted.version} of '{self.study}' where MLflow keeps them, found"
                f" {type(error).__name__}: `fedrounds repair` writes them again"
            ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _serve(registry: Registry, arguments: argparse.Namespace) -> int:
    """Answer until Ctrl-C."""
    import uvicorn

    from fedrounds.tasks.scoring import Served, app, settle

    with _listening(arguments.host, arguments.port) as listening:
        version = registry.version()
        settle()
        host, port = listening.getsockname()[:2]
        _say(f"http://{host}:{port}", version, arguments)
        served = Served(version, (lambda _: None) if arguments.version else registry.newer, arguments.every)
        config = uvicorn.Config(
            app(served, arguments.timeout),
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        with contextlib.suppress(KeyboardInterrupt):  # the signal that uvicorn has obeyed, raised again
            uvicorn.Server(config).run(sockets=[listening])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(family[4][:2], family=family[0], backlog=128)
    except OSError as error:
        raise ServiceError(
            f"expected port {port} of {host} to be free, found: {error.strerror}: choose another with --port (0 takes a free one)"
        ) from None
    return made


def _say(url: str, version: Version, arguments: argparse.Namespace) -> None:
    if arguments.host not in LOOPBACK:
        print(
            f"fedrounds: whoever reaches {url} may ask, without a password and unencrypted: it belongs behind the hospital's proxy",
            file=sys.stderr,
        )
    about = version.about()
    if arguments.json:
        print(json.dumps({"url": url, **about}, ensure_ascii=False), flush=True)
        return
    which = "pinned" if arguments.version else "champion"
    print(
        f"{about['study']} version {about['version']} ({which}) answers POST {url}/invocations. Ctrl-C ends it.",
        flush=True,
    )
