"""`fedrounds coordinator start`: the servers of a coordinator's folder in the foreground, without containers.

    mlflow    127.0.0.1, basic-auth        prefect    127.0.0.1, a password        nginx    TLS, what the world reaches
    admit     not a server: takes in the hospitals that enrolled, every two seconds

One that ends is started again, after waits that grow to half a minute, and one line says so. All end when this process does, even by
kill -9: MLflow's and Prefect's servers by the end of their standard input, nginx by the system's signal at its parent's death.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from fedrounds.coordinator import certificates, deployment
from fedrounds.coordinator import config as configs
from fedrounds.coordinator.config import Config, Secrets
from fedrounds.core.errors import FedroundsError, ServiceError, StateError
from fedrounds.tasks import inviting
from fedrounds.tasks.mlflow_server import MlflowServer
from fedrounds.tasks.prefect_server import PrefectServer
from fedrounds.tasks.serve import OURS

HOST = "127.0.0.1"
FIRST_S, LONGEST_S, STEADY_S = 0.5, 30.0, 60.0  # waits before a restart; after so long alive they begin anew
READY_S, BIND_S, ADMIT_S, RENEW_S = 180.0, 15.0, 2.0, 3600.0
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


class Server(Protocol):
    """One server that runs."""

    pid: int

    def poll(self) -> int | None: ...
    def answers(self) -> bool: ...
    def stop(self) -> None: ...


class Nginx:
    """nginx in the foreground, with a configuration of ours; it writes to DIR/log and DIR/nginx alone."""

    def __init__(self, home: Path, port: int) -> None:
        program = shutil.which(
            "nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        )
        if program is None:
            raise ServiceError("expected nginx on this machine, found none: apt-get install nginx-light")
        words = [
            program,
            "-p",
            str(home),
            "-c",
            str(home / "nginx" / "nginx.conf"),
            "-e",
            str(home / "log" / "nginx-error.log"),
        ]
        tried = subprocess.run([*words, "-t", "-q"], capture_output=True, text=True, timeout=60, check=False)
        if tried.returncode:
            said = (tried.stderr.strip().splitlines() or ["nothing said"])[0]
            raise ServiceError(f"expected nginx to take its configuration, found: {said[:300]}: mend coordinator.toml")
        with (home / "log" / "nginx.log").open("ab") as sink:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self.pid, self._port = self._process.pid, port

    def poll(self) -> int | None:
        """Its exit code, None while it lives. Workers of a killed master would keep the port: they end with it."""
        code = self._process.poll()
        if code is not None:
            self._end_group()
        return code

    def answers(self) -> bool:
        """Whether it does, and MLflow behind it."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whose certificate it is, hospitals check
        connection = http.client.HTTPSConnection(HOST, self._port, timeout=5, context=context)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def reload(self) -> None:
        """Have it read its configuration and certificates again; connections go on."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it and its workers. A second call does nothing."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._end_group()
        self._process.wait()

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Prefect(PrefectServer):
    """Prefect's server, asked without waiting."""

    def answers(self) -> bool:
        """Whether it does, within two seconds."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._ask("GET", "/api/health", None, 2) is not None
        return False


class Services:
    """A coordinator's servers. `start`, then `tend` again and again, then `stop`.

    Args:
        only: some of `deployment.SERVERS`; none named: all.
        say: hears a line where something ended, came back, or joined.
    """

    def __init__(self, home: Path, only: Sequence[str], say: Callable[[str], None]) -> None:
        self.home, self.config, self.secrets = home.absolute(), configs.read(home), configs.read_secrets(home)
        self.names = [name for name in deployment.SERVERS if not only or name in only]
        self._say, self._running, self._due, self._failed = (
            say,
            dict[str, Server](),
            dict[str, float](),
            dict[str, int](),
        )
        self._since, self._next = dict[str, float](), {"admit": 0.0, "renew": time.monotonic() + RENEW_S}
        self._told: set[str] = set()
        self._locks: list[IO[str]] = []
        self._listening: socket.socket | None = None

    def start(self) -> None:
        """Start all, and return when they answer.

        Raises:
            StateError: another process runs one of them.
            ServiceError: one does not come up; what had started has ended.
        """
        try:
            for name in ("mlflow", "prefect", "nginx", "log"):
                (self.home / name).mkdir(exist_ok=True)
            self._locks = [_alone(self.home / "log" / f".{name}.lock", name) for name in self.names]
            deployment.write(self.home, self.config, self.secrets)
            certificates.renew(self.home / "keys", self.config.host)
            if "mlflow" in self.names:
                self._listening = _listen(self.config.ports.mlflow)
            for name in self.names:
                if name != "admit":
                    self._begin(name)
            self._until_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def addresses(self) -> dict[str, str]:
        """Where what can be reached; people's pages, the hospitals' door, and the two behind."""
        ports, listen = self.config.ports, self.config.staff_listen
        return {
            "public": self.config.public,
            "staff": f"https://{HOST if listen in ('0.0.0.0', '[::]') else listen}:{ports.staff}",  # noqa: S104
            "mlflow": f"http://{HOST}:{ports.mlflow}",
            "prefect": f"http://{HOST}:{ports.prefect}/api",
        }

    def pids(self) -> dict[str, int]:
        """Of the servers that run."""
        return {name: server.pid for name, server in self._running.items()}

    def tend(self) -> None:
        """One look: start again what ended and whose wait is over, take in who enrolled, renew certificates."""
        now = time.monotonic()
        for name in [name for name in self._running if self._running[name].poll() is not None]:
            self._ended(name, f"ended with exit code {self._running.pop(name).poll()}", now)
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            try:
                self._begin(name)
            except (FedroundsError, OSError) as error:
                self._ended(name, f"did not start ({error})", now)
        if "admit" in self.names and now >= self._next["admit"]:
            self._next["admit"] = now + ADMIT_S
            self._admit()
        if "nginx" in self.names and now >= self._next["renew"]:
            self._next["renew"] = now + RENEW_S
            self._renew()

    def stop(self) -> None:
        """End all by their own ids: the door first, so that nobody comes in while the rest ends."""
        for name in ("nginx", "mlflow", "prefect"):
            if name in self._running:
                self._running.pop(name).stop()
        self._due.clear()
        if self._listening is not None:
            self._listening.close()
        while self._locks:
            self._locks.pop().close()

    def _begin(self, name: str) -> None:
        log, ports = self.home / "log", self.config.ports
        if name == "mlflow":
            assert self._listening is not None
            url = configs.database(self.home, self.config.tracking, self.secrets.database_password)
            mail = self.config.mail if "://" in self.config.mail else str(self.home / self.config.mail)
            server: Server = MlflowServer(
                self._listening,
                url,
                mail,
                self.home / "mlflow",
                log / "mlflow.log",
                _mlflow(self.home, self.config, self.secrets),
            )
        elif name == "prefect":
            server = Prefect(
                self.home / "prefect",
                log / "prefect.log",
                ports.prefect,
                services=True,
                environment=prefect_settings(self.home, self.config, self.secrets),
            )
        else:
            server = Nginx(self.home, ports.public)
        self._running[name], self._since[name] = server, time.monotonic()

    def _until_ready(self) -> None:
        until = time.monotonic() + READY_S
        waiting = {name for name in self._running if name != "nginx" or "mlflow" in self._running}
        while waiting:
            for name in sorted(waiting):
                if (code := self._running[name].poll()) is not None:
                    raise ServiceError(
                        f"expected {name} to start, found exit code {code}: {_last_line(self.home / 'log', name)}"
                    )
                if self._running[name].answers():
                    waiting.discard(name)
            if time.monotonic() > until:
                raise ServiceError(
                    f"expected {', '.join(sorted(waiting))} to answer within {READY_S:.0f} s, found no answer: see {self.home}/log"
                )
            time.sleep(0.1)

    def _ended(self, name: str, how: str, now: float) -> None:
        lived = now - self._since.get(name, now)
        times = 0 if lived > STEADY_S else self._failed.get(name, 0)
        wait = min(LONGEST_S, FIRST_S * 2**times)
        self._failed[name], self._due[name] = times + 1, now + wait
        self._say(f"{name} {how}: starting it again in {wait:g} s")

    def _admit(self) -> None:
        try:
            for it in inviting.admit(self.home):
                self._say(
                    f"{it.site} has joined, key {it.said}" if it.admitted else f"{it.site} was not let in: {it.said}"
                )
            self._told.discard("admit")
        except FedroundsError as error:
            if "admit" not in self._told:  # once, until it passes
                self._told.add("admit")
                self._say(f"enrolments wait: {error}")

    def _renew(self) -> None:
        try:
            if certificates.renew(self.home / "keys", self.config.host):
                self._say(
                    f"the server's certificate was renewed until {certificates.ends(self.home / 'keys'):%Y-%m-%d}"
                )
            nginx = self._running.get("nginx")
            if isinstance(nginx, Nginx):
                nginx.reload()  # the operator's own may be new too
        except FedroundsError as error:
            self._say(str(error))


def prefect_settings(home: Path, config: Config, secrets: Secrets) -> dict[str, str]:
    """The environment of the coordinator's Prefect server, beyond what every server of ours has."""
    auth = secrets.prefect_auth
    found = {**OURS, "PREFECT_SERVER_API_AUTH_STRING": auth, "PREFECT_API_AUTH_STRING": auth}
    if config.prefect_database:
        found["PREFECT_API_DATABASE_CONNECTION_URL"] = configs.database(
            home, config.prefect_database, secrets.database_password
        )
    return found


