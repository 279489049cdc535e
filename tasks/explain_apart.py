"""The same of hospitals that are apart: asked by mail under the study's lease, by the deadline and the quorum of its operations.

Nothing is trained and no visit is made: what is asked has a number of its own, which the audit log holds, and is dropped when the note is
made. Whoever is killed asks again under another number, and hospitals send the very same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any

from fedrounds.core.errors import FedroundsError, ServiceError, StateError, StudyError
from fedrounds.core.round import open_round
from fedrounds.core.state import RunState
from fedrounds.core.study import Study
from fedrounds.ledger import Ledger
from fedrounds.tasks import waiting
from fedrounds.tasks.acts import projector
from fedrounds.tasks.baselines import digest
from fedrounds.tasks.brought import brought
from fedrounds.tasks.correspondence import AWAY, Correspondence
from fedrounds.tasks.explain import NOTE, noted, require
from fedrounds.tasks.folder import Folder, State
from fedrounds.tasks.matrix import keep, unbegun

EXCLUDED = "its data did not pass the gate"
MOST_NAMES = 12  # of hospitals in a line
WITHOUT = "the sum was opened without it before, and hospitals open it of no others"

Say = Callable[[str], None]
Opened = Callable[[], AbstractContextManager[Correspondence]]


def explain(
    folder: Folder, place: State, sites: Collection[str], opened: Opened, say: Say | None = None
) -> dict[str, Any]:
    """Ask the hospitals, put the sums together, and keep the result; where all have told of this model since their gates, nobody is asked.

    Args:
        sites: names of the hospitals that take part now.
        opened: a run by mail that holds the lease.
        say: told that hospitals were asked, in a line.

    Returns:
        The note, as `tasks.explain.explain` has it; `refused` names whoever has not told, and why.

    Raises:
        StudyError: the study is differentially private, or its hospitals are not asked by mail.
        StateError: it has not run to the end, or another runner is at work.
        QuorumError: too few hospitals tell.
        ServiceError: a database or MLflow is away; again does no harm.
    """
    require(folder.study)
    with projector(place) as project:
        lineage, token, known = _before(folder.study, place, sites)
        if known.get("token") == token:
            keep(place, lineage, NOTE, known)
            return known
        with opened() as run:
            state = _standing(run.ledger, folder.study, place)
            note = _asked(run, state, say or (lambda _: None))
            complete = not note["refused"].keys() - set(run.excluded) and "again" not in note["contribution"]
            note |= {"token": _token(run.ledger, state, sites) if complete else ""}
            run.ledger.note(NOTE, note)
            project(tell=True)
    return note


def _before(study: Study, place: State, sites: Iterable[str]) -> tuple[str, str, dict[str, Any]]:
    """The lineage, what a note about it now would bear, and the note that is there."""
    if place.begun:
        with Ledger.open(place.ledger) as ledger:
            state, lineage = _standing(ledger, study, place), ledger.lineage()
            return lineage.lineage if lineage else "", _token(ledger, state, sites), ledger.noted(NOTE) or {}
    raise unbegun(place)


def _standing(ledger: Ledger, study: Study, place: State) -> RunState:
    """The state of the champion, or of the last round where there is none. Raises as `explain` does."""
    head, last = ledger.head(), ledger.progress(besides="profile")
    if head is None or last is None or not head.state.round:
        raise unbegun(place)
    if (carrier := last.record.get("carrier", "process")) != "mail":
        raise StudyError(
            f"expected a study that has run by mail, found one that ran otherwise ({carrier}): ask it where its rows are"
        )
    if head.state.study != study.digest:
        raise StateError(
            f"expected the protocol {head.state.study[:12]} that has run in {place.own}, found {study.digest[:12]}: put study.toml back"
        )
    if (last.ask, last.round) != ("score", head.state.round):
        raise StateError(
            f"expected a study that has run to the end, found round {head.state.round} not scored yet in {place.own}: `fedrounds run` first"
        )
    best = ledger.standing().champion
    return ledger.state(ledger.closed(best)) if best else head.state


def _token(ledger: Ledger, state: RunState, sites: Iterable[str]) -> str:
    """Of the model, of whom it is asked, and of the last question that anybody was asked: at a gate a hospital takes up other data."""
    return digest([state.model_digest, state.round, sorted(sites), ledger.newest_attempt()])


def _asked(run: Correspondence, state: RunState, say: Say) -> dict[str, Any]:
    """The note, of whoever tells before the deadline."""
    verdicts = run.ledger.verdicts()
    run.excluded = [site for site, kept in verdicts.items() if kept.verdict.get("action") in ("exclude", "halt")]
    operations, study = run.folder.operations, run.folder.study
    quorum, roll = operations.quorum_of(len(run.wards)), run.roll() if study.masked else None
    asking = open_round(state, run.plan, "explain", run.taking_part, quorum, roll=roll)
    names = ", ".join(run.taking_part) if len(run.taking_part) <= MOST_NAMES else f"{len(run.taking_part)} hospitals"
    say(f"asks {names} by mail: waits up to {operations.federation.deadline} for each answer")
    reached = set[str]()
    try:
        closed = waiting.closed(run, asking, reached)
        told = set(closed.heard or closed.explained)
        shares = brought(run, state, sorted(told), say)
        _over(run)
    except FedroundsError:
        with suppress(ServiceError):  # the next question clears up as well
            _over(run)
        raise
    silent = {site: AWAY if site in reached else WITHOUT for site in run.wards}
    reasons = silent | dict.fromkeys(run.excluded, EXCLUDED) | dict(closed.refused)
    refused = {site: reasons[site] for site in sorted(run.wards) if site not in told}
    return noted(run.plan, state, run.wards, closed, refused, shares)


def _over(run: Correspondence) -> None:
    """Nothing of what was asked is needed any more."""
    run.ledger.drop_attempt()
    run.clear()
