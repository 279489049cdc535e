"""A model of its own at each site, beside the one of all. Its scores leave, on the rows that judge the other, at the same visit; of the model
itself nothing does, but for `Layers`, which the site's updates hold.

    own = lambda work, theta, memory: ...        # a site's own parameters, of the model that came in and of what the site remembers
    beside(algorithm, own, family, gradient, judge)

Any algorithm that answers with scores can be so wrapped, and knows nothing of it: what it trains, draws and sends stays the same bit for
bit. What trains an own model from round to round is a local rule's (`local.Ditto`); what makes one of the model at hand is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrounds.core.algorithm import Algorithm, Folded, Payload, SiteState, Sums
from fedrounds.core.errors import UpdateRejected
from fedrounds.core.frozen import Frozen, Rate
from fedrounds.core.local import Local, descent
from fedrounds.core.pace import Batch, Epochs, Gradient, Left, Own, Rule, Work, aside, walk
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.state import RunState

if TYPE_CHECKING:
    from fedrounds.core.models.family import Family
    from fedrounds.core.preprocess import Rows

SCORES, HISTOGRAM = "personal", "personal.histogram"  # what is sent of the own model
RANKS = (
    "auc",
    "auc_error",
    "concordance",
    "concordance_error",
)  # metrics that compare patients' scores: of one model alone
LESS = ("log_loss", "brier", "mse", "rmse", "distance")  # metrics of which less is better
Judge = Callable[[Array, Array, Array], tuple[Array, Array]]  # (prediction, losses, y) -> sums and histogram


class FineTune(Frozen):
    """The global model after some epochs at the site, anew at each visit and kept nowhere (Wang et al. 2019)."""

    kind: Literal["fine_tune"]
    rate: Rate = 0.05
    epochs: Epochs = 1
    batch: Batch = 32

    def own(self, layout: Layout) -> Own:
        """theta - rate * gradient, `epochs` times over the rows (Wang et al. 2019, Federated evaluation of on-device personalization)."""
        del layout

        def model(work: Work, theta: Vector, memory: SiteState) -> Vector:
            del memory
            return walk(descent(self.rate), work.gradient, theta, work.X, work.y, work.rng, self.epochs, self.batch)[0]

        return model


class Layers(Frozen):
    """Some layers are each site's own: it goes on from them, not from the global model's (Arivazhagan et al. 2019; Li et al. 2021, FedBN).

    The update still holds them, so the global model, which is registered and served, has their mean: a layer for a site that has none. Who sees
    a site's update therefore sees its layers; masks hide them.
    """

    kind: Literal["layers"]
    layers: tuple[str, ...] = Field(min_length=1)

    def own(self, layout: Layout) -> Own:
        """The model that came in, with the site's own layers as the last round left them; before the first it has none."""
        mine = places(self.layers, layout)

        def model(work: Work, theta: Vector, memory: SiteState) -> Vector:
            del work
            return _with(theta, mine, memory)

        return model

    def kept(self, rule: Rule, layout: Layout) -> Rule:
        """The local rule, begun from the site's own layers; what it leaves of them is remembered (Arivazhagan et al. 2019, FedPer, algorithm 1)."""
        mine = places(self.layers, layout)

        def visit(work: Work, theta: Vector, memory: SiteState, sent: Payload) -> Left:
            start = _with(theta, mine, memory)
            left = rule.visit(work, start, {}, sent)
            trained = start + left.delta
            return left._replace(delta=trained - theta, memory={"personal": trained[mine]})

        return rule._replace(visit=visit)


def places(layers: Iterable[str], layout: Layout) -> NDArray[np.bool_]:
    """(parameters,) which of them are in the layers, biases included."""
    marks = np.zeros(layout.size)
    for name, part in layout.split(marks).items():
        part[...] = name.removesuffix("_bias") in layers
    return marks > 0


def _with(theta: Vector, mine: NDArray[np.bool_], memory: SiteState) -> Vector:
    own = theta.copy()
    own[mine] = memory.get("personal", theta[mine])
    return own


Personal = Annotated[FineTune | Layers, Field(discriminator="kind")]


