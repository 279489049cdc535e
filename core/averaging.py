"""Averaging algorithms: every site trains from the same model, the updates are combined, the server takes a step (DESIGN 1).

    theta <- step(theta, sum(lambda_i (theta_i - theta)) / sum(lambda_i))

A local rule may send something with the model, get something back beside the update, and make something of it before the server steps
(`pace.Rule`). What it keeps at the coordinator is in the state's memory, by `local.NAME`, beside the server's own.

A visit scores the model that came in before training on it, on validation rows: the scores of round r's model arrive with the
replies of round r + 1, and `scoring` fetches those of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.evaluate import SUMS, Task, histogram_shape, paired, score
from fedrounds.core.models.family import Family
from fedrounds.core.pace import Gradient, Work
from fedrounds.core.pace import Rule as LocalRule
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Rows
from fedrounds.core.rule import Rule, Told
from fedrounds.core.server import ServerStep
from fedrounds.core.state import RunState

LOCAL = "local."  # what a local rule keeps at the coordinator is called so


def scoring(family: Family, task: Task, classes: int, bins: int, agreed: Mapping[str, tuple[int, ...]]) -> Algorithm:
    """Score the current model, and beside it the champion if that is another one; change nothing.

    Args:
        agreed: shapes of the preprocessing statistics, which every request carries.
    """

    def ask(state: RunState) -> Payload:
        payload = {"theta": state.theta, **state.statistics}
        if state.champion and state.champion.round != state.round:
            payload["champion"] = state.champion.theta
        return payload

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        sums: dict[str, Array] = {}
        prediction = family.predict(payload["theta"], rows.X_valid)
        losses = family.losses(prediction, rows.y_valid)
        sums["scores"], sums["histogram"] = score(task, prediction, losses, rows.y_valid, bins)
        if "champion" in payload:
            others = family.losses(family.predict(payload["champion"], rows.X_valid), rows.y_valid)
            sums["paired"] = paired(losses, others)
        return memory, sums

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        scores: dict[str, tuple[Array, Array]] = {}
        compared: dict[str, Array] = {}
        for site, sums in replies:
            _keep(site, sums, scores, compared)
        return Folded(state, scores, compared)

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"scores": (SUMS,), "histogram": histogram_shape(task, classes, bins)}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        model = (family.layout.size,)
        return {"theta": model, "champion": model, **agreed}

    return Algorithm(ask, answer, fold, shapes, takes)


def averaging(
    score_only: Algorithm,
    family: Family,
    gradient: Gradient,
    local: LocalRule,
    combine: Rule,
    server: ServerStep,
    weight: Callable[[str, float], float],
) -> Algorithm:
    """Score the model, train on it, average: a local rule, a combining rule and a server step, in any combination.

    Args:
        gradient: of the objective that a site descends, penalties included.
        weight: (site, training rows) -> lambda; a reply that the coordinator gave a "factor" counts for that much of it.

    Raises UpdateRejected, as replies are folded, where an update is of no patients, or differences are of other rows than scores.

    Source: McMahan et al. (2017), algorithm 1; with a server step Reddi et al. (2021), algorithm 1.
    """

    size = family.layout.size

    def ask(state: RunState) -> Payload:
        return {**score_only.ask(state), **local.asks(_kept(state.memory), state.round, size)}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        theta = payload["theta"]

        def losses(theta: Vector) -> Array:
            return family.losses(family.predict(theta, rows.X), rows.y)

        def loss(theta: Vector) -> float:
            return float(losses(theta).mean())

        work = Work(gradient, loss, rows.X, rows.y, rng)
        trained = np.array([len(rows.y), losses(theta).sum()])
        delta, memory, beside = local.visit(work, theta, memory, payload)
        memory, scores = score_only.answer(payload, memory, rows, rng)
        return memory, {"delta": delta, "train": trained, **beside, **scores}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total, names = combine.start(size), local.beside(size)
        heard: dict[str, tuple[float, Sums]] = {}
        scores: dict[str, tuple[Array, Array]] = {}
        compared: dict[str, Array] = {}
        training: dict[str, tuple[float, float, float]] = {}
        for site, sums in replies:
            rows, loss = (float(value) for value in sums["train"])
            if rows < 1:
                raise UpdateRejected(f"expected an update trained on patients, found {rows:g} rows at site '{site}'")
            share = weight(site, rows)
            if "factor" in sums:  # the coordinator's: a site that counts for less
                share *= float(sums["factor"])
            update, share = combine.counted(state.memory, sums["delta"], Told(site, share, loss / rows))
            total = combine.add(total, update, share)
            training[site] = rows, loss, share
            heard[site] = share, {name: sums[name] for name in names}
            _keep(site, sums, scores, compared)
        kept, update = local.close(_kept(state.memory), combine.finish(total), heard)
        own = {name: array for name, array in state.memory.items() if not name.startswith(LOCAL)}
        memory, theta = server.step(own, state.theta, update)
        losses = {site: loss / rows for site, (rows, loss, _) in training.items()}
        memory = {**memory, **combine.after(state.memory, losses)}
        memory |= {f"{LOCAL}{name}": array for name, array in kept.items()}
        return Folded(replace(state, round=state.round + 1, theta=theta, memory=memory), scores, compared, training)

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        return {"delta": (size,), "train": (2,), **local.beside(size), **score_only.shapes(exchange)}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        return {**score_only.takes(exchange), **local.sends(size)}

    return Algorithm(ask, answer, fold, shapes, takes)


def _kept(memory: Mapping[str, Vector]) -> Mapping[str, Vector]:
    """What the local rule left at the coordinator."""
    return {name.removeprefix(LOCAL): array for name, array in memory.items() if name.startswith(LOCAL)}


def _keep(site: str, sums: Sums, scores: dict[str, tuple[Array, Array]], compared: dict[str, Array]) -> None:
    scores[site] = sums["scores"], sums["histogram"]
    if "paired" in sums:
        if sums["paired"][0] != sums["scores"][0]:
            raise UpdateRejected(
                f"expected both models scored on the same rows at site '{site}', found differences of others: it was refused"
            )
        compared[site] = sums["paired"]
