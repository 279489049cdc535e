"""A process worker of our own as a child: it starts the ticks of the pool, each in a new process, and never outlives its parent.

`python -m fedrounds.tasks.worker POOL` is that child: Prefect's own worker, ended by the end of its standard input. A tick that runs then
is ended too; the ledger has what was committed, and the next start goes on from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrounds.tasks.ending import end

GRACE_S = 10  # for Prefect's worker to end a tick's process and say so to the server


class Worker:
    """A worker on the server at `environment["PREFECT_API_URL"]`, started at once.

    Args:
        pool: the work pool that it serves.
        environment: Prefect's settings, which the ticks inherit.
        log: where its output and that of the ticks is appended.
    """

    def __init__(self, pool: str, environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedrounds.tasks.worker", pool],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **environment},
                cwd=log.parent,  # Prefect reads .env, prefect.toml and pyproject.toml where it starts
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, None while it lives."""
        return self._process.poll()

    def stop(self) -> None:
        """End it and the tick that it runs. A second call does nothing."""
        end(self._process, GRACE_S + 2)


# The child process.


def main() -> None:
    """Work until the standard input ends: `POOL`."""
    import asyncio
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes our input
    asyncio.run(_work(sys.argv[1]))
    os._exit(0)


async def _work(pool: str) -> None:
    import asyncio

    from prefect.workers.process import ProcessWorker

    loop, working = asyncio.get_running_loop(), asyncio.current_task()
    threading.Thread(target=_end_with_input, args=(loop, working), daemon=True).start()
    worker = ProcessWorker(work_pool_name=pool, name=f"fedrounds {os.getpid()}", create_pool_if_not_found=False)
    try:
        await worker.start(printer=lambda *_: None)
    except asyncio.CancelledError:
        return


def _end_with_input(loop: Any, working: Any) -> None:
    while os.read(0, 4096):
        pass
    threading.Timer(GRACE_S, os._exit, (1,)).start()
    loop.call_soon_threadsafe(working.cancel)


if __name__ == "__main__":
    main()
