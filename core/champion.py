"""What a closed visit means for the champion: the model that came in was scored, so it can be judged now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedrounds.core.operations import Promotion
from fedrounds.core.promotion import Decision, judge
from fedrounds.core.round import Closed
from fedrounds.core.state import Champion, RunState


def judged(
    before: RunState, closed: Closed, rule: Promotion, known: bool, failed: Sequence[str] = ()
) -> tuple[RunState, Decision | None]:
    """The closed state with its champion brought up to date, and the decision on the scored version if one was due.

    A round that asked some sites only decides nothing: no site may fare worse under a champion unseen. The closing visit asks all.

    Args:
        before: the state that was asked about; its model is the one that was scored.
        known: whether that version was judged on an earlier visit.
        failed: sites whose data did not pass the gate in the round that made that version.
    """
    if known or not (closed.scores or closed.compared) or closed.scored == 0 or closed.goal:
        return closed.state, None
    decision = judge(rule, closed.scores, closed.paired if closed.state.champion else None, failed, closed.worse)
    if not decision.promote:
        return closed.state, decision
    return replace(closed.state, champion=Champion(closed.scored, before.theta)), decision
