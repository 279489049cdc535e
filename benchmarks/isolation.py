"""What one hospital's credentials open at a running coordinator: everything that they should not is tried, over real HTTP, and printed.

    python benchmarks/isolation.py DIR SITE_FOLDER SITE_FOLDER     (DIR with its servers running; two hospitals that have joined)

Through nginx, as a hospital reaches it, and straight to the ports behind it, which no hospital reaches. The administrator does each thing
that is to be refused first where that changes nothing, so that no refusal is about something that is not there.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fedrounds.coordinator import config as configs
from fedrounds.coordinator import roster
from fedrounds.tasks.folder import read_protocol, read_site

A2, A3 = "/api/2.0/mlflow", "/api/3.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
OBJECT = "000001/001/reply-0/" + "0" * 64
REFUSED = {400, 401, 403, 404, 405, 429}


class Door:
    """An address, and who comes: paths travel as they are written, nothing tidies them on the way."""

    def __init__(self, url: str, user: str = "", password: str = "", ca: str | None = None) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        self._address = parts.hostname or "", parts.port or 443
        self._who = {"Authorization": "Basic " + b64encode(f"{user}:{password}".encode()).decode()} if user else {}

    def ask(self, method: str, path: str, said: Any = None, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body; 0 where the connection is closed to it."""
        host, port = self._address
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(host, port, timeout=30, **({"context": self._tls} if self._tls else {}))
        data = json.dumps(said).encode() if said is not None else body
        headers = self._who | ({"Content-Type": "application/json"} if said is not None else {})
        with closing(connection):
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read(1 << 20)
            except (OSError, http.client.HTTPException):
                return 0, b""


Probe = tuple[
    str, Callable[[Door], tuple[int, bytes]], bytes
]  # what is tried, how, and what a leak would show (b"": the status tells)


def probes(user: str, own: str, other: str, victim: str, study: str, run: str) -> list[Probe]:
    """Everything that a hospital should not do: its user and experiment, another's experiment and user, the study's experiment and run."""
    metric = {"run_id": run, "key": "loss", "value": 0.0, "timestamp": 1}
    stolen, mended = {"username": victim, "password": "e" * 20}, {"username": "admin", "password": "e" * 20}
    grant = {"username": user, "resource_type": "experiment", "resource_id": other, "permission": "EDIT"}
    return [
        ("list another's mailbox", lambda it: it.ask("GET", f"{ARTIFACTS}?path={other}/mail"), b""),
        ("list another's folder", lambda it: it.ask("GET", f"{ARTIFACTS}?path={other}/mail/000001/001/reply-0"), b""),
        ("list all mailboxes", lambda it: it.ask("GET", ARTIFACTS), b'"files"'),
        ("list by its own and ..", lambda it: it.ask("GET", f"{ARTIFACTS}?path={own}/mail/../../{other}/mail"), b""),
        ("list by %252e%252e", lambda it: it.ask("GET", f"{ARTIFACTS}?path={own}/%252e%252e/{other}/mail"), b'"files": ['),
        ("read another's message", lambda it: it.ask("GET", f"{ARTIFACTS}/{other}/mail/{OBJECT}"), b""),
        ("read by its own and ..", lambda it: it.ask("GET", f"{ARTIFACTS}/{own}/mail/../../{other}/mail/{OBJECT}"), b""),
        ("read by %2e%2e", lambda it: it.ask("GET", f"{ARTIFACTS}/{own}/mail/%2e%2e/%2e%2e/{other}/mail/{OBJECT}"), b""),
        ("read by ..%2f", lambda it: it.ask("GET", f"{ARTIFACTS}/{own}/mail/..%2f..%2f{other}/mail/{OBJECT}"), b""),
        ("read a file of the machine", lambda it: it.ask("GET", f"{ARTIFACTS}/{own}/mail/{quote('/etc/passwd', safe='')}"), b""),
        ("write into another's mailbox", lambda it: it.ask("PUT", f"{ARTIFACTS}/{other}/mail/{OBJECT}", body=b"forged"), b""),
        ("write by ..%2f", lambda it: it.ask("PUT", f"{ARTIFACTS}/{own}/mail/..%2f..%2f{other}/mail/{OBJECT}", body=b"x"), b""),
        ("delete in another's mailbox", lambda it: it.ask("DELETE", f"{ARTIFACTS}/{other}/mail/{OBJECT}"), b""),
        ("delete in its own mailbox", lambda it: it.ask("DELETE", f"{ARTIFACTS}/{own}/mail/{OBJECT}"), b""),
        ("read a run of the study", lambda it: it.ask("GET", f"{A2}/runs/get?run_id={run}"), b""),
        ("search runs of the study", lambda it: it.ask("POST", f"{A2}/runs/search", {"experiment_ids": [study]}), run.encode()),
        ("see the study's experiment", lambda it: it.ask("GET", f"{A2}/experiments/get?experiment_id={study}"), b""),
        ("list a run's artifacts", lambda it: it.ask("GET", f"{A2}/artifacts/list?run_id={run}"), b""),
        ("download a run's artifact", lambda it: it.ask("GET", f"{ARTIFACTS}/{study}/{run}/artifacts/report.html"), b""),
        ("log a metric there", lambda it: it.ask("POST", f"{A2}/runs/log-metric", metric), b""),
        ("start a run there", lambda it: it.ask("POST", f"{A2}/runs/create", {"experiment_id": study}), b""),
        ("list users", lambda it: it.ask("GET", f"{A2}/users/list"), victim.encode()),
        ("create a user", lambda it: it.ask("POST", f"{A2}/users/create", {"username": "eve", "password": "eve-eve-eve-eve"}), b""),
        ("become administrator", lambda it: it.ask("PATCH", f"{A2}/users/update-admin", {"username": victim, "is_admin": True}), b""),
        ("change another's password", lambda it: it.ask("PATCH", f"{A2}/users/update-password", stolen), b""),
        ("change the administrator's", lambda it: it.ask("PATCH", f"{A2}/users/update-password", mended), b""),
        ("give itself another's mailbox", lambda it: it.ask("POST", f"{A3}/users/permissions/grant", grant), b""),
    ]  # fmt: skip


