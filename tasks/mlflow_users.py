"""MLflow's users and experiments, as its administrator sees them: over REST, every act again the same."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from fedrounds.core.errors import ServiceError

TIMEOUT_S = 30.0
V2, V3 = "/api/2.0/mlflow", "/api/3.0/mlflow"


class Administrator:
    """A connection to the server on this machine; closed by `with`. Every act raises ServiceError where the server does not do it."""

    def __init__(self, port: int, password: str) -> None:
        import httpx

        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", auth=("admin", password), timeout=TIMEOUT_S, trust_env=False
        )
        self._broken = httpx.TransportError

    def __enter__(self) -> Administrator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def experiment(self, name: str) -> str:
        """The id of the experiment of this name; it is made if there is none."""
        made = self._ask("POST", f"{V2}/experiments/create", {"name": name}, known=("RESOURCE_ALREADY_EXISTS",))
        if made is None:
            made = self._ask("GET", f"{V2}/experiments/get-by-name", {"experiment_name": name})["experiment"]
        return str(made["experiment_id"])

    def user(self, name: str, password: str) -> None:
        """Have a user of this name with this password, who may nothing yet."""
        said = {"username": name, "password": password}
        if self._ask("POST", f"{V2}/users/create", said, known=("RESOURCE_ALREADY_EXISTS",)) is None:
            self._ask("PATCH", f"{V2}/users/update-password", said)

    def forget(self, name: str) -> None:
        """Have no such user."""
        self._ask("DELETE", f"{V2}/users/delete", {"username": name}, known=("RESOURCE_DOES_NOT_EXIST",))

    def allow(self, user: str, experiment: str) -> None:
        """Let the user edit this experiment."""
        grant = {"username": user, "resource_type": "experiment", "resource_id": experiment, "permission": "EDIT"}
        self._ask("POST", f"{V3}/users/permissions/grant", grant, known=("RESOURCE_ALREADY_EXISTS",))

    def forbid(self, user: str, experiment: str) -> None:
        """Let the user do nothing there any more."""
        known = ("RESOURCE_DOES_NOT_EXIST",)
        self._ask(
            "POST",
            f"{V3}/users/permissions/revoke",
            {"username": user, "resource_type": "experiment", "resource_id": experiment},
            known,
        )

    def _ask(self, method: str, path: str, said: dict[str, str], known: tuple[str, ...] = ()) -> Any:
        """What the server says; None where it says one of the `known` errors."""
        how = {"params": said} if method == "GET" else {"json": said}
        try:
            answer = self._http.request(method, path, **how)
        except self._broken as error:
            raise ServiceError(
                f"expected the MLflow server to answer at {self._http.base_url}, found {type(error).__name__}: "
                "`fedrounds coordinator start` runs it; then the same command again"
            ) from None
        if answer.status_code < 300:
            return answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else {}
        try:
            code = str(answer.json().get("error_code", ""))
        except ValueError:
            code = ""
        if code in known:
            return None
        raise ServiceError(
            f"expected MLflow to do {path.rpartition('/')[2]} for its administrator, found status {answer.status_code} {code[:40]}: "
            "check secrets.toml and log/mlflow.log"
        )
