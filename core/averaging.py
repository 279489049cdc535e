"""Averaging algorithms: every site trains from the same model, the updates are combined, the server takes a step (DESIGN 1).

    theta <- step(theta, sum(lambda_i (theta_i - theta)) / sum(lambda_i))

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
from fedrounds.core.local import Gradient, Train
from fedrounds.core.models.family import Family
from fedrounds.core.params import Array
from fedrounds.core.preprocess import Rows
from fedrounds.core.rule import Rule, Told
from fedrounds.core.server import ServerStep
from fedrounds.core.state import RunState


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
    train: Train,
    combine: Rule,
    server: ServerStep,
    weight: Callable[[str, float], float],
) -> Algorithm:
    """Score the model, train on it, average: a local rule, a combining rule and a server step, in any combination.

    Args:
        gradient: of the objective that a site descends, penalties included.
        weight: (site, training rows) -> lambda; a reply that the coordinator gave a "factor" counts for that much of it.
    """

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        theta = payload["theta"]
        loss = float(family.losses(family.predict(theta, rows.X), rows.y).sum())
        delta = train(gradient, theta, rows.X, rows.y, rng) - theta
        memory, scores = score_only.answer(payload, memory, rows, rng)
        return memory, {"delta": delta, "train": np.array([len(rows.y), loss]), **scores}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total = combine.start(family.layout.size)
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
            _keep(site, sums, scores, compared)
        memory, theta = server.step(state.memory, state.theta, combine.finish(total))
        losses = {site: loss / rows for site, (rows, loss, _) in training.items()}
        memory = {**memory, **combine.after(state.memory, losses)}
        return Folded(replace(state, round=state.round + 1, theta=theta, memory=memory), scores, compared, training)

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        return {"delta": (family.layout.size,), "train": (2,), **score_only.shapes(exchange)}

    return Algorithm(score_only.ask, answer, fold, shapes, score_only.takes)


def _keep(site: str, sums: Sums, scores: dict[str, tuple[Array, Array]], compared: dict[str, Array]) -> None:
    scores[site] = sums["scores"], sums["histogram"]
    if "paired" in sums:
        if sums["paired"][0] != sums["scores"][0]:
            raise UpdateRejected(
                f"expected both models scored on the same rows at site '{site}', found differences of others: it was refused"
            )
        compared[site] = sums["paired"]
