"""`scores` under differential privacy of patients: whether a version is better than the champion, told by one noised vector and nothing else.

Of each validation patient d = loss(version) - loss(champion) is cut to [-c, c]. With x = d / c a site adds up over its patients

    ( .4 n,  Σ x,  .8 Σ (x² - 1/2) )                one patient: .16 + x² + .64 (x² - 1/2)² <= 1.32, reached at |x| = 1

and releases it once, by a discrete Gaussian (`noise.Gaussian`); under masks sites make that noise together (`noised.Noised`). n and the squares
weigh less than Σ x, so they get more of the noise: it is Σ x that decides. What is folded is [n, Σd, Σd²] and the variances of the noise in
each, which add up over sites as the sums do. No paper: the release is `noise.Gaussian` (Canonne, Kamath and Steinke 2020), the vector our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import sqrt

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.evaluate import PAIRED
from fedrounds.core.models.family import Family
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Rows
from fedrounds.core.privacy.noise import Bits, Gaussian
from fedrounds.core.privacy.patient import Differential, Scores
from fedrounds.core.state import RunState

NAME = "compared"  # of the vector in an answer
COUNT, SQUARES = 0.4, 0.8  # weights of n and of Σ (x² - 1/2) beside Σ x
SENSITIVITY = sqrt(COUNT**2 + 1 + SQUARES**2 / 4)


def mechanism(dp: Differential) -> Gaussian:
    """How a comparison is released.

    Guarantees:
        * a patient moves the vector by at most the sensitivity, whatever the losses are: one that is not a number counts as all the version's fault.
    """
    return Gaussian(SENSITIVITY, dp.scores_event().multiplier, PAIRED)


def vector(losses: Array, others: Array, clip: float) -> Vector:
    """(3,) of two models' losses (n,) on the same patients.

    >>> vector(np.array([1.0, 9.0]), np.array([0.5, 0.0]), 1.0).tolist()
    [0.8, 1.5, 0.2]
    """
    with np.errstate(invalid="ignore"):
        x = np.clip(np.nan_to_num((losses - others) / clip, nan=1.0), -1.0, 1.0)
    return np.array([COUNT * len(x), x.sum(), SQUARES * (x * x - 0.5).sum()])


def sums(found: Vector, clip: float) -> Vector:
    """(3,) `[n, Σd, Σd²]` of a vector (3,), or of a sum of some.

    >>> sums(vector(np.array([1.0, 9.0]), np.array([0.5, 0.0]), 1.0), 1.0).tolist()
    [2.0, 1.5, 1.25]
    """
    n = found[0] / COUNT
    return np.array([n, clip * found[1], clip * clip * (found[2] / SQUARES + n / 2)])


def variances(deviation: float, clip: float) -> Vector:
    """(3,) of the noise in `[n, Σd, Σd²]`, where each number of the vector has noise of this standard deviation."""
    one = deviation * deviation
    return one * np.array([1 / COUNT**2, clip**2, clip**4 * (1 / SQUARES**2 + 1 / (4 * COUNT**2))])


def comparing(
    dp: Differential,
    scores: Scores,
    family: Family,
    agreed: Mapping[str, tuple[int, ...]],
    together: Callable[[Sums], float] | None = None,
) -> Algorithm:
    """Being asked for scores: the version and the champion come in, one noised vector goes out; without a champion nothing does.

    Args:
        together: under masks, from what is known of a sum how many times the noise's variance that is accounted for is in it; noise is then
            made on the way into words.

    Guarantees:
        * a version is compared once `scores.every` rounds, so no schedule releases more than is accounted for;
        * without a champion nothing is computed of the rows, and the first version that is due becomes champion for nothing.

    Raises UpdateRejected, when asked, in any exchange but the first.
    """
    model = (family.layout.size,)

    def ask(state: RunState) -> Payload:
        payload = {"theta": state.theta, **state.statistics}
        if state.champion and state.champion.round != state.round and scores.due(state.round):
            payload["champion"] = state.champion.theta
        return payload

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        if "champion" not in payload:
            return memory, {}
        losses, others = (
            family.losses(family.predict(payload[name], rows.X_valid), rows.y_valid) for name in ("theta", "champion")
        )
        found = vector(losses, others, scores.clip)
        return memory, {NAME: found if together else sums(mechanism(dp).release(found, Bits()), scores.clip)}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        paired: dict[str, Array] = {}
        for site, said in replies:
            if NAME in said and together:
                noise = mechanism(dp).deviation * sqrt(together(said))
                paired[site] = np.append(sums(said[NAME], scores.clip), variances(noise, scores.clip))
            elif NAME in said:
                paired[site] = np.append(said[NAME], variances(mechanism(dp).deviation, scores.clip))
        return Folded(state, paired=paired, compared=scores.due(state.round) and (bool(paired) or not state.champion))

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {}

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        if exchange:
            raise UpdateRejected(f"expected to be asked for scores in one exchange, was asked for exchange {exchange}")
        return {"theta": model, "champion": model, **agreed}

    return Algorithm(ask, answer, fold, shapes, takes)
