"""A study under differential privacy whose sums are masked: sites make the noise together, so the sum is noised once and not once a site.

Round 0 is the vector of `private.statistics`. A training round is so many steps of gradient descent, each an exchange of its own:

    site         Σ_{i drawn} clip_C(g_i(theta))                    each patient drawn with probability q, put on a grid, noised by a share
    coordinator  theta <- theta - rate * ( sum of all / (K q n) + l2 * theta )          K: the weight of those who were heard

The model of the round goes through the server's step when the last exchange has closed. What an exchange's answer costs is one event, with
the noise that a sum has at least; an answer that is asked for again, under other masks, is another one and costs again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import sqrt

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import Ask
from fedrounds.core.models.family import Family
from fedrounds.core.preprocess import Cohort, Rows
from fedrounds.core.privacy import compared, private, sufficient
from fedrounds.core.privacy.dpsgd import clipping
from fedrounds.core.privacy.grid import Grid
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.noise import Bits, Gaussian
from fedrounds.core.privacy.noised import Noised, made
from fedrounds.core.privacy.patient import Differential
from fedrounds.core.server import ServerStep
from fedrounds.core.state import RunState
from fedrounds.core.study import Study

ROWS = 2.0**24  # of a site: beyond it statistics are cut off
HEARD = "heard"  # (3,) how many are in the sum, told what noise it can do without, and are on the roster: all public


def grids(study: Study, ask: Ask, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Grid]:
    """By which grid each sum travels.

    Guarantees:
        * all that is made of rows is noised; the weight beside an update is the study's own.

    Raises UpdateRejected where a sum is none of these.
    """
    dp, masked = study.privacy.dp, study.masked
    assert dp is not None
    assert masked is not None
    found: dict[str, Grid] = {}
    for name, shape in shapes.items():
        match name:
            case "delta":
                if isinstance(dp, Hospitals):  # in clips
                    bound, mechanism = 2.0, dp.mechanism(shape[0])
                else:
                    bound = dp.clip * dp.patients
                    mechanism = Gaussian(dp.clip, dp.training_event().multiplier, shape[0])
                found[name] = Noised(np.array(bound), masked.bits, mechanism=mechanism, colluders=dp.colluders)
            case "noised":
                found[name] = Noised(np.array(ROWS), mechanism=_counts(study, dp, shape[0]), colluders=dp.colluders)
            case compared.NAME if isinstance(dp, Differential) and dp.scores:
                found[name] = Noised(np.array(ROWS), mechanism=compared.mechanism(dp), colluders=dp.colluders)
            case sufficient.NAME if isinstance(dp, Differential):
                sums = sufficient.mechanism(dp, sufficient.columns_of(shape[0]))
                found[name] = Noised(np.array(sums.sensitivity * ROWS), mechanism=sums, colluders=dp.colluders)
            case "weight":
                found[name] = Grid(np.array(2.0**30))
            case _:
                raise UpdateRejected(
                    f"expected noised numbers alone under differential privacy, found '{name}' in an answer to '{ask}'"
                )
    return found


def _counts(study: Study, dp: Differential | Hospitals, size: int) -> Gaussian:
    return Gaussian(private.sensitivity(study), dp.statistics_event().multiplier, size)


def surplus(dp: Differential | Hospitals, sums: Sums) -> float:
    """How many times the variance that is accounted for is in a sum, from who was heard of whom: `heard` (3,)."""
    heard, told, sites = (int(number) for number in sums[HEARD])
    return made(heard, told, sites, dp.colluders)


def statistics(study: Study, dp: Differential | Hospitals) -> Algorithm:
    """Round 0: what a site answers is noised as it becomes words, and not before.

    Guarantees:
        * where a hospital is protected, it sends means over its own rows: as long as one patient's part at most.

    Raises UpdateRejected, when asked, in any exchange but the first.
    """
    whole = isinstance(dp, Hospitals)
    apart = private.statistics(study, dp)
    size = apart.shapes(0)["noised"][0]

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        ((_, sums),) = replies
        total = np.append(sums[HEARD][0], sums["noised"][1:]) if whole else sums["noised"]
        noise = _counts(study, dp, size).deviation * sqrt(surplus(dp, sums))
        return Folded(replace(state, exchange=0, work={}, statistics=private.agreed(total, study, noise)))

    def answer(payload: Payload, memory: SiteState, data: Cohort, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del payload, rng
        vector = private.vector(data.values[~data.valid], study)
        return memory, {"noised": vector / max(float(vector[0]), 1.0) if whole else vector}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        if exchange:
            raise UpdateRejected(f"expected statistics in one exchange, was asked for exchange {exchange}")
        return {}

    return Algorithm(apart.ask, answer, fold, apart.shapes, takes)


def training(
    study: Study, dp: Differential, family: Family, server: ServerStep, agreed: Mapping[str, tuple[int, ...]]
) -> Algorithm:
    """A round of `dp.steps` exchanges (Abadi et al. 2016, algorithm 1). Raises UpdateRejected, when asked, in any after them."""
    size, rate = family.layout.size, study.averaging.local.rate
    clipped = clipping(study.model, family.layout, study.target.kind, dp.clip)
    penalty = study.model.penalty * family.penalised

    def ask(state: RunState) -> Payload:
        return {"theta": state.work.get("theta", state.theta), **state.statistics}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        drawn = np.flatnonzero(Bits().chosen(dp.sample_rate, (len(rows.y),)))
        return memory, {"delta": clipped(payload["theta"], rows.X[drawn], rows.y[drawn])}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        ((_, sums),) = replies
        theta = state.work.get("theta", state.theta)
        theta = theta - rate * (sums["delta"] / dp.batch + penalty * theta)
        if state.exchange + 1 < dp.steps:
            return Folded(replace(state, exchange=state.exchange + 1, work={"theta": theta}))
        memory, theta = server.step(state.memory, state.theta, theta - state.theta)
        return Folded(replace(state, round=state.round + 1, exchange=0, work={}, theta=theta, memory=memory))

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        if exchange >= dp.steps:
            raise UpdateRejected(f"expected a round of {dp.steps} exchanges, was asked for exchange {exchange}")
        return {"theta": (size,), **agreed}

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"delta": (size,)}

    return Algorithm(ask, answer, fold, shapes, takes)
