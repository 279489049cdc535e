"""Training under differential privacy of a hospital: each one's update is clipped, and the sum of all is noised (McMahan et al. 2018).

The clip may follow the updates (Andrew et al. 2021, algorithm 1): beside its update a hospital says by one bit whether it was within the clip,

    C <- C exp(-η (b - γ))          b: the noised share of hospitals that were, γ: the quantile that is aimed at

Updates travel in clips, so whatever clip a coordinator asks for, one hospital adds a vector of length 1 at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.pace import Gradient, Rule, Work
from fedrounds.core.params import Vector
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.hospital import BIT, Hospitals
from fedrounds.core.privacy.noise import SLACK
from fedrounds.core.server import ServerStep
from fedrounds.core.state import RunState

PACE = 0.2  # η, as the paper recommends


def clipped(delta: Vector, clip: float, bit: bool) -> Vector:
    """A hospital's update (size,) in clips, and the bit beside it: (size + 1,), or (size,) without `bit`.

    Guarantees:
        * at most 1 long, whatever is in it and whatever clip was asked for; one that is not finite is zero;
        * the bit is +BIT/2 where the update was within the clip, -BIT/2 where it was longer.
    """
    with np.errstate(all="ignore"):
        length = float(np.linalg.norm(delta)) / clip
        found = delta / clip * min(1.0, (1 - SLACK) / length) if length > 0 else delta * 0.0
    if not np.isfinite(length) or not np.isfinite(found).all():
        found, length = np.zeros_like(delta), np.inf
    return np.append(found, BIT / 2 if length <= 1 else -BIT / 2) if bit else found


def training(
    dp: Hospitals,
    size: int,
    gradient: Gradient,
    local: Rule,
    server: ServerStep,
    agreed: Mapping[str, tuple[int, ...]],
) -> Algorithm:
    """`averaging` over clipped updates that are noised together, and without scores."""
    adaptive = dp.quantile is not None

    def clip_of(state: RunState) -> float:
        return float(state.memory["clip"][0]) if "clip" in state.memory else dp.clip

    def ask(state: RunState) -> Payload:
        return {"theta": state.theta, "clip": np.array([clip_of(state)]), **state.statistics}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        theta, clip = payload["theta"], float(payload["clip"][0])
        delta = local.visit(Work(gradient, _unread, rows.X, rows.y, rng), theta, {}, {}).delta
        return memory, {"delta": clipped(delta, clip if clip > 0 else dp.clip, adaptive)}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        ((_, sums),) = replies
        clip, mean = clip_of(state), sums["delta"]
        memory, theta = server.step(state.memory, state.theta, clip * mean[:size])
        if dp.quantile is not None:
            within = min(max(0.5 + float(mean[size]) / BIT, 0.0), 1.0)
            memory = {**memory, "clip": np.array([clip * np.exp(-PACE * (within - dp.quantile))])}
        return Folded(replace(state, round=state.round + 1, theta=theta, memory=memory))

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"theta": (size,), "clip": (1,), **agreed}

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"delta": (dp.size(size),)}

    return Algorithm(ask, answer, fold, shapes, takes)


def _unread(theta: Vector) -> float:
    """Of a rule that heeds the loss: `core/local.py` lets none of these through."""
    raise NotImplementedError
