"""`fedrounds …` as a process of its own that has nothing left to import: forked from one that has imported everything once.

Half of what a short run takes is importing Prefect, MLflow and Great Expectations, four times over: in itself, in its two helpers and in its
Prefect server. Here one process does that for all tests, and forks as the product does for its own helpers (`fedrounds.tasks.forked`): what
is asked for runs in a process with its own environment, folder, outputs and exit code. Helpers that a test starts by way of the product are forked
too: `quick` puts a stand-in (tests/stand_in.py) where the program would be, with its pid, signals and outputs. Whose subject is the program's start
starts the true program.

`python tests/warmed.py fork SOCKET_FD FOLDER` is that process. It leaves when its starter does, and whom it forked leave with who asked for them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ADDRESS = "FEDROUNDS_TESTS_WARMED"  # a variable: where the one of all workers listens
HIGH = 500  # descriptors from here on are in nobody's way
HELPERS = ("fedrounds.tasks.", "fedrounds.cli.ui", "prefect.engine", "distributed.cli.")
ENGINE, PROGRAM, CODE = "prefect.engine", "fedrounds.cli.main", "-c"
OWN = ("PYTHONPATH", "LD_PRELOAD")  # who sets one wants a program that starts with it
LATE = (  # what commands import when they come to it
    "distributed.cli.dask_worker",
    "fastapi.encoders",
    "great_expectations.expectations.core",
    "great_expectations.execution_engine.pandas_execution_engine",
    "matplotlib.backends.backend_agg",
    "mlflow.sklearn",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pyarrow.parquet",
    "rich.table",
    "scipy.optimize",
    "sklearn.linear_model",
    "sklearn.neural_network",
    "sklearn.pipeline",
    "uvicorn",
    "prefect.server.api.server",
    "prefect.server.services.task_run_recorder",
    "prefect.flow_engine",
    "prefect.workers.process",
)


class Warmed:
    """The process that forks, for all workers of a session. It imports when it is first asked, and costs nothing before."""

    def __init__(self) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="fedrounds-warmed-")
        self.address = str(Path(self.place.name, "socket"))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(64)
            words = [sys.executable, __file__, "fork", str(listening.fileno()), self.place.name]
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, pass_fds=(listening.fileno(),), start_new_session=True
            )

    def stop(self) -> None:
        """End it, and whom it forked."""
        self.process.stdin.close()
        self.process.wait(30)
        self.place.cleanup()


class Started:
    """`python -m MODULE WORDS` by the process at the address, as `subprocess.Popen` shows one. It is killed with whoever asked for it."""

    def __init__(
        self,
        address: str,
        module: str,
        words: Sequence[object],
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self.args = [module, *map(str, words)]
        self.returncode: int | None = None
        asked = {"module": module, "words": self.args[1:], "env": dict(env), "cwd": str(cwd or Path.cwd()), "keep": []}
        text = json.dumps(asked).encode()
        self._said = socket.socket(socket.AF_UNIX)
        self._said.connect(address)
        with open(os.devnull, "r+b") as nothing:
            fds = [nothing.fileno() if fd is None else fd for fd in (None, stdout, stderr)]
            socket.send_fds(self._said, [b"%10d" % len(text)], fds)
        self._said.sendall(text)
        self._lines = self._said.makefile("r")
        self.pid = int(self._line(None))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, minus the signal's number if that ended it.

        Raises:
            subprocess.TimeoutExpired: it lives still, after so many seconds.
        """
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
            self._lines.close()
            self._said.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it now. Nothing happens to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _line(self, timeout: float | None) -> str:
        if not select.select([self._said], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        line = self._lines.readline()
        assert line, f"the process that forks ended before it told what became of {self.args}"
        return line


def run(
    address: str,
    module: str,
    words: Sequence[object],
    env: Mapping[str, str],
    cwd: Path | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """The same to its end, without a terminal; killed if it takes too long."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Started(address, module, words, env, cwd, out.fileno(), err.fileno())
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
        return subprocess.CompletedProcess(process.args, code, *said)


# The process that forks.


def main() -> None:
    """Fork whoever is asked for until the standard input ends."""
    listening = socket.socket(fileno=int(sys.argv[2]))
    forked: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells of the end: its pid, and who asked
    asking: dict[int, int] = {}  # by the descriptor of who asked: the process
    ready = select.poll()
    for fd in (0, listening.fileno()):
        ready.register(fd, select.POLLIN)
    warm = False
    while True:
        for fd, _ in ready.poll():
            if fd == 0:
                for pid in asking.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif fd == listening.fileno():
                who, _ = listening.accept()
                warm = warm or _import()
                pid = _forked(who)
                if not pid:
                    who.close()
                    continue
                end = os.pidfd_open(pid)
                forked[end], asking[who.fileno()] = (pid, who), pid
                ready.register(end, select.POLLIN)
                ready.register(who, 0)  # that it hangs up is told all the same
            elif fd in forked:
                pid, who = forked.pop(fd)
                ready.unregister(fd)
                ready.unregister(who)
                os.close(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                asking.pop(who.fileno())
                with who, contextlib.suppress(OSError):  # it may be gone
                    who.sendall(b"%d\n" % code)
            elif fd in asking:
                ready.modify(fd, 0)
                os.kill(asking[fd], signal.SIGKILL)


def _forked(who: socket.socket) -> int:
    """The process that was asked for, 0 where who asked is gone before it has said what for: whoever asks may be killed at any moment."""
    from fedrounds.tasks.forked import _become

    fds: list[int] = []
    try:
        size, fds, _, _ = socket.recv_fds(who, 10, 200)
        text = b""
        while len(text) < int(size):
            got = who.recv(int(size) - len(text))
            if not got:
                raise ConnectionError
            text += got
        asked = json.loads(text)
    except (OSError, ValueError):
        for fd in fds:
            os.close(fd)
        return 0
    pid = os.fork()
    if pid == 0:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for fd in fds]
        for fd, number in zip(high[3:], asked["keep"], strict=True):
            os.dup2(fd, number)
        _become(asked["module"], asked["words"], high[:3], asked["env"], asked["keep"], Path(asked["cwd"]))
    for fd in fds:
        os.close(fd)
    with contextlib.suppress(OSError):  # it is gone: the poll will say so, and end what was forked
        who.sendall(b"%d\n" % pid)
    return pid


def _import() -> bool:
    """All that commands, helpers and servers import. Nothing of the user's reaches it; NumPy computes with one thread, as in the program."""
    import importlib
    import pkgutil

    from sqlalchemy.orm import configure_mappers

    from fedrounds.tasks.lean import skops_io
    from fedrounds.tasks.prefect_server import settings
    from fedrounds.tasks.quick_settings import without_repeats
    from fedrounds.tasks.routes import as_asked
    from fedrounds.tasks.staying import staying

    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
        del os.environ[name]
    os.environ.update(
        {**settings(Path(sys.argv[3], "prefect"), None), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    )
    with staying():
        without_repeats()
        as_asked()
        for package in (
            "cli",
            "coordinator",
            "core",
            "exchange",
            "flows",
            "ledger",
            "reports",
            "site",
            "sources",
            "tasks",
        ):
            for module in pkgutil.iter_modules(importlib.import_module(f"fedrounds.{package}").__path__):
                if module.name != "predictor":  # a version's own file, which MLflow runs
                    importlib.import_module(f"fedrounds.{package}.{module.name}")
        skops_io()
        for name in LATE:
            importlib.import_module(name)
    configure_mappers()  # else each Prefect server and each writer of MLflow's does it
    quick(str(Path(sys.argv[3], "socket")), helpers=True)
    return True


# Helpers in a process's stead.


def quick(address: str, helpers: bool = False, programs: bool = False, codes: bool = False) -> None:
    """Whether helpers that this process starts from now on, `fedrounds …` itself and `python -c …` are forked by the process at the address."""
    if not hasattr(subprocess.Popen, "forks"):
        start = subprocess.Popen.__init__

        def started(self: Any, args: Any, *more: Any, **options: Any) -> None:
            start(self, _in_its_stead(args, options.get("env")), *more, **options)

        subprocess.Popen.__init__ = started  # type: ignore[method-assign]
    subprocess.Popen.forks = (address, helpers, programs, codes)  # type: ignore[attr-defined]


@contextlib.contextmanager
def forking(address: str, helpers: bool = False) -> Iterator[None]:
    """Whether helpers that this process starts inside are forked, and nothing else; afterwards all is as it was."""
    before = getattr(subprocess.Popen, "forks", ("",))
    quick(address, helpers)
    try:
        yield
    finally:
        quick(*before)


def true_programs() -> contextlib.AbstractContextManager[None]:
    """All that this process starts inside is what a user starts."""
    return forking("")


def _in_its_stead(args: Any, env: Mapping[str, str] | None) -> Any:
    address, helpers, programs, codes = subprocess.Popen.forks  # type: ignore[attr-defined]
    env = os.environ if env is None else env
    if not isinstance(args, (list, tuple)) or any(name in env for name in OWN):
        return args
    words = [str(word) for word in args]
    if words[0] == str(Path(sys.executable).with_name("fedrounds")):
        words[:1] = [sys.executable, "-m", PROGRAM]
    if words[:2] == [sys.executable, "-c"] and codes:
        forked = [CODE, *words[2:]]
    elif words[:2] == [sys.executable, "-m"] and (
        (words[2].startswith(HELPERS) and helpers) or (words[2] == PROGRAM and programs)
    ):
        forked = words[2:]
    else:
        return args
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in.py")), address, *forked]


def itself(pid: int) -> int:
    """The process that a stand-in stands for; any other's own id."""
    name = Path(f"/proc/{pid}/comm").read_text()
    return int(name.removeprefix("for ")) if name.startswith("for ") else pid


def helper() -> None:
    """What was forked: the module with its words, as `python -m` runs it."""
    import ctypes
    import runpy

    from prefect.context import refresh_global_settings_context

    _, _, name, *words = sys.argv
    if name != PROGRAM:
        refresh_global_settings_context()
    if name == ENGINE:
        engine()
    ctypes.CDLL(None).prctl(15, name.rpartition(".")[2].encode(), 0, 0, 0)
    sys.argv = [name, *words]
    sys.modules.pop(name, None)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


# Code, in place of `python -c`.


def code() -> None:
    """What was forked: the code, with the words after it."""
    _, _, text, *words = sys.argv
    sys.argv = [CODE, *words]
    sys.path.insert(0, "")
    try:
        exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code or 0)
    sys.stdout.flush()


# A tick, in place of `python -m prefect.engine`.


def engine() -> NoReturn:
    """What was forked: Prefect's engine, and what a program does at its end."""
    import atexit
    import runpy
    import threading

    del sys.argv[1:], sys.modules[ENGINE]
    code: Any = 0
    try:
        runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    threading._shutdown()
    atexit._run_exitfuncs()
    os._exit(code or 0)


if __name__ == "__main__":
    {"fork": main, "code": code, "helper": helper}[sys.argv[1]]()
