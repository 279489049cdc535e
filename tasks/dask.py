"""Sites on a Dask cluster: the run stays here, its sites' rows and answers are at the workers. `tasks/far.py` is the other end.

Dask's own client, not prefect-dask: that runner pickles a task with its parameters, wards and their rows included, and runs it at the
worker, which must then reach this run's Prefect server (ours listens on 127.0.0.1) and import Prefect. Here a Prefect task stays here and
waits for one call of a worker; a round sends the request's bytes and the site files, and brings replies' bytes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fedrounds.core.errors import ServiceError
from fedrounds.core.messages import Request, decode
from fedrounds.core.params import Array
from fedrounds.core.phases import step_of
from fedrounds.core.plan import Plan, build
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import far
from fedrounds.tasks.clock import Clock
from fedrounds.tasks.folder import Folder
from fedrounds.tasks.run import QUIET, Group, Requests, batch
from fedrounds.tasks.ward import Ward

if TYPE_CHECKING:
    import distributed

REACH_S = 10  # for a scheduler to answer, and to answer again when it was lost
FIRST_S = 30  # for a first worker to be there
ALONE_S = 60  # without a single worker, until a call is given up
LISTENERS = 4  # threads that wait for gates
LOOK_S = 5  # how often a call that waits looks whether there still are workers


class Afar(Ward):
    """A ward whose rows are at a worker: here are its name, its counts and its bytes alone."""

    def __init__(self, site: SiteFile, plan: Plan, crew: Crew) -> None:
        super().__init__(site, plan, crew.folder.data)
        self._crew, self.patients, self._refusal = crew, 0, ""

    def load(self, strict: bool = True) -> int:
        del strict
        return self.patients

    def learn(self, told: Mapping[str, Any]) -> None:
        """What its worker found in its table."""
        self.patients, self._refusal = told["patients"], told["refusal"]
        self.fingerprint, self.problem = told["fingerprint"], told["problem"]

    def leave_out(self, rows: Sequence[int]) -> None:
        if tuple(rows) != self.aside:
            self.aside = tuple(rows)
            self._crew.load([self], strict=False)

    def preprocess(self, statistics: Mapping[str, Array]) -> None:
        """Its worker does, when it is first asked to train: every request carries the statistics."""

    def refusal(self) -> str:
        return self._refusal

    def stay(self) -> far.Stay:
        """The site as it is sent to whichever worker answers for it."""
        file = self.site.model_dump_json(by_alias=True)
        return {"file": file, "aside": self.aside, "fingerprint": self.fingerprint}


class Batch(Group):
    """Wards afar that one call answers for."""

    def __init__(self, wards: Sequence[Afar], clock: Clock, crew: Crew) -> None:
        super().__init__(wards, clock)
        self._crew, self._sent = crew, dict[bytes, Any]()
        self.head = wards[0].name

    def send(self, request: bytes) -> None:
        """Let a worker begin with it."""
        stays = [ward.stay() for ward in self.wards]  # type: ignore[attr-defined]
        self._sent[request] = self._crew.submit(far.answer, self.head, stays, request)

    def answer(self, requests: Requests) -> list[bytes]:
        with self._clock("training"):
            request = next(iter(requests.values()))
            if request not in self._sent:
                self.send(request)
            replies = self._crew.wait(self._sent.pop(request), self.head)
            step = step_of(decode(request, Request))
            for ward, reply in zip(self.wards, replies, strict=True):
                ward.crossed(step, len(request), len(reply))
            return replies


class Crew:
    """The workers of a cluster, as a run sees them: they hold its wards, and judge and answer for them.

    Args:
        runner: `dask` for a cluster of our own on this machine, else the address of a scheduler.

    Raises:
        ServiceError: Dask is not installed, no scheduler answers, or it has no worker.
    """

    def __init__(self, runner: str, folder: Folder) -> None:
        try:
            import distributed
        except ImportError:
            raise ServiceError(
                "expected Dask for --runner dask, found it is not installed: pip install 'fedrounds[dask]'"
            ) from None
        self._dask, self.folder = distributed, folder
        self._run = uuid4().hex
        self._about = far.about(self._run, folder.study, folder.data)
        self._at: dict[str, str] = {}  # site -> the worker that last answered for its batch
        self._seen: set[str] = set()
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it tells of lost workers and futures; so do we
        self._listeners = ThreadPoolExecutor(LISTENERS, "dask")
        self._cluster = _own(min(os.cpu_count() or 1, len(folder.sites))) if runner == "dask" else None
        try:
            self._client: distributed.Client = self._connected(runner)
        except ServiceError:
            self._end()
            raise
        plan = build(folder.study)
        self.wards = {name: Afar(site, plan, self) for name, site in folder.sites.items()}
        self._suite = folder.suite and {
            "name": folder.suite.name,
            "document": folder.suite.document,
            "hash": folder.suite.hash,
        }

    def _connected(self, runner: str) -> distributed.Client:
        address = runner.replace("dask://", "tcp://", 1)
        try:
            if self._cluster is None:
                _knock(address)
            client = self._dask.Client(self._cluster or address, timeout=REACH_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ServiceError(
                f"expected a Dask scheduler at {runner}, found none that answers within {REACH_S} s ({type(error).__name__}):"
                f" start it (`dask scheduler`), or mend the address"
            ) from None
        try:
            client.wait_for_workers(1, timeout=FIRST_S)
        except TimeoutError:
            client.close(timeout=1)
            raise ServiceError(
                f"expected a worker at {runner}, found none within {FIRST_S} s: start one (`dask worker {runner}`)"
            ) from None
        return client

    def stop(self) -> None:
        """Let the workers forget the rows, and let go of them. A second call does nothing."""
        with suppress(Exception):  # what a worker keeps, it lets go of when other runs come
            if self._cluster is None and self._client.status == "running":
                told = self._listeners.submit(self._client.run, far.forget, self._run, on_error="ignore")
                told.result(timeout=REACH_S)
        self._client.close(timeout=REACH_S)
        self._end()

    def _end(self) -> None:
        self._listeners.shutdown(wait=False, cancel_futures=True)
        if self._cluster is not None:
            self._cluster.close(timeout=REACH_S)

    # --- wards --------------------------------------------------------------------------------------------------------

    def load(self, wards: Sequence[Afar] | None = None, strict: bool = True) -> None:
        """Load sites' rows at the workers, all by default. Raises the first DataContractError, in site order."""
        wards = list(self.wards.values()) if wards is None else wards
        size = batch(len(wards))
        parts = [wards[start : start + size] for start in range(0, len(wards), size)]
        self.place([part[0].name for part in parts])
        calls = [self.submit(far.load, part[0].name, [ward.stay() for ward in part], strict) for part in parts]
        for part, call in zip(parts, calls, strict=True):
            for ward, told in zip(part, self.wait(call, part[0].name), strict=True):
                ward.learn(told)

    def group(self, wards: Sequence[Ward], clock: Clock) -> Batch:
        """Wards that one call answers for."""
        return Batch([ward for ward in wards if isinstance(ward, Afar)], clock, self)

    def send(self, groups: Sequence[Group], request: bytes) -> None:
        """Let all workers begin; each group's `answer` then waits for its own."""
        batches = [group for group in groups if isinstance(group, Batch)]
        self.place([it.head for it in batches])
        for it in batches:
            it.send(request)

    # --- the gate -----------------------------------------------------------------------------------------------------

    def ask(self, site: str, problem: str = "") -> Future[dict[str, Any]]:
        """A future of what the gate finds at a site; a worker judges it."""
        operations = self.folder.operations.model_dump_json(by_alias=True)
        gate = json.dumps({"operations": operations, "suite": self._suite, "problem": problem})
        call = self.submit(far.judge, site, self.wards[site].stay(), gate)
        return self._listeners.submit(self.wait, call, site)

    def kill(self) -> None:
        """A run is over; the workers outlive it (see `stop`)."""

    # --- calls --------------------------------------------------------------------------------------------------------

    def place(self, heads: Sequence[str]) -> None:
        """Say where each batch, named by its first site, is to be answered: where it was last, unless that worker has more than its share."""
        workers = sorted(self._client.nthreads())
        for lost in sorted(self._seen.difference(workers)):
            logging.getLogger("fedrounds.dask").warning("worker %s is gone: its sites are loaded elsewhere", lost)
        self._seen = set(workers)
        if not workers:  # whichever comes first
            return
        share, has, moved = -(-len(heads) // len(workers)), Counter[str](), list[str]()
        for head in heads:
            at = self._at.get(head, "")
            if at in self._seen and has[at] < share:
                has[at] += 1
            else:
                moved.append(head)
        for head in moved:
            at = min(workers, key=lambda worker: has[worker])
            self._at[head], has[at] = at, has[at] + 1

    def submit(self, call: Any, head: str, *arguments: Any) -> distributed.Future:
        """Send a call to where `head` was placed; should that worker die, Dask sends it to another."""
        at = self._at.get(head)
        where: dict[str, Any] = {"workers": [at], "allow_other_workers": True} if at else {}
        name = f"{call.__name__}-{head}-{uuid4().hex[:12]}"
        try:
            return self._client.submit(call, self._about, *arguments, key=name, pure=False, **where)
        except RuntimeError as error:  # the client has given up
            raise self._gone(error) from None

    def wait(self, call: distributed.Future, head: str) -> Any:
        """What a call gave. Raises what it raised, and ServiceError where Dask could not carry it."""
        alone_since = None
        while True:
            try:
                told = call.result(timeout=LOOK_S)
                break
            except TimeoutError:
                alone_since = None if self._workers() else alone_since or time.monotonic()
                if alone_since and time.monotonic() - alone_since > ALONE_S:
                    raise ServiceError(
                        f"expected a worker for site '{head}', found none on the cluster for {ALONE_S} s: start workers, then run again"
                    ) from None
            except self._dask.KilledWorker:
                raise ServiceError(
                    f"expected a worker to survive site '{head}', found that {_allowed()} workers died of it: give them more memory"
                ) from None
            except Exception as error:
                raise self._gone(error) from None
        self._at[head] = told[0]
        return far.result(told)

    def _workers(self) -> Mapping[str, int]:
        try:
            return self._client.nthreads()
        except Exception as error:
            raise self._gone(error) from None

    def _gone(self, error: Exception) -> ServiceError:
        """What to say of an error that is Dask's: its text may quote what was sent."""
        if isinstance(error, ImportError | AttributeError):
            return ServiceError("expected Fedrounds at every worker, found one that cannot import it: install it there")
        return ServiceError(
            f"expected the Dask cluster to carry a call, found {type(error).__name__}: see that its scheduler lives, then run again"
        )


def _knock(address: str) -> None:
    """Raise OSError at once where nobody listens: Dask's client would go on trying."""
    import socket

    host, _, port = address.partition("://")[2].rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


def _own(workers: int) -> Any:
    """A cluster of this machine's cores, for this run: processes of one thread, on the loopback, behind TLS of its own."""
    import dask

    quiet = {
        "distributed.scheduler.work-stealing": False,  # it would load rows twice
        "distributed.scheduler.http.routes": [],  # pages that name calls and workers, to whoever asks
        "distributed.worker.http.routes": [],
    }
    try:
        with dask.config.set(quiet):
            return _cluster(workers)
    except (OSError, RuntimeError) as error:
        raise ServiceError(
            f"expected {workers} worker processes to start on this machine, found {type(error).__name__}: run again when it is less busy"
        ) from None


def _cluster(workers: int) -> Any:
    import distributed

    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        security=True,  # whoever reaches a scheduler can run code: other users of the machine shall not
        silence_logs=logging.CRITICAL,
        env=dict(QUIET),
    )


def _allowed() -> int:
    import dask

    return int(dask.config.get("distributed.scheduler.allowed-failures")) + 1
