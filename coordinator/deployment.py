"""What follows from coordinator.toml: nginx's configuration, MLflow's, and files for systemd and containers."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import sys
from pathlib import Path

from fedrounds.coordinator import config as configs
from fedrounds.coordinator import files
from fedrounds.coordinator.config import Config, Secrets
from fedrounds.core.errors import StudyError

TEMPLATE = Path(__file__).parent / "template"
SERVERS = ("mlflow", "prefect", "nginx", "admit")
OWN = ("study", "keys", "sites", "mlflow", "prefect", "nginx", "log", "deploy")


def write(home: Path, config: Config, secrets: Secrets, at: Path | None = None) -> None:
    """Write them, as of a folder `home`, into `at` (default: there)."""
    where = str(home.absolute())
    if any(
        letter in where for letter in " \t\n\"'\\{};$@%"
    ):  # nginx, systemd and compose each have words of their own for these
        raise StudyError(
            f"expected a folder whose path has letters, digits, and ./_-+ alone, found {where!r}: choose another"
        )
    into = at or home
    words = {
        "HOME": where,
        "USER": f"user {_unprivileged()};" if os.geteuid() == 0 else "",
        "OWNER": getpass.getuser(),
        "PROGRAM": str(Path(sys.executable).with_name("fedrounds")),
        "PUBLIC": str(config.ports.public),
        "STAFF": str(config.ports.staff),
        "STAFF_LISTEN": config.staff_listen,
        "MLFLOW": str(config.ports.mlflow),
        "DATABASE": configs.database(home, config.mlflow_auth, secrets.database_password).replace("%", "%%"),
    }
    files.write(into / "nginx" / "nginx.conf", _filled("nginx.conf", words))
    files.write(into / "mlflow" / "basic_auth.ini", _filled("basic_auth.ini", words), files.SECRET)
    for name in ("compose.yaml", *(f"fedrounds-{server}.service" for server in SERVERS)):
        files.write(into / "deploy" / name, _filled(name, words))


def _unprivileged() -> str:
    """Whom nginx's workers run as where its master is root's: the system's user for that, as Debian and others call it."""
    for name in ("www-data", "nginx"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return "root"


def _filled(name: str, words: dict[str, str]) -> str:
    text = (TEMPLATE / name).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
