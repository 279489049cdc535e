"""Helper processes forked from this one: what it has imported by then, they need not import again.

NumPy, pydantic, SQLAlchemy and the study's own code are half a second of each helper's start, and Prefect's client is half of what its server
imports. A fork is only as good as what it copies, so:
    * nothing is forked beside another thread, a lock of which it would hold for ever (`alone`); without a fork, helpers are started as programs;
    * callers fork before a ledger is open: SQLite's locks and connections must not be carried across;
    * of this process's descriptors a helper keeps its input, its outputs, and what it was promised.
"""

from __future__ import annotations

import ctypes
import gc
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

from fedrounds.tasks.withheld import trace

NAME = 15  # PR_SET_NAME, in <linux/prctl.h>
STOPS = {signal.SIGINT, signal.SIGTERM}


def alone() -> bool:
    """Whether this process may fork: on Linux, while it has no thread but this one, native ones included."""
    if sys.platform != "linux":
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


class Forked:
    """A helper forked from this process, seen as `subprocess.Popen` shows one.

    Args:
        module: what it runs, with these words, as `python -m` does. The module's last name is what `ps -c` and `top` show.
        log: where its prints and tracebacks are appended.
        env: its whole environment.
        answers: whether its standard output is a pipe to this process; else that goes to the log too.
        keep: descriptors that it has under the same numbers.
        cwd: where it works, by default here.
    """

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        answers: bool = True,
        keep: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        self.module = module
        self.returncode: int | None = None
        self._lock = threading.Lock()
        for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__} - {None}:
            stream.flush()
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        stdin, requests = os.pipe()
        replies, stdout = os.pipe() if answers else (-1, said)
        gc.freeze()  # so that no collection of the helper's touches, and so copies, what both have
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(module, words, (stdin, stdout, said), env, keep, cwd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for ours in {stdin, stdout, said}:
            os.close(ours)
        self.stdin: IO[bytes] = os.fdopen(requests, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(replies, "rb") if answers else None

    def poll(self) -> int | None:
        """Its exit code, minus the signal's number if that ended it; None while it lives."""
        with self._lock:
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it lives still, after so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired([self.module], timeout or 0)
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """End it now. Nothing happens to one that has ended."""
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, signal.SIGKILL)


def _streams() -> list[Any]:
    """Python's streams on the descriptors as they now are: those that were copied know another file's kind, and fail on a pipe.

    Gives those that were there.
    """
    there: list[Any] = []
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        there += [getattr(sys, name), getattr(sys, f"__{name}__")]
        errors = "backslashreplace" if number == 2 else None
        anew = open(number, mode, buffering=1 if number == 2 else -1, errors=errors, closefd=False)  # noqa: SIM115 (to the end)
        setattr(sys, name, anew)
        setattr(sys, f"__{name}__", anew)
    return there


def _become(
    module: str, words: Sequence[str], fds: Sequence[int], env: Mapping[str, str], keep: Sequence[int], cwd: Path | None
) -> NoReturn:
    """What the new process does: let go of what was copied, then all of its life."""
    code = 1
    try:
        os.setsid()  # so that Ctrl-C, sent to the whole group, stops at the parent
        for stop in STOPS:
            signal.signal(stop, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep:
                with suppress(OSError):  # the one that listed them
                    os.close(fd)
        _caught = _streams()  # held to the end: what waits in the parent's would be written once more when they go
        os.environ.clear()
        os.environ.update(env)
        if cwd is not None:
            os.chdir(cwd)
        ctypes.CDLL(None).prctl(NAME, module.rpartition(".")[2].encode(), 0, 0, 0)
        sys.audit("fedrounds.forked", module)
        sys.argv = [module, *words]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except BaseException as error:
        print(trace(error), file=sys.stderr)  # noqa: T201 (the log)
    finally:
        sys.stderr.flush()
        os._exit(code)