def _mlflow(home: Path, config: Config, secrets: Secrets) -> dict[str, str]:
    staff = config.ports.staff
    names = sorted({config.host, "127.0.0.1", "localhost", config.staff_listen} - {"0.0.0.0"})  # noqa: S104
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "mlflow" / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.flask_secret,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(
            [f"{HOST}:{config.ports.mlflow}", *(f"{name}:{staff}" for name in names)]
        ),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"https://{name}:{staff}" for name in names),
    }


def _listen(port: int) -> socket.socket:
    """A bound socket on loopback; a predecessor that is just ending gets some seconds."""
    until = time.monotonic() + BIND_S
    while True:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            if time.monotonic() > until:
                raise ServiceError(
                    f"expected port {port} of {HOST} to be free for MLflow, found: {error.strerror}: end what has it, or change [ports]"
                ) from None
            time.sleep(0.2)


def _alone(file: Path, name: str) -> IO[str]:
    """An open file that is locked as long as this process lives."""
    lock = file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StateError(
            f"expected to be the one who runs {name} of {file.parent.parent}, found another process that does: end it first"
        ) from None
    return lock


def _last_line(log: Path, name: str) -> str:
    """The end of a server's log: what it said when it gave up."""
    files = [log / "nginx-error.log", log / "nginx.log"] if name == "nginx" else [log / f"{name}.log"]
    lines = [
        line
        for file in files
        if file.exists()
        for line in file.read_text(errors="replace").splitlines()
        if line.strip()
    ]
    telling = [line for line in lines if " failed (" in line and name == "nginx"] or lines  # its last word is no reason
    return f"see {files[0]}, it ends: {telling[-1].strip()[:200]}" if lines else f"see {files[0]}"


def _end_with_parent() -> None:
    """In a new child: SIGTERM when its parent is gone, even by kill -9."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
