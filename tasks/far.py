"""What runs in a worker of a Dask cluster: it loads sites' rows, keeps their wards between rounds, and answers with bytes.

Every call brings all that it needs as JSON and bytes, so any worker can answer any call, twice if need be, with the same bytes; the wards
that a worker holds only save it from loading them again. Whatever goes wrong is returned, not raised: Dask would log a call's arguments,
and a site file holds secrets.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fedrounds.core
from fedrounds.core import errors
from fedrounds.core.errors import FedroundsError, ServiceError
from fedrounds.core.messages import OF_TABLE, Request, decode
from fedrounds.core.operations import Operations
from fedrounds.core.plan import Plan, build
from fedrounds.core.study import Study
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks.ward import Ward, changed
from fedrounds.tasks.withheld import withheld

RUNS_KEPT = 4  # runs whose wards a worker holds: one that was killed told nobody that it is over

Told = tuple[str, str, Any]  # the worker that says it, the kind of error or "", what it says
Stay = Mapping[
    str, Any
]  # a site as it is sent: its file, the rows set aside, and the fingerprint that its table must have


@dataclass(frozen=True)
class House:
    """What a worker knows of one run."""

    study: Study
    plan: Plan
    data: Path
    wards: dict[str, Ward]


_houses: OrderedDict[str, House] = OrderedDict()
_busy = (
    threading.Lock()
)  # one call at a time: Great Expectations and the number of BLAS threads are a process's, not a thread's


@functools.cache
def software() -> str:
    """What decides the bits of an answer, in words: a worker that has other software is refused."""
    code = hashlib.sha256()
    for file in sorted(Path(fedrounds.core.__path__[0]).rglob("*.py")):
        code.update(file.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))
    return f"fedrounds {version('fedrounds')} ({code.hexdigest()[:12]}), Python {python}, {libraries}"


def about(run: str, study: Study, data: Path) -> str:
    """What every call of a run brings."""
    words = {"run": run, "study": study.model_dump(mode="json"), "digest": study.digest}
    return json.dumps({**words, "data": str(data.resolve()), "software": software()})


def _call(part: str) -> Callable[[Callable[..., Any]], Callable[..., Told]]:
    """A call as it is sent to a worker: errors come back as words."""

    def wrap(call: Callable[..., Any]) -> Callable[..., Told]:
        @functools.wraps(call)
        def told(*arguments: Any) -> Told:
            from distributed import get_worker

            worker = get_worker().address
            try:
                with _busy, withheld(part):
                    return worker, "", call(*arguments)
            except FedroundsError as error:
                return worker, type(error).__name__, str(error)

        return told

    return wrap


def result(told: Told) -> Any:
    """What a call gave; raises what it raised."""
    worker, kind, said = told
    del worker
    if kind:
        known = getattr(errors, kind, ServiceError)
        raise known(said)
    return said


@_call("a worker to load its sites")
def load(about: str, stays: Sequence[Stay], strict: bool) -> list[dict[str, Any]]:
    """Load sites' rows; returns what may be known of them outside: counts, a fingerprint, what is wrong."""
    wards = [_ward(_house(about), stay, strict) for stay in stays]
    return [
        {
            "patients": ward.cohort.patients if ward.cohort else 0,
            "fingerprint": ward.fingerprint,
            "problem": ward.problem,
            "refusal": ward.refusal() if ward.cohort else "",
        }
        for ward in wards
    ]


@_call("a worker to answer for its sites")
def answer(about: str, stays: Sequence[Stay], request: bytes) -> list[bytes]:
    """Each site's answer to the same request."""
    house, asked = _house(about), decode(request, Request)
    sent: list[bytes] = []
    for stay in stays:
        ward = _ward(house, stay, strict=False)
        if ward.rows is None and asked.ask not in OF_TABLE:
            ward.preprocess({name: asked.arrays[name] for name in ("impute", "center", "scale")})
        sent.append(ward.answer(request))
        if ward.remembers:
            raise ServiceError(
                f"expected an algorithm whose sites remember nothing, found one that keeps state at '{ward.name}', which a worker that dies"
                f" would lose: run without --runner"
            )
    return sent


@_call("a worker to judge a site's rows")
def judge(about: str, stay: Stay, gate: str) -> dict[str, Any]:
    """A site's gate, where its rows are."""
    from fedrounds.tasks.folder import Folder, Suite
    from fedrounds.tasks.gate import answer as judged

    house, asked = _house(about), json.loads(gate)
    site = SiteFile.model_validate_json(stay["file"])
    suite = Suite(**asked["suite"]) if asked["suite"] else None
    operations = Operations.model_validate_json(asked["operations"])
    folder = Folder(house.data, house.data, house.study, operations, {site.name: site}, suite)
    return judged(folder, site.name, asked["problem"])


def forget(run: str) -> None:
    """Let go of the rows of a run that is over."""
    _houses.pop(run, None)


def _house(about: str) -> House:
    words = json.loads(about)
    if words["software"] != software():
        raise ServiceError(f"expected {words['software']} at every worker, found {software()}: install the same there")
    house = _houses.get(words["run"])
    if house is None:
        _one_thread()
        study = Study.model_validate(words["study"])
        if study.digest != words["digest"]:
            raise ServiceError(f"expected study {words['digest'][:12]}, read {study.digest[:12]}: report it")
        house = _houses[words["run"]] = House(study, build(study), Path(words["data"]), {})
        while len(_houses) > RUNS_KEPT:
            _houses.popitem(last=False)
    _houses.move_to_end(words["run"])
    return house


def _ward(house: House, stay: Stay, strict: bool) -> Ward:
    """The site's ward, loaded: its table is the one that the run began with, without the rows set aside."""
    site = SiteFile.model_validate_json(stay["file"])
    ward = house.wards.get(site.name)
    if ward is None:
        ward = Ward(site, house.plan, house.data)
    if ward.cohort is None and not ward.problem:
        ward.load(strict)
    if stay["fingerprint"] and ward.fingerprint != stay["fingerprint"]:
        raise changed(site.name)
    ward.leave_out(stay["aside"])
    house.wards[site.name] = ward
    return ward


@functools.cache
def _one_thread() -> Any:
    """One BLAS thread in this process from now on: as many workers as cores share the machine, and sums keep their order."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
