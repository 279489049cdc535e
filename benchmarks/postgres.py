"""A PostgreSQL server of Debian's in a folder of its own, for the demonstration, the chaos and the tests: it can be killed and come back."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path


class Postgres:
    """The server of one folder; as root it runs as Debian's user `postgres`.

    Args:
        home: a folder, to be made, in one that the database's user may enter.
        network: whether it listens on loopback, and keeps what it has even if the power fails; else on a socket file in `home` alone.
    """

    def __init__(self, home: Path, network: bool = True) -> None:
        self.home, self.log, self.network = home, home / "postgres.log", network
        self.port = free_port() if network else 5432
        self._who: dict[str, object] = {}
        home.mkdir(mode=0o755)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(home, owner.pw_uid, owner.pw_gid)
            self._who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        options = ("-A", "trust", "-U", "fedrounds", "--no-sync", "-E", "UTF8", "--no-locale")
        self._run("initdb", "-D", home / "data", *options)
        self.start()

    def start(self) -> None:
        """Serve; returns when it answers."""
        words = [
            _tool("postgres"),
            "-D",
            self.home / "data",
            "-k",
            self.home,
            "-p",
            self.port,
            "-c",
            "max_connections=200",
        ]
        words += ["-c", f"listen_addresses={'127.0.0.1' if self.network else ''}", *([] if self.network else ["-F"])]
        with self.log.open("ab") as said:
            before = said.tell()
            command = list(map(str, words))
            self._server = subprocess.Popen(  # type: ignore[call-overload]
                command, cwd="/", stdout=said, stderr=said, start_new_session=True, **self._who
            )
        until = time.monotonic() + 60
        while "ready to accept connections" not in self.log.read_text()[before:]:
            if self._server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"expected PostgreSQL to answer, found: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def address(self, database: str = "postgres") -> str:
        """A database's for SQLAlchemy; anybody on this machine is let in."""
        if self.network:
            return f"postgresql+psycopg2://fedrounds@127.0.0.1:{self.port}/{database}"
        return f"postgresql+psycopg2://fedrounds@/{database}?host={self.home}"

    def database(self, name: str) -> str:
        """Make a database; gives its address."""
        self._run("createdb", "-h", self.home, "-p", self.port, "-U", "fedrounds", name)
        return self.address(name)

    def dump(self) -> bytes:
        """Everything that it holds, as text."""
        words = [_tool("pg_dumpall"), "-h", self.home, "-p", self.port, "-U", "fedrounds"]
        return subprocess.run(list(map(str, words)), check=True, cwd="/", capture_output=True, timeout=120).stdout

    def kill(self) -> None:
        """As if the power had failed: the server and its children, each in a group of its own, which else would finish what they are at."""
        if self._server.poll() is not None:
            return
        os.kill(self._server.pid, signal.SIGSTOP)  # so that it has no more children than are listed
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        for pid in [self._server.pid, *map(int, children)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait(30)
        until = time.monotonic() + 30  # the next server asks for the memory that they hold
        while any(map(_lives, children)) and time.monotonic() < until:
            time.sleep(0.005)

    def stop(self) -> None:
        """End it."""
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)  # its immediate shutdown
            self._server.wait(30)

    def _run(self, name: str, *words: object) -> None:
        command = [str(_tool(name)), *map(str, words)]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=120, **self._who)  # type: ignore[call-overload]


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _tool(name: str) -> Path:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))
    if not found:
        raise SystemExit(f"expected {name} of PostgreSQL on this machine, found none: apt-get install postgresql")
    return Path(found)
