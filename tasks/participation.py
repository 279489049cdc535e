"""What a coordinator knows of each site's speed, and what the ledger keeps of who was asked in a round. No Prefect in here.

Speed is what the coordinator sees: seconds from a question to its answer, by the ledger's own clock, travel and waiting included. A site's
own word would be in its reply, which would then differ each time that it is worked out again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedrounds.core.participation import Participation, chosen
from fedrounds.core.round import Asking, Closed

if TYPE_CHECKING:
    from fedrounds.tasks.run import Run


def at_their_pace(run: Run, asking: Asking) -> Asking:
    """The round, with the epochs that each site is asked for. They follow from the ledger alone: after a crash they are the same."""
    study = run.folder.study
    pace = study.participation.pace
    if pace is None or asking.request.ask != "train":
        return asking
    by_speed = chosen(pace, study.averaging.local.epochs, _before(run))
    return replace(asking, epochs={site: by_speed[site] for site in asking.sites if site in by_speed})


def noted(run: Run, closed: Closed) -> dict[str, Any]:
    """Who was asked in a round, how many counted, and how fast they are, for the visit's record; empty where a study asks everybody.

    `seconds` are from the question to each answer, or how long a silent site has kept the round waiting; `per_epoch` are those of each
    site's last answer. In one process nobody waits for anybody, so nothing is measured and each site walks the study's epochs.
    """
    study = run.folder.study
    of = study.participation
    if closed.ask != "train" or of == Participation():
        return {}
    found: dict[str, Any] = {"asked": list(closed.asked), "goal": closed.goal or len(closed.asked)}
    if of.pace is not None:
        epochs = dict.fromkeys(closed.asked, study.averaging.local.epochs) | closed.epochs
        seconds, before = _seconds(run, closed), _before(run)
        per_epoch = {site: seconds[site] / epochs[site] for site in seconds}
        silent = {
            site: max(per_epoch[site], before.get(site, 0.0)) for site in per_epoch.keys() - closed.training.keys()
        }
        found |= {"epochs": epochs, "seconds": seconds, "per_epoch": {**before, **per_epoch, **silent}}
    return {"participation": found}


def _before(run: Run) -> Mapping[str, float]:
    """Seconds an epoch takes at each site, as the last round left them."""
    if run.state.round == 0:
        return {}
    visit = run.ledger.closed(run.state.round)
    (entry,) = run.ledger.visits(after=visit - 1, limit=1)
    return entry.record.get("participation", {}).get("per_epoch", {})


def _seconds(run: Run, closed: Closed) -> dict[str, float]:
    """Site -> seconds to its answer. None where a question had to be repeated: who has answered before only signs again."""
    attempt = run.ledger.attempt()
    if attempt is None:
        return {}
    if any(
        it.number != attempt.number
        for it in run.ledger.attempts()
        if (it.visit, it.round) == (attempt.visit, attempt.round)
    ):
        return {}
    waited = {site: time.time() - run.started for site in closed.asked if site not in closed.refused}
    came = {
        it.site: it.received - attempt.opened
        for it in run.ledger.replies(attempt.number)
        if it.outcome in ("taken", "late")
    }
    return {site: max(found, 1e-3) for site, found in (waited | came).items() if site in waited}
