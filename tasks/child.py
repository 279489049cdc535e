"""A helper process that answers JSON lines: heavy imports and long work happen there, not under the caller's GIL.

One request is one line on the child's standard input, one answer one line on its standard output, in the same order.
What libraries print in the child goes to its log, never into the protocol and never to the terminal.

Guarantees:
    * a child never outlives its parent: when the parent is gone, even by kill -9, the child leaves at once;
    * a future never hangs on a child: if the child dies, everything unanswered raises `ServiceError`;
    * of an exception that is not ours, its type and frames go to the log and its type to the parent: its text may quote a row;
    * Ctrl-C reaches the parent alone, which decides.
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fedrounds.core import errors
from fedrounds.tasks.forked import Forked
from fedrounds.tasks.staying import staying
from fedrounds.tasks.withheld import trace


class Child:
    """One helper process: `call` sends a JSON object and returns a future of the JSON answer.

    Args:
        module: what `python -m` starts; it must end in a call of `serve`.
        log: where the child's prints and tracebacks are appended.
        env: variables set on top of this process's own.
        process: the helper, where it was forked already.
    """

    def __init__(
        self, module: str, log: Path, env: Mapping[str, str] | None = None, process: Forked | None = None
    ) -> None:
        self.module, self.log = module, Path(log).absolute()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._process = process or self._started({**os.environ, **(env or {})})
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._waiting: deque[Future[dict[str, Any]]] = deque()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._over = False  # closed, killed or dead: nothing more is sent
        threading.Thread(target=self._write, name=f"{module} requests", daemon=True).start()
        self._reader = threading.Thread(target=self._read, name=f"{module} answers", daemon=True)
        self._reader.start()

    def _started(self, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(env),
                start_new_session=True,  # so that Ctrl-C, sent to the whole group, stops at the parent
            )

    @property
    def over(self) -> bool:
        """Whether it was closed or has died: it answers no more."""
        return self._over

    def call(self, request: dict[str, Any]) -> Future[dict[str, Any]]:
        """Queue one request without waiting; answers come in the order of the calls."""
        line = json.dumps(request).encode() + b"\n"
        answer: Future[dict[str, Any]] = Future()
        answer.set_running_or_notify_cancel()  # the child will work on it: a cancelled waiter must not break the order
        with self._lock:
            if self._over:
                answer.set_exception(self._gone())
            else:
                self._waiting.append(answer)
                self._outbox.put(line)
        return answer

    def close(self, timeout_s: float = 30) -> None:
        """Let the child finish its queue and leave; after `timeout_s` kill it. A second call does nothing."""
        with self._lock:
            self._over = True
            self._outbox.put(None)
        self._reader.join(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the child now; every unanswered future raises `ServiceError`."""
        with self._lock:
            self._over = True
            self._outbox.put(None)
        self._process.kill()
        self._reader.join()

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            while (line := self._outbox.get()) is not None:
                stdin.write(line)
                stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as stdout:
                for line in stdout:
                    reply = json.loads(line)
                    with self._lock:
                        answer = self._waiting.popleft()
                    self._settle(answer, reply)
        except (ValueError, IndexError):  # not ours: a print before `serve` took the output over
            self._process.kill()
        self._process.wait()
        with self._lock:
            self._over = True
            self._outbox.put(None)
            unanswered, self._waiting = self._waiting, deque()
        for answer in unanswered:
            answer.set_exception(self._gone())

    def _settle(self, answer: Future[dict[str, Any]], reply: dict[str, Any]) -> None:
        if "error" not in reply:
            answer.set_result(reply)
            return
        name, message = reply["error"]["type"], reply["error"]["message"]
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.FedroundsError):
            answer.set_exception(kind(message))
        else:  # a bug in the child
            answer.set_exception(errors.ServiceError(f"helper {self.module} failed with {name}: see {self.log}"))

    def _gone(self) -> errors.ServiceError:
        code = self._process.poll()
        state = "was closed" if code in (None, 0) else f"ended with exit code {code}"
        return errors.ServiceError(f"helper {self.module} {state} before it answered: see {self.log}")


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]], warm: Callable[[], None] | None = None) -> None:
    """The child's whole life: run `warm` (heavy imports), answer each line with `handle`, leave when the input ends.

    The key `error` of an answer is ours: an exception in `handle` becomes an error answer, and a traceback in the log.
    Ends by `os._exit`, for tearing down a big interpreter takes half a second and more: nothing runs at exit, so what
    `handle` has answered for must be done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.dup(0), os.dup(1)  # dup'd descriptors are not inherited by what the libraries start
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, answers, lines), daemon=True).start()
    if warm is not None:
        with staying():
            warm()
    with os.fdopen(answers, "wb") as stdout:
        while (line := lines.get()) is not None:
            stdout.write(_answer(handle, line) + b"\n")
            stdout.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _listen(requests: int, answers: int, lines: "queue.SimpleQueue[bytes | None]") -> None:
    with os.fdopen(requests, "rb") as stdin:
        for line in stdin:
            lines.put(line)
    lines.put(None)
    gone = select.poll()  # the input ended: `close` still reads the answers, a dead parent does not
    gone.register(answers, 0)
    gone.poll()
    os._exit(1)


def _answer(handle: Callable[[dict[str, Any]], dict[str, Any]], line: bytes) -> bytes:
    try:
        return json.dumps(handle(json.loads(line))).encode()
    except Exception as error:
        print(trace(error), file=sys.stderr)  # noqa: T201 (the log)
        message = str(error) if isinstance(error, errors.FedroundsError) else ""
        return json.dumps({"error": {"type": type(error).__name__, "message": message}}).encode()
