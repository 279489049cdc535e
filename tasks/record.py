"""What the ledger keeps of a visit besides the state, and what everything that people look at is made from: sums, counts, names, reasons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrounds.core.algorithm import Scores
from fedrounds.core.calibration import in_the_large
from fedrounds.core.evaluate import metrics, total, training_loss
from fedrounds.core.masked import TOGETHER
from fedrounds.core.personal import told
from fedrounds.core.plan import Plan
from fedrounds.core.promotion import Decision, Interval
from fedrounds.core.round import Closed
from fedrounds.ledger import Decision as Kept
from fedrounds.tasks.verdict import Verdict, counted, line
from fedrounds.tasks.ward import Ward


def record(
    plan: Plan,
    closed: Closed,
    wards: Mapping[str, Ward],
    verdicts: Mapping[str, Verdict],
    excluded: list[str],
    decision: Decision | None,
    factors: Mapping[str, float],
) -> dict[str, Any]:
    """JSON of a closed visit. `metrics` judge the model of round `scored`; `training` is its loss on training rows."""
    pooled, histogram = total(closed.scores)
    plain, weighted = training_loss(closed.training) if closed.training else (None, None)
    taking_part = (
        closed.heard
        or closed.counted
        or sorted((closed.scores or wards).keys() - closed.refused.keys() - set(excluded))
    )
    return {
        "scored": closed.scored if closed.scores or closed.compared else None,
        "metrics": metrics(plan.task, pooled, histogram) if closed.scores else {},
        "training": {} if plain is None else _training(closed, plain, weighted),
        **({"personal": _own(plan, closed.personal, closed.scores)} if closed.personal else {}),
        "sites": {name: _site(plan, closed, name, wards[name]) for name in taking_part},
        "histogram": histogram.tolist(),
        "refused": dict(closed.refused),
        "excluded": {name: line(verdicts[name]) for name in excluded},
        "warned": {name: line(verdicts[name]) for name in taking_part if name in verdicts and verdicts[name].failures},
        "gate": {name: _gate(verdict, factors.get(name, 1.0)) for name, verdict in verdicts.items()},
        "decision": decision and decided(decision),
        "champion": closed.state.champion and closed.state.champion.round,
        "calibration_drift": None if plan.task == "survival" else _calibration(closed, histogram),
        "masked": {"heard": len(closed.heard), "clipped": closed.clipped} if closed.heard else None,
    }


def decided(decision: Decision) -> dict[str, Any]:
    """JSON of a decision: its outcome and sentence, the paired differences (candidate − champion) and every check of the rule."""
    return {
        "promote": decision.promote,
        "reason": decision.reason,
        "outcome": decision.outcome,
        "paired": decision.paired and {**_interval(decision.paired), "confidence": decision.confidence},
        "sites": {site: _interval(found) for site, found in decision.sites.items()},
        "checks": [check._asdict() for check in decision.checks],
        **({"worse": decision.worse._asdict()} if decision.worse else {}),
    }


def as_row(decision: Decision, round: int, model: str) -> Kept:
    """The decision as a row of the ledger."""
    return Kept(round, decision.promote, decision.reason, model, pending=decision.outcome == "pending")


def _interval(found: Interval) -> dict[str, Any]:
    return {**found._asdict(), "n": counted(found.n)}


def _calibration(closed: Closed, histogram: Any) -> dict[str, Any] | None:
    """Calibration in the large of the scored model, over all and at each site where it is defined."""
    found = in_the_large({"": histogram, **{site: its for site, (_, its) in closed.scores.items() if site != TOGETHER}})
    defined = {site: large._asdict() for site, large in found.items() if large.ratio is not None}
    return defined.pop("") | {"sites": defined} if "" in defined else None


def _gate(verdict: Verdict, factor: float) -> dict[str, Any]:
    """`quarantined` is null for 1 to 9 rows; `factor` is what the site's λ was multiplied by."""
    return {
        "passed": verdict.passed,
        "action": verdict.action,
        "quarantined": verdict.quarantined,
        "factor": factor,
    }


def _training(closed: Closed, plain: float, weighted: float | None) -> dict[str, Any]:
    rows = sum(rows for rows, _, _ in closed.training.values())
    losses = {"train_loss": weighted} | (
        {} if closed.heard else {"train_loss_plain": plain}
    )  # under masks no site's own is known
    return {"patients": rows, **losses}


def _own(plan: Plan, personal: Scores, scores: Scores) -> dict[str, float]:
    """What these sites' own models are worth on their own rows, beside the global one on the same."""
    of_many = len(personal) > 1 or TOGETHER in personal
    return told(metrics(plan.task, *total(personal)), metrics(plan.task, *total(scores)), of_many)


def _site(plan: Plan, closed: Closed, name: str, ward: Ward) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes_in": ward.bytes_in, "bytes_out": ward.bytes_out}
    if closed.heard and closed.scores:
        found["masked"] = {"took_part": 1.0}
    if name in closed.scores:
        found["metrics"] = metrics(plan.task, *closed.scores[name])
    if name in closed.personal:
        found["personal"] = _own(plan, {name: closed.personal[name]}, {name: closed.scores[name]})
    if name in closed.training:
        rows, loss, share = closed.training[name]
        found["training"] = {"patients": rows, "train_loss": loss / rows, "weight": share}
        found["training"] |= {"epochs": float(closed.epochs[name])} if name in closed.epochs else {}
    return found
