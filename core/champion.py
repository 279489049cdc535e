"""What a closed visit means for the champion: the model that came in was scored, so it can be judged now."""

from __future__ import annotations

from dataclasses import replace

from fedrounds.core.operations import Promotion
from fedrounds.core.promotion import Decision, judge, losses_of
from fedrounds.core.round import Closed
from fedrounds.core.state import Champion, RunState


def judged(before: RunState, closed: Closed, rule: Promotion, known: bool) -> tuple[RunState, Decision | None]:
    """The closed state with its champion brought up to date, and the decision on the scored version if one was due.

    Args:
        before: the state that was asked about; its model is the one that was scored.
        known: whether that version was judged on an earlier visit (then its scores are only noted).
    """
    champion = closed.state.champion
    if not closed.scores:
        return closed.state, None
    if champion and closed.champion_scores:
        champion = replace(champion, losses=losses_of(closed.champion_scores))
    if champion and champion.round == closed.scored:
        champion = replace(champion, losses=losses_of(closed.scores))
    decision = None
    if closed.scored > 0 and not known:
        decision = judge(rule, closed.scores, champion.losses if champion else None)
        if decision.promote:
            champion = Champion(closed.scored, before.theta, losses_of(closed.scores))
    return replace(closed.state, champion=champion), decision
