"""A PostgreSQL server of Debian's in a folder of its own, for the demonstration, the chaos and the tests: it can be killed and come back."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path


class Postgres:
    """The server of one folder, on loopback and on a socket file there; as root it runs as Debian's user `postgres`.

    Args:
        home: a folder, to be made, that the database's user may enter.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.log, self.port = home, home / "postgres.log", free_port()
        self._who: dict[str, object] = {}
        home.mkdir(mode=0o755)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(home, owner.pw_uid, owner.pw_gid)
            self._who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._run(
            "initdb", "-D", home / "data", "-A", "trust", "-U", "fedrounds", "--no-sync", "-E", "UTF8", "--no-locale"
        )
        self.start()

    def start(self) -> None:
        """Serve; returns when it answers."""
        words = [_tool("postgres"), "-D", self.home / "data", "-k", self.home, "-p", self.port]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        with self.log.open("ab") as said:
            before = said.tell()
            self._server = subprocess.Popen(list(map(str, words)), cwd="/", stdout=said, stderr=said, **self._who)  # type: ignore[call-overload]
        until = time.monotonic() + 60
        while "ready to accept connections" not in self.log.read_text()[before:]:
            if self._server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"expected PostgreSQL to answer, found: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def url(self, database: str = "postgres") -> str:
        """Its address; anybody on this machine is let in."""
        return f"postgresql+psycopg2://fedrounds@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> None:
        """Make a database."""
        self._run("createdb", "-h", self.home, "-p", self.port, "-U", "fedrounds", database)

    def dump(self) -> bytes:
        """Everything that it holds, as text."""
        words = [_tool("pg_dumpall"), "-h", self.home, "-p", self.port, "-U", "fedrounds"]
        return subprocess.run(list(map(str, words)), check=True, cwd="/", capture_output=True, timeout=120).stdout

    def kill(self) -> None:
        """As if the power had failed: its processes too, which else would finish what they are at."""
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
        for pid in [self._server.pid, *map(int, children)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._server.wait(30)

    def stop(self) -> None:
        """End it."""
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGQUIT)  # its immediate shutdown
            self._server.wait(30)

    def _run(self, name: str, *words: object) -> None:
        subprocess.run(
            [str(_tool(name)), *map(str, words)],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
            timeout=120,
            **self._who,
        )  # type: ignore[call-overload]


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