def makings() -> list[tuple[str, str, dict[str, str]]]:
    """What MLflow lets any user do, and our server of it administrators alone."""
    return [
        ("create an experiment", f"{A2}/experiments/create", {"name": "isolation · experiment"}),
        ("create a registered model", f"{A2}/registered-models/create", {"name": "isolation-model"}),
    ]


def isolation(home: Path, sites: Sequence[Path]) -> list[dict[str, Any]]:
    """Try everything with the first hospital's credentials; a row each: tried, status, refused, and whether it must be.

    Args:
        home: the coordinator's folder, its servers running.
        sites: folders of hospitals that have joined, two at least. The study should have a run.
    """
    config, secrets = configs.read(home), configs.read_secrets(home)
    known = roster.read(home)
    (folder, mine), (_, theirs) = [(path, known[read_site(path / "site.toml").name]) for path in sites[:2]]
    ca = str(folder / "ca.pem") if (folder / "ca.pem").exists() else None
    password = (folder / "password").read_text().strip()
    straight = f"http://127.0.0.1:{config.ports.mlflow}"
    admin = Door(straight, "admin", secrets.admin_password)
    site, behind = Door(config.public, mine.user, password, ca), Door(straight, mine.user, password)
    study, run = _target(admin, read_protocol(home / config.study).study.name)
    _there(admin, theirs.experiment, study, run)
    rows = [_row("list its own mailbox", *site.ask("GET", f"{ARTIFACTS}?path={mine.experiment}/mail"), must=False)]
    tried = probes(mine.user, mine.experiment, theirs.experiment, theirs.user, study, run)
    rows += [_row(what, *ask(site), shows) for what, ask, shows in tried]
    rows += [_row(what, *site.ask("POST", path, said)) for what, path, said in makings()]
    rows += _elsewhere(config, site, mine.user, password, mine.experiment, ca)
    rows += [_row(f"{what}, at MLflow's port", *ask(behind), shows) for what, ask, shows in tried]
    rows += [_row(f"{what}, at MLflow's port", *behind.ask("POST", path, said)) for what, path, said in makings()]
    rows += [
        _listens(what, port) for what, port in (("MLflow", config.ports.mlflow), ("Prefect", config.ports.prefect))
    ]
    _tidy(admin, theirs.experiment)
    return rows


def _elsewhere(
    config: configs.Config, site: Door, user: str, password: str, own: str, ca: str | None
) -> list[dict[str, Any]]:
    """Other doors, and others at this door."""
    host = config.host
    staff = Door(f"https://{config.staff_listen}:{config.ports.staff}", user, password, ca)
    api, guess = f"http://127.0.0.1:{config.ports.prefect}", {"limit": 1}
    prefect, known = Door(api), Door(api, user, password)
    nobody, wrong = Door(config.public, ca=ca), Door(config.public, user, password[::-1], ca)
    return [
        _row("open MLflow's pages", *site.ask("GET", "/")),
        _row("ask by the pages' own paths", *site.ask("GET", f"/ajax-api/2.0/mlflow/experiments/get?experiment_id={own}")),
        _row("ask by GraphQL", *site.ask("POST", "/graphql", {"query": "{__typename}"})),
        _row("open the staff's port", *staff.ask("GET", "/")),
        _row("create an experiment at the staff's port", *staff.ask("POST", makings()[0][1], makings()[0][2])),
        _row("reach Prefect through nginx", *site.ask("POST", "/api/flow_runs/filter", guess)),
        _row("reach Prefect at its port", *prefect.ask("POST", "/api/flow_runs/filter", guess)),
        _row("the same with MLflow's password", *known.ask("POST", "/api/flow_runs/filter", guess)),
        _row("list a mailbox as nobody", *nobody.ask("GET", f"{ARTIFACTS}?path={own}/mail")),
        _row("list a mailbox by a wrong password", *wrong.ask("GET", f"{ARTIFACTS}?path={own}/mail")),
        _row("speak without TLS", *Door(f"http://{host}:{config.ports.public}", user, password).ask("GET", f"{ARTIFACTS}?path={own}/mail")),
    ]  # fmt: skip