def beside(algorithm: Algorithm, own: Own, family: Family, gradient: Gradient, judge: Judge) -> Algorithm:
    """The algorithm, whose sites score a model of their own beside the one that came in.

    Args:
        own: of what the site remembered when it was asked. What it draws is drawn apart from what the algorithm draws.
        judge: of validation rows.

    Guarantees:
        * what the algorithm remembers, sends and makes of it is what it would be without;
        * of the own model nothing leaves beside what the algorithm sends but the two arrays that `judge` gives.

    Raises UpdateRejected, as replies are folded, where a site scored its own model on other rows than the global one.
    """

    def answer(payload: Payload, memory: SiteState, rows: Rows, rng: np.random.Generator) -> tuple[SiteState, Sums]:
        def loss(theta: Vector) -> float:
            return float(family.losses(family.predict(theta, rows.X), rows.y).mean())

        work = Work(gradient, loss, rows.X, rows.y, aside(rng))
        prediction = family.predict(own(work, payload["theta"], memory), rows.X_valid)
        scores, histogram = judge(prediction, family.losses(prediction, rows.y_valid), rows.y_valid)
        memory, sums = algorithm.answer(payload, memory, rows, rng)
        return memory, {**sums, SCORES: scores, HISTOGRAM: histogram}

    def fold(state: RunState, replies: Iterable[tuple[str, Sums]]) -> Folded:
        found: dict[str, tuple[Array, Array]] = {}

        def without() -> Iterator[tuple[str, Sums]]:
            for site, sums in replies:
                if sums[SCORES][0] != sums["scores"][0]:
                    raise UpdateRejected(
                        f"expected both models scored on the same rows at site '{site}', found its own scored on others: it was refused"
                    )
                found[site] = sums[SCORES], sums[HISTOGRAM]
                yield site, {name: array for name, array in sums.items() if name not in (SCORES, HISTOGRAM)}

        return replace(algorithm.fold(state, without()), personal=found)

    def shapes(exchange: int) -> dict[str, tuple[int, ...]]:
        plain = algorithm.shapes(exchange)
        return {**plain, SCORES: plain["scores"], HISTOGRAM: plain["histogram"]}

    return algorithm._replace(answer=answer, fold=fold, shapes=shapes)


def require(personal: Personal | None, local: Local, combine: str, layers: tuple[str, ...], noised: bool) -> None:
    """Raise ValueError where a site's own model does not go with the rest of the study.

    Args:
        combine: the kind of the combining rule.
        layers: of the model, by name; none where it has no layers.
        noised: whether differential privacy holds.
    """
    if (personal or local.own()) and noised:
        raise ValueError(
            "differential privacy lets nothing leave that is not noised, and scores of a site's own model are not: leave out algorithm.personal,"
            " and name another local rule than 'ditto'"
        )
    if not isinstance(personal, Layers):
        return
    strange = [name for name in personal.layers if name not in layers]
    if strange or set(personal.layers) == set(layers):
        raise ValueError(
            f"expected `layers` of algorithm.personal to be some of {', '.join(layers)}, found {', '.join(strange) or 'all'}"
            if layers
            else "layers of a site's own need a model that has layers: choose model 'mlp', or another kind of algorithm.personal"
        )
    if local.remembers or not local.alone:
        raise ValueError(
            f"'{local.kind}' reckons by how far a site went from the global model, and a site with layers of its own starts elsewhere: name another"
            " local rule"
        )
    if combine != "weighted_mean":
        raise ValueError(
            f"the global model's part of the layers is the mean of the sites', so expected combine 'weighted_mean', found '{combine}'"
        )


def gains(own: Mapping[str, float], shared: Mapping[str, float]) -> dict[str, float]:
    """By how much each metric of an own model is better than the global one's on the same rows: above 0 is better, whatever the metric.

    >>> gains({"n": 20.0, "auc": 0.75, "log_loss": 0.5}, {"n": 20.0, "auc": 0.5, "log_loss": 0.75})
    {'auc': 0.25, 'log_loss': 0.25}
    """
    both = [name for name in own if name in shared and name != "n" and not name.endswith("_error")]
    return {name: shared[name] - own[name] if name in LESS else own[name] - shared[name] for name in both}


def told(own: Mapping[str, float], shared: Mapping[str, float], of_many: bool = False) -> dict[str, float]:
    """What is recorded of an own model: its metrics, and its gains over the global one.

    Args:
        of_many: whether the metrics are of several sites' own models together. Then what ranks patients is left out: it would rank one
            model's scores among another's, and fall even where every site gains.

    >>> told({"n": 20.0, "mse": 2.0}, {"n": 20.0, "mse": 3.0})
    {'personal_mse': 2.0, 'personal_gain_mse': 1.0}
    """
    own = {name: value for name, value in own.items() if name != "n" and not (of_many and name in RANKS)}
    metrics = {f"personal_{name}": value for name, value in own.items()}
    return metrics | {f"personal_gain_{name}": value for name, value in gains(own, shared).items()}
