"""What each of some hospitals that are apart brought: of the updates that their coordinator has kept, and of losses that are asked for by mail.

A model of some hospitals is put together here, and its loss is a question like any other: `score`, of a model that is none of the study's
rounds. So it is told of few hospitals: of n there are 2^n models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from fedrounds.core.contribution import of_updates
from fedrounds.core.errors import QuorumError, StudyError
from fedrounds.core.evaluate import total
from fedrounds.core.params import Vector
from fedrounds.core.plan import build
from fedrounds.core.round import open_round
from fedrounds.core.state import RunState
from fedrounds.core.strategy import Exact
from fedrounds.tasks import updates, waiting
from fedrounds.tasks.correspondence import Correspondence
from fedrounds.tasks.explain import HIDDEN, as_told
from fedrounds.tasks.origin import recorded

MOST = 6  # hospitals: of these there are 64 models
UNKEPT = "the hospitals are apart, and their coordinator keeps what they send in training only where `keep_updates` under [federation] says so"
ANEW = "an exact fit is made anew of each set of hospitals, which takes their rows in one process"


def brought(
    run: Correspondence, state: RunState, judging: Collection[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """The hospitals' shares in the model of `state`, or `none`: why there are none; `again`, if it may be had another time.

    Args:
        judging: those whose patients set aside weigh the models, and who all must say what each is worth.
    """
    study = run.folder.study
    if study.masked:
        return {"none": HIDDEN}
    if isinstance(study.algorithm, Exact):
        return {"none": ANEW}
    if not run.folder.operations.federation.keep_updates:
        return {"none": UNKEPT}
    found = updates.kept(run.place.own / updates.FOLDER, study.digest, state.round)
    if isinstance(found, str):
        return {"none": found}
    sites = {site for replies in found for site, _ in replies}
    if len(sites) > MOST:
        return {"none": f"by mail it is worked out for {MOST} hospitals at most: each set of them is a question"}
    plan = build(study)  # the run's own would keep what is combined here
    first = plan.start(state.statistics, recorded(study, run.ledger))
    say(f"asks them what the models of {2 ** len(sites) - 1} sets of hospitals are worth, one by one")
    try:
        return as_told(of_updates(plan, first, state.theta, found, lambda theta: _loss(run, theta, judging)))
    except StudyError as error:
        return {"none": str(error)}
    except QuorumError as error:
        return {"none": f"what models of some hospitals are worth was not told: {error}", "again": True}


def _loss(run: Correspondence, theta: Vector, judging: Collection[str]) -> float:
    """The mean loss of a model on the patients set aside. Raises QuorumError where a hospital does not say it."""
    state = replace(run.state, theta=theta, champion=None)
    asking = open_round(state, run.plan, "score", judging, quorum=len(judging))
    sums, _ = total(waiting.closed(run, asking, set()).scores)
    if not sums[0]:
        raise StudyError("expected patients set aside whose scores a site shows, found none: nothing can be weighed")
    return float(sums[1] / sums[0])
