"""An exchange in the artifacts of one experiment on an MLflow server (`mlflow server --serve-artifacts`), over plain HTTP.

MLflow's basic-auth keeps sites apart: a site's user may edit its own experiment and nothing else. The server writes a file under another
name and renames it when all of it has come, so an upload that breaks leaves nothing. Removing wants the permission MANAGE: the coordinator's.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from fedrounds.core.errors import ServiceError, StudyError, UpdateRejected
from fedrounds.exchange.retry import TRIES, patiently

API = "/api/2.0/mlflow-artifacts/artifacts"
PASSWORD = "/api/2.0/mlflow/users/update-password"  # noqa: S105  an address
PASSING = {408, 425, 429, 500, 502, 503, 504}
TIMEOUT_S = 60.0
CHUNK = 1 << 16


class _Busy(Exception):
    """A status that may pass by itself."""


class Artifacts:
    """A store in the folder `mail` of an experiment's artifacts. Any thread may use it.

    Args:
        url: the server's, `https://fedrounds.example.org`.
        experiment: the experiment's id, digits.
        user, password: as the server's basic-auth knows them.
        ca: a file of certificates to trust instead of the system's.
        tries: how often what may pass by itself is tried.

    The environment's proxy settings hold. Raises StudyError where the address is none.
    """

    def __init__(
        self, url: str, experiment: str, user: str, password: str, ca: str | None = None, tries: int = TRIES
    ) -> None:
        import httpx

        if not url.startswith(("https://", "http://")) or not (experiment.isascii() and experiment.isdigit()):
            raise StudyError(
                "expected an exchange at https://… and an experiment's id in digits, found another address: mend it"
            )
        trust = ssl.create_default_context(cafile=ca) if url.startswith("https://") else False
        self._credentials = user, password
        self._http = httpx.Client(base_url=url.rstrip("/"), auth=self._credentials, verify=trust, timeout=TIMEOUT_S)
        self._broken: tuple[type[Exception], ...] = (httpx.TransportError, _Busy)
        self._root = f"{experiment}/mail"
        self._whose = f"user '{user}' in experiment {experiment}"
        self._tries = tries

    def write(self, path: str, data: bytes) -> None:
        """Upload the bytes; the server shows them when all have come."""

        def upload() -> None:
            steps = (
                data[start : start + CHUNK] for start in range(0, len(data), CHUNK)
            )  # httpx copies what it has at each
            url, length = f"{API}/{self._root}/{path}", {"Content-Length": str(len(data))}
            self._done(self._http.put(url, content=steps, headers=length), absent=0)

        self._patiently(upload)

    def read(self, path: str, largest: int) -> bytes | None:
        """Download the bytes."""

        def download() -> bytes | None:
            with self._http.stream(
                "GET", f"{API}/{self._root}/{path}", headers={"Accept-Encoding": "identity"}
            ) as response:
                if not self._done(response, absent=404):
                    return None
                chunks, size = list[bytes](), 0
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > largest:
                        raise UpdateRejected(
                            f"expected at most {largest} bytes at {path}, found more: it was refused unread"
                        )
                return b"".join(chunks)

        return self._patiently(download)

    def scan(self, folder: str) -> Mapping[str, int | None]:
        """What is directly in a folder."""
        answer = self._ask("GET", API, params={"path": f"{self._root}/{folder}".rstrip("/")})
        found: dict[str, int | None] = {}
        for file in answer.json().get("files", []):
            found[file["path"]] = None if file.get("is_dir") else int(file.get("file_size", 0))
        return found

    def remove(self, path: str) -> None:
        """Delete the file."""
        self._ask("DELETE", f"{API}/{self._root}/{path}", absent=404)

    def change_password(self, new: str) -> None:
        """Give the user another password: what the old one is told to opens nothing any more."""
        user, old = self._credentials
        self._ask("PATCH", PASSWORD, json={"username": user, "current_password": old, "password": new})
        self._credentials = user, new
        self._http.auth = self._credentials

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, url: str, absent: int = 0, **content: Any) -> Any:
        def ask() -> Any:
            response = self._http.request(method, url, **content)
            self._done(response, absent)
            return response

        return self._patiently(ask)

    def _patiently(self, ask: Any) -> Any:
        return patiently(ask, f"an answer of {self._http.base_url}", self._broken, tries=self._tries)

    def _done(self, response: Any, absent: int) -> bool:
        """Whether the server did it; False for the status that means that there is nothing."""
        status = response.status_code
        if status in PASSING:
            raise _Busy
        if status in (401, 403):
            raise ServiceError(f"expected {self._whose} to be let in, found status {status}: ask the coordinator")
        if status != absent and status != 200:
            raise ServiceError(
                f"expected {self._http.base_url} to serve MLflow's artifacts, found status {status}: check the address"
            )
        return status == 200
