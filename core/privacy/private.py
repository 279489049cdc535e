"""What a study under differential privacy asks of a site, in place of what a study without asks: one noised vector of statistics in round 0,
noised updates after that, noised comparisons with the champion where it says so (`compared.py`), and nothing else. Losses, scores, histograms
and profiles stay at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import sqrt

import numpy as np

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.combine import Rule
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.messages import Ask
from fedrounds.core.models.family import Family
from fedrounds.core.params import Array, Vector
from fedrounds.core.preprocess import Cohort, Rows, standardised
from fedrounds.core.privacy.accounting import Event
from fedrounds.core.privacy.dpsgd import Descent, clipping, descend
from fedrounds.core.privacy.hospital import Hospitals
from fedrounds.core.privacy.noise import Bits, Gaussian
from fedrounds.core.privacy.patient import Differential
from fedrounds.core.server import ServerStep
from fedrounds.core.state import RunState
from fedrounds.core.study import Category, Feature, Number, Study

NARROWEST = 0.02  # of half a range: no number's standard deviation is taken to be less, nor its square less than the noise in it
VARIANCE = 2.0  # the noise in a variance over that in a sum, about: E x² - (E x)² takes it twice
LEAVES: Mapping[Ask, frozenset[str]] = {
    "statistics": frozenset({"noised"}),
    "train": frozenset({"delta", "moments"}),
    "score": frozenset({"compared"}),
}


def events(study: Study, ask: str, champion: bool = False) -> tuple[Event, ...]:
    """What answering costs, to be reserved before a row is touched; nothing without differential privacy, and nothing for what tells nothing.

    Args:
        champion: whether a champion is asked about beside the model.
    """
    dp = study.privacy.dp
    if isinstance(dp, Differential) and dp.scores and ask == "score" and champion:
        return (dp.scores_event(),)
    if dp is None or ask not in ("statistics", "train"):
        return ()
    trained = (
        dp.training_event()._replace(times=1) if study.masked else dp.training_event()
    )  # under masks a step is an exchange
    return (dp.statistics_event() if ask == "statistics" else trained,)


def only_noised(study: Study, ask: Ask, sums: Sums) -> Sums:
    """The sums as they are, each of its shape, at the wall.

    Guarantees:
        * under differential privacy nothing leaves but what was made with noise and is charged, whatever an algorithm hands over. (Under
          masks it gets its noise on the way from here into words: `joint.grids`.)

    Raises:
        UpdateRejected: there is more.
    """
    if study.privacy.dp is not None and sums.keys() - LEAVES.get(ask, frozenset()):
        raise UpdateRejected(
            f"expected noised numbers alone under differential privacy, found {len(sums)} arrays in an answer to '{ask}'"
        )
    return sums


# --- round 0 ----------------------------------------------------------------------------------------------------------


def shares_of(feature: Feature) -> int:
    """How many numbers of the vector a feature takes: Σx, Σ(x² - 1/2) and missing values of a number; a count for each level and others."""
    return 3 if isinstance(feature, Number) else len(feature.categories) + 1


def sensitivity(study: Study) -> float:
    """How far one patient moves the vector: √(1 + 5/4 of each number + 1 of each category).

    With x in [-1, 1] a number adds (x, x² - 1/2, 0), whose square is x² + (x² - 1/2)² <= 5/4, or (0, 0, 1) where it is missing.
    """
    return sqrt(1 + sum(1.25 if isinstance(feature, Number) else 1.0 for feature in study.features))


def statistics(study: Study, dp: Differential | Hospitals) -> Algorithm:
    """Round 0 in one exchange, with one vector and one draw of noise.

    Guarantees:
        * numbers are clipped to the dictionary's ranges, never to the data's;
        * a patient moves the vector by at most `sensitivity`.

    Source: `noise.Gaussian` (Canonne, Kamath and Steinke 2020); what the vector is made of is our own.
    """
    size = 1 + sum(shares_of(feature) for feature in study.features)

    def mechanism() -> Gaussian:
        return Gaussian(sensitivity(study), dp.statistics_event().multiplier, size)

    def answer(payload: Payload, memory: SiteState, data: Cohort, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del payload, rng
        return memory, {"noised": mechanism().release(vector(data.values[~data.valid], study), Bits())}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total, sites = np.zeros(size), 0
        for _, sums in replies:
            total, sites = total + sums["noised"], sites + 1
        noise = mechanism().deviation * sqrt(sites)
        return Folded(replace(state, exchange=0, work={}, statistics=agreed(total, study, noise)))

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"noised": (size,)}

    return Algorithm(_asks_nothing, answer, fold, shapes, _none)


def vector(values: Array, study: Study) -> Vector:
    """(1 + shares of each feature,) rows, and what each feature adds; values (n, features)."""
    parts: list[Array] = [np.array([float(len(values))])]
    for j, feature in enumerate(study.features):
        known = values[~np.isnan(values[:, j]), j]
        if isinstance(feature, Category):
            parts.append(np.bincount(known.astype(np.intp), minlength=shares_of(feature)).astype(np.float64))
        else:
            middle, half = _middle(feature)
            x = np.clip((known - middle) / half, -1.0, 1.0)
            parts.append(np.array([x.sum(), (x * x - 0.5).sum(), float(len(values) - len(known))]))
    return np.concatenate(parts)


def _middle(feature: Number) -> tuple[float, float]:
    assert feature.range is not None  # `Differential.require` asks for it
    low, high = feature.range
    return (low + high) / 2, (high - low) / 2


def agreed(total: Vector, study: Study, noise: float = 0.0) -> dict[str, Array]:
    """What to impute, centre and scale by. All of it is made from noised sums, so it may be worked on at will.

    Args:
        total: (1 + shares of each feature,) as `vector` gives it, of all sites.
        noise: standard deviation of what is in each number of `total`. A variance that drowns in it is taken to be as large as it is: a
            feature divided by too small a number would swamp all others.
    """
    rows, start = max(float(total[0]), 1.0), 1
    impute, center, scale = np.zeros(len(study.features)), list[float](), list[float]()
    for j, feature in enumerate(study.features):
        part = total[start : start + shares_of(feature)]
        start += shares_of(feature)
        if isinstance(feature, Number):
            middle, half = _middle(feature)
            missing = float(np.clip(part[2], 0.0, rows - 1))
            known = rows - missing
            mean = float(np.clip(part[0] / known, -1.0, 1.0))
            square = float(np.clip(part[1] / known + 0.5, mean * mean + NARROWEST**2, 1.0 + NARROWEST**2))
            filled = mean if feature.impute == "mean" else (feature.impute - middle) / half
            share = missing / rows
            average = (1 - share) * mean + share * filled
            least = max(NARROWEST**2, VARIANCE * noise / known)
            spread = (1 - share) * square + share * filled * filled - average * average
            impute[j] = middle + half * filled if feature.impute == "mean" else feature.impute
            center.append(middle + half * average)
            scale.append(half * sqrt(max(spread, least)))
        else:
            counts = np.maximum(part, 0.0)
            impute[j] = np.argmax(counts)
            counts[int(impute[j])] += max(rows - counts.sum(), 0.0)
            rates = counts / max(counts.sum(), 1.0)
            for rate in rates[1:-1] if feature.encode == "drop_first" else rates:
                center.append(float(rate))
                scale.append(sqrt(max(float(rate * (1 - rate)), NARROWEST)))
    chosen = standardised(study)
    return {"impute": impute, "center": np.where(chosen, center, 0.0), "scale": np.where(chosen, scale, 1.0)}


# --- training ---------------------------------------------------------------------------------------------------------


def training(
    study: Study,
    dp: Differential,
    family: Family,
    combine: Rule,
    server: ServerStep,
    weight: Callable[[str, float], float],
    agreed: Mapping[str, tuple[int, ...]],
) -> Algorithm:
    """`averaging` with a site's update made by `dpsgd`, and without scores."""
    size = family.layout.size
    clipped, penalty = (
        clipping(study.model, family.layout, study.target.kind, dp.clip),
        study.model.penalty * family.penalised,
    )

    def ask(state: RunState) -> Payload:
        return {"theta": state.theta, **state.statistics}

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del rng
        mechanism = Gaussian(dp.clip, dp.training_event().multiplier, size)
        how = Descent(study.averaging.local.rate, dp.steps, dp.sample_rate, dp.batch, mechanism)
        theta = payload["theta"]
        return memory, {"delta": descend(clipped, penalty, how, theta, rows.X, rows.y) - theta}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        total = combine.start(size)
        for site, sums in replies:
            total = combine.add(total, sums["delta"], weight(site, 1.0) * float(sums.get("factor", 1.0)))
        memory, theta = server.step(state.memory, state.theta, combine.finish(total))
        return Folded(replace(state, round=state.round + 1, theta=theta, memory=memory))

    def takes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"theta": (size,), **agreed}

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        del exchange
        return {"delta": (size,)}

    return Algorithm(ask, answer, fold, shapes, takes)


def silent(trained: Algorithm) -> Algorithm:
    """Being asked for scores: a model comes in, nothing comes back."""

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        del payload, rows, rng
        return memory, {}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        for _ in replies:
            pass
        return Folded(state)

    return Algorithm(trained.ask, answer, fold, _none, trained.takes)


def _asks_nothing(state: RunState) -> Payload:
    del state
    return {}


def _none(exchange: int) -> dict[str, tuple[int, ...]]:
    del exchange
    return {}
