"""Watching for drift in a run: when a profile is due, what it says, what it holds, and how a person accepts new data.

What was profiled is decided by the ledger; that data changed since, by fingerprints which the sites keep (`profiles.json`) and never send.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedrounds.core.calibration import Large, surely_beyond
from fedrounds.core.drift import assess, values
from fedrounds.core.errors import DriftHold, StateError
from fedrounds.core.operations import Drift
from fedrounds.core.study import Study
from fedrounds.tasks.json_file import read_json, write_json

if TYPE_CHECKING:
    from fedrounds.core.round import Closed
    from fedrounds.ledger import Ledger
    from fedrounds.tasks.run import Run

ACCEPTED = "accepted_drift"  # the ledger's note: [visit, when], in order
NOTHING = StateError(
    "expected a profile whose drift could be accepted, found none in the ledger: run without --accept-drift first"
)
Profiles = Mapping[int, Mapping[str, Any]]  # visit -> site -> its profile


def due(run: Run) -> bool:
    """Whether a site that takes part has other data than those it was last profiled on."""
    return run.folder.operations.drift is not None and run.unprofiled()


def unprofiled(run: Run) -> bool:
    """Whether a site of this process has other data than those it was last profiled on."""
    committed, kept = known(run), read_json(run.place.profiles)
    nothing = {"visit": 0, "fingerprint": ""}
    last = {site: kept.get(site, nothing) for site in run.taking_part}
    return any(
        its["visit"] not in committed or its["fingerprint"] != run.wards[site].fingerprint for site, its in last.items()
    )


def noted(run: Run, closed: Closed) -> dict[str, Any]:
    """What a closed visit's record says of drift; nothing unless it asked for profiles.

    The sites remember first that they were profiled, and on which visit: that visit counts only once it is in the ledger, so a death in
    between asks again, and a death after it does not.
    """
    if closed.ask != "profile":
        return {}
    visit = run.visit + 1
    run.profiled(closed.profiles.keys() | closed.refused.keys(), visit)
    own = {
        site: {name: [int(rows) for rows in cells] for name, cells in sums.items()}
        for site, sums in closed.profiles.items()
    }
    found = _assessed(run, {**known(run), visit: own})
    return {"profile": own, "drift": found}


def remember(run: Run, sites: Iterable[str], visit: int) -> None:
    """Write down that sites of this process were profiled on a visit, which is not committed yet."""
    asked = {site: {"visit": visit, "fingerprint": run.wards[site].fingerprint} for site in sites}
    write_json(run.place.profiles, read_json(run.place.profiles) | asked)


def standing(run: Run) -> dict[str, Any] | None:
    """How the sites that take part stand by their latest profiles, under the limits and the reference of now; None if nobody watches."""
    found = known(run) if run.folder.operations.drift else {}
    return _assessed(run, found) if found else None


def profiles(ledger: Ledger, after: int = 0) -> dict[int, Mapping[str, Any]]:
    """Every profile in the ledger of visits later than `after`."""
    return {entry.visit: entry.record["profile"] for entry in ledger.visits(after, ask="profile")}


def known(run: Run) -> Profiles:
    """Every profile in the ledger. A visit never changes, so those that this run has read are not read again."""
    run.profiles |= profiles(run.ledger, after=max(run.profiles, default=0))
    return run.profiles


def accept(ledger: Ledger) -> int:
    """Make the newest profile the reference, and note when; returns its visit.

    Raises:
        StateError: there is no profile yet, or another runner works on the study.
    """
    last = max(profiles(ledger), default=None) if ledger.lineage() else None
    if last is None:
        raise NOTHING
    ledger.acquire()
    try:
        accepted = ledger.noted(ACCEPTED) or []
        if not accepted or accepted[-1][0] != last:
            ledger.note(ACCEPTED, [*accepted, [last, time.time()]])
    finally:
        ledger.release()
    return last


def reference(ledger: Ledger, known: Profiles) -> int:
    """The visit whose profile others are compared with: the last that was accepted, else the first."""
    accepted = ledger.noted(ACCEPTED) or []
    return accepted[-1][0] if accepted else min(known)


# --- what is told -----------------------------------------------------------------------------------------------------


def hold(found: Mapping[str, Any]) -> DriftHold:
    """Why the study does not go on."""
    worst, limit = found["worst"], found["limit"]["hold"]
    return DriftHold(
        f"expected new data like those of visit {found['reference']} (PSI of at most {limit:g}), found {worst['what']} at '{worst['site']}'"
        f" at {worst['psi']:.2f}: mend the data, or take them as right with `fedrounds run DIR --accept-drift`"
    )


def warning(study: Study, found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The news, if drift is beyond what is told and not beyond what holds."""
    worst = found["worst"]
    return news(study, found) if worst and worst["psi"] > found["limit"]["warn"] and not found["held"] else None


def news(study: Study, found: Mapping[str, Any]) -> dict[str, Any]:
    """What an event carries: the worst, the limits, and the worst of each site."""
    sites = {site: max(values(study, its).values(), default=0.0) for site, its in found["sites"].items()}
    return {"worst": found["worst"], "limit": found["limit"], "reference": found["reference"], "sites": sites}


def miscalibrated(run: Run) -> dict[str, Any] | None:
    """Where the model that was scored last surely misses by more than the study's limit; None where it does not, or nobody looks."""
    watched, last = run.folder.operations.drift, run.last.get("calibration_drift")
    return beyond(last, watched) if watched and last else None


def beyond(calibration: Mapping[str, Any], limits: Drift) -> dict[str, Any] | None:
    """Observed over expected, of all sites and of each, where it is surely beyond the limit; None if it is nowhere."""
    every = {"all sites": {key: calibration[key] for key in Large._fields}, **calibration["sites"]}
    far = {site: its["ratio"] for site, its in every.items() if surely_beyond(Large(**its), limits.calibration)}
    return {"what": "calibration", "limit": limits.calibration, "ratios": far} if far and limits.calibration else None


# --- inside -----------------------------------------------------------------------------------------------------------


def _assessed(run: Run, known: Profiles) -> dict[str, Any]:
    limits = run.folder.operations.drift or Drift()
    return assess(run.folder.study, limits, known, reference(run.ledger, known), run.taking_part)
