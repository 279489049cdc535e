"""Whether the latest version becomes champion: one rule, and one sentence that says why."""

from __future__ import annotations

from typing import NamedTuple

from fedrounds.core.algorithm import Scores
from fedrounds.core.operations import Promotion
from fedrounds.core.state import Losses


class Decision(NamedTuple):
    """What was decided, and the sentence that goes on record."""

    promote: bool
    reason: str


def losses_of(scores: Scores) -> Losses:
    """site -> (validation rows, sum of their losses); sites without validation rows have no say."""
    return {site: (float(sums[0]), float(sums[1])) for site, (sums, _) in scores.items() if sums[0] > 0}


def judge(rule: Promotion, candidate: Scores, champion: Losses | None) -> Decision:
    """Compare two models on the same validation rows: those of every site that scored both.

    The pooled mean loss must fall by more than `rule.improvement`, and no site's mean loss may rise by more than `rule.margin`.

    >>> import numpy as np
    >>> scores = {"east": (np.array([10.0, 4.0, 0.0, 0.0]), np.zeros(0)), "west": (np.array([10.0, 7.0, 0.0, 0.0]), np.zeros(0))}
    >>> judge(Promotion(margin=0.05), scores, {"east": (10.0, 6.0), "west": (10.0, 6.0)}).reason
    "kept the champion: the loss at 'west' rose by 0.1 from 0.6 to 0.7, the margin is 0.05 (pooled 0.6 to 0.55)"
    """
    if champion is None:
        return Decision(True, "promoted: it is the first model")
    ours = losses_of(candidate)
    shared = sorted(site for site in ours if site in champion and champion[site][0] > 0)
    if not shared:
        return Decision(False, "kept the champion: no site has scored both models")
    after, before = _pooled(ours, shared), _pooled(champion, shared)
    rise = {site: _pooled(ours, [site]) - _pooled(champion, [site]) for site in shared}
    worst = max(shared, key=lambda site: rise[site])
    pooled = f"pooled {before:.4g} to {after:.4g}"
    if rise[worst] > rule.margin:
        was, now = _pooled(champion, [worst]), _pooled(ours, [worst])
        return Decision(
            False,
            f"kept the champion: the loss at '{worst}' rose by {rise[worst]:.4g} from {was:.4g} to {now:.4g},"
            f" the margin is {rule.margin:.4g} ({pooled})",
        )
    if not before - after > rule.improvement:
        return Decision(
            False,
            f"kept the champion: the loss changed by {after - before:+.4g} ({pooled}) and had to fall by more than"
            f" {rule.improvement:.4g}; worst at '{worst}', {rise[worst]:+.4g}",
        )
    return Decision(
        True,
        f"promoted: the loss fell by {before - after:.4g} ({pooled}) over {len(shared)} sites; worst at '{worst}', {rise[worst]:+.4g}",
    )


def _pooled(losses: Losses, sites: list[str]) -> float:
    """Mean loss over the rows of these sites."""
    return sum(losses[site][1] for site in sites) / sum(losses[site][0] for site in sites)