def _listens(what: str, port: int) -> dict[str, Any]:
    """Whether a server listens on 127.0.0.1 and nowhere else, as the system tells."""
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()[1:]]
    heard = {
        words[1].rpartition(":")[0]
        for words in lines
        if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port
    }
    closed = heard == {"0100007F"}
    said = "closed" if closed else "open"
    return {
        "tried": f"reach {what}'s port from another machine",
        "status": said,
        "refused": closed,
        "must_refuse": True,
    }


def _row(tried: str, status: int, body: bytes, shows: bytes = b"", must: bool = True) -> dict[str, Any]:
    refused = status in REFUSED or status == 0 or (status == 200 and bool(shows) and shows not in body)
    said = f"{status} empty" if refused and status == 200 else status
    return {"tried": tried, "status": said, "refused": refused, "must_refuse": must}


def _target(admin: Door, study: str) -> tuple[str, str]:
    """The study's experiment and one of its runs."""
    status, body = admin.ask("GET", f"{A2}/experiments/get-by-name?experiment_name={quote(study)}")
    if status != 200:
        raise SystemExit(
            f"expected an experiment '{study}' on the coordinator's MLflow, found none: run the study first"
        )
    experiment = json.loads(body)["experiment"]["experiment_id"]
    status, body = admin.ask("POST", f"{A2}/runs/search", {"experiment_ids": [experiment], "max_results": 1})
    runs = json.loads(body).get("runs", []) if status == 200 else []
    if not runs:
        raise SystemExit(f"expected a run in experiment '{study}', found none: run the study first")
    return experiment, runs[0]["info"]["run_id"]


def _there(admin: Door, other: str, study: str, run: str) -> None:
    """That what is going to be refused is there: the administrator can."""
    asked = [
        ("PUT", f"{ARTIFACTS}/{other}/mail/{OBJECT}", b"for another"),
        ("GET", f"{ARTIFACTS}/{other}/mail/{OBJECT}", None),
        ("GET", f"{ARTIFACTS}?path={other}/mail", None),
        ("PUT", f"{ARTIFACTS}/{study}/{run}/artifacts/isolation.txt", b"of the study"),
        ("GET", f"{ARTIFACTS}/{study}/{run}/artifacts/isolation.txt", None),
        ("GET", f"{A2}/runs/get?run_id={run}", None),
        ("GET", f"{A2}/users/list", None),
    ]
    for method, path, body in asked:
        status, _ = admin.ask(method, path, body=body)
        if status != 200:
            raise SystemExit(f"expected the administrator to be let in to {method} {path}, found status {status}")
    admin.ask("DELETE", f"{ARTIFACTS}/{study}/{run}/artifacts/isolation.txt")


def _tidy(admin: Door, other: str) -> None:
    """Take away what was allowed to be made, and the planted message, which must be as it was."""
    status, body = admin.ask("GET", f"{ARTIFACTS}/{other}/mail/{OBJECT}")
    if (status, body) != (200, b"for another"):
        raise SystemExit("expected another's message as it was, found it changed")
    admin.ask("DELETE", f"{ARTIFACTS}/{other}/mail/{OBJECT}")
    status, body = admin.ask("GET", f"{A2}/experiments/get-by-name?experiment_name={quote(makings()[0][2]['name'])}")
    if status == 200:
        experiment = json.loads(body)["experiment"]["experiment_id"]
        admin.ask(
            "POST",
            f"{A2}/experiments/update",
            {"experiment_id": experiment, "new_name": f"isolation · tried {experiment}"},
        )
        admin.ask("POST", f"{A2}/experiments/delete", {"experiment_id": experiment})
    admin.ask("DELETE", f"{A2}/registered-models/delete", {"name": makings()[1][2]["name"]})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    wide = max(len(row["tried"]) for row in rows)
    says = {(True, True): "refused", (True, False): "refused", (False, True): "ALLOWED", (False, False): "allowed *"}
    lines = [
        f"  {row['tried']:<{wide}}  {row['status']!s:>9}  {says[row['refused'], row['must_refuse']]}" for row in rows
    ]
    note = "  * its own mailbox"
    return "\n".join([*lines, note])


def main() -> None:
    """Print the table; exit code 1 if something was allowed that must not be."""
    rows = isolation(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
    print(table(rows))
    sys.exit(any(row["must_refuse"] and not row["refused"] for row in rows))


if __name__ == "__main__":
    main()
