"""Every model at every site of a study that has run: on demand, from the ledger's statistics and model and the sites' present rows.

Nothing is trained under the lease: it is taken to write the result down, which is a note in the ledger, and then files in MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedrounds.core.baselines import Cell, Line, matrix
from fedrounds.core.errors import StateError, StudyError
from fedrounds.core.evaluate import HEADLINE, LOSS
from fedrounds.core.params import Vector
from fedrounds.core.plan import Plan, build
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Entry, Ledger
from fedrounds.tasks.acts import held, projector
from fedrounds.tasks.baselines import COMPARED, about, digest, setting
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.origin import recorded
from fedrounds.tasks.remembered import Remembered
from fedrounds.tasks.ward import Ward
from fedrounds.tasks.withheld import withheld

NOTE = "matrix"  # the ledger's note
LABELS = {
    "federated": "federated",
    "pooled": "one pool of all rows",
    "ensemble": "mean of own models",
    "cyclic": "from hospital to hospital",
    "local": "own model of {}",
    "without": "federated without {}",
}


def compare(folder: Folder, place: State) -> dict[str, Any]:
    """Train what is to be compared, score it everywhere, and keep the result; what was found for the same data and round is not trained again.

    Returns:
        The note: `round`, `metric` and `loss` by name, `sites`, `lines`, `refused`.

    Raises:
        StudyError: the study hides its sums or adds noise, or its rows are elsewhere.
        StateError: it has not run to the end on the present data, has too many sites, or another runner is at work.
    """
    require(folder.study)
    found = ready(folder, place, NOTE)
    if len(found.wards) > COMPARED:
        raise StateError(
            f"expected at most {COMPARED} sites, each of which trains alone and is left out once, found {len(found.wards)}"
        )
    note = found.before
    if note.get("token") != found.token:
        note = _found(found) | {"token": found.token}
    keep(place, found.lineage, NOTE, note)
    return note


class Ready(NamedTuple):
    """A study that stands where its last run has left it, and the sites' rows.

    Attributes:
        state: of its last round, or with the champion's model.
        token: of the data, the model and the policies.
        before: the note that is there already.
        start: the version's model that it began with, where it did.
    """

    plan: Plan
    wards: Mapping[str, Ward]
    state: RunState
    lineage: str
    token: str
    before: dict[str, Any]
    start: Vector | None = None


def ready(folder: Folder, place: State, name: str, champion: bool = False) -> Ready:
    """A study whose rows are those of its last run, in this process.

    Args:
        name: of the note that is to be made.
        champion: whether it is about the champion, where there is one, and not about the last round's model.

    Raises:
        StudyError: the rows are elsewhere.
        StateError: it has not run to the end on the present data.
    """
    lineage, state, last, known, before, best, start = _read(place, folder.study, name)
    carrier = last.record.get("carrier", "process")
    if carrier != "process":
        raise StudyError(
            f"expected a study whose hospitals are in this process, found rows elsewhere ({carrier}): only a simulation may hold them all"
        )
    plan = build(folder.study)
    if state.study != plan.digest:
        raise StateError(
            f"expected the protocol {state.study[:12]} that has run in {place.own}, found {plan.digest[:12]}: put study.toml back, or run --fresh"
        )
    wards = _wards(folder, place, plan, list(known.get("patients", known.get("sites", ()))))
    if not wards or known.get("token") != about(wards, state.round):
        raise StateError(
            f"expected the data that the study last ran on, to the end, found others in {folder.data}:"
            " `fedrounds run` first, or name their folder with --data"
        )
    policies = {name: [ward.policy.model_dump(mode="json"), list(ward.aside)] for name, ward in wards.items()}
    state = best if champion and best else state
    began = [] if start is None else [start.tolist()]
    token = digest([known["token"], state.model_digest, policies, *began])
    return Ready(plan, wards, state, lineage, token, dict(before), start)


def unbegun(place: State) -> StateError:
    """What to raise where no round has closed."""
    return StateError(f"expected a study that has run in {place.own}, found no closed round: `fedrounds run` starts it")


def keep(place: State, lineage: str, name: str, note: dict[str, Any]) -> None:
    """Write a note about a lineage into the ledger, and from it into MLflow. Raises StateError where the study was begun anew meanwhile."""
    with projector(place) as project, held(place) as ledger:
        if _of(ledger) != lineage:  # `run --fresh` did not wait
            raise StateError(f"expected one study in {place.own}, found it begun anew meanwhile: ask again")
        ledger.note(name, note)
        project(tell=True)


def require(study: Study) -> None:
    """Raise StudyError for a study whose sites promise to show no number of their own."""
    hidden = "hides its sums" if study.masked else "is differentially private" if study.privacy.dp else ""
    if hidden:
        raise StudyError(
            f"expected a study whose sites show their scores, found one that {hidden}: what a site has alone is not to be known there"
        )


def _read(
    place: State, study: Study, name: str
) -> tuple[str, RunState, Entry, Mapping[str, Any], Mapping[str, Any], RunState | None, Vector | None]:
    """The lineage, the last state, the last visit that went to patients, what the run compared, the note, the champion's state, the start."""
    if place.begun:
        with Ledger.open(place.ledger) as ledger:
            head, last = ledger.head(), ledger.progress(besides="profile")
            if head and last and head.state.round > 0:
                notes = ledger.noted("baselines") or {}, ledger.noted(name) or {}
                best = ledger.standing().champion
                state = ledger.state(ledger.closed(best)) if best else None
                return _of(ledger), head.state, last, *notes, state, recorded(study, ledger)
    raise unbegun(place)


def _of(ledger: Ledger) -> str:
    lineage = ledger.lineage()
    return lineage.lineage if lineage else ""


def _wards(folder: Folder, place: State, plan: Plan, names: list[str]) -> dict[str, Ward]:
    """The sites of the last run with their rows, less those that their gate has set aside."""
    memory, found = Remembered(folder, place.verdicts), {}
    for name in names:
        if name in folder.sites:
            ward = Ward(folder.sites[name], plan, folder.data)
            ward.load(strict=False)
            if ward.fingerprint:
                memory.set_aside(ward)
            found[name] = ward
    return found


def _found(of: Ready) -> dict[str, Any]:
    plan, wards, state = of.plan, of.wards, of.state
    with withheld("to train the models to compare with"):
        found = matrix(setting(plan, wards, state, of.start), state.theta)
    return {
        "round": state.round,
        "metric": HEADLINE[plan.task],
        "loss": LOSS[plan.task],
        "sites": sorted(wards),
        "lines": [_line(line) for line in found.lines],
        "refused": dict(found.refused),
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "kind": line.kind,
        "site": line.site,
        "name": LABELS[line.kind].format(line.site),
        "cells": {site: _cell(cell) for site, cell in line.cells.items()},
        "everywhere": _cell(line.everywhere) if line.everywhere else None,
        "remark": line.remark,
    }


def _cell(cell: Cell) -> dict[str, float | None]:
    return {"metric": cell.metric, "loss": cell.loss, "error": cell.error}
