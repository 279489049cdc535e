"""Newton's method by sums: each site adds up its loss, gradient and Hessian at a point, the coordinator steps to the next.

    totals(at) = sum over all patients           at <- at - H⁻¹ g, half of it again while the loss rises

It ends where a step would move no number by more than the tolerance, and what it ends with was evaluated at that very point.
Source: Nocedal and Wright (2006), Numerical Optimization, section 3.3 and algorithm 3.1; for generalised linear models it is the
iteratively reweighted least squares of McCullagh and Nelder (1989), section 2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.params import Array, Vector
from fedrounds.core.strategy import Exact as Settings

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows

Begin = Callable[[Vector, Sums], Vector | None]
Evaluate: TypeAlias = "Callable[[Vector, Rows], Mapping[str, Array]]"
SINGULAR = 1e-11  # of a Hessian scaled to a unit diagonal: below this smallest eigenvalue its columns are one another's
HALVINGS = 30
NEAR = 1e-6  # a step, beside the number that it moves, below which a fit is as good as there
PATIENCE = 12  # exchanges after which steps that shrink no more are those of a coefficient on its way to infinity


def newton(
    evaluate: Evaluate,
    names: tuple[str, ...],
    settings: Settings,
    l2: float = 0.0,
    penalised: Vector | None = None,
    known: int = 0,
    more: Shapes | None = None,
    begin: Begin | None = None,
    grain: float = 0.0,
) -> Exact:
    """A damped Newton fit.

    Args:
        evaluate: (theta, rows) -> the site's sums over patients: `loss` (1,), `gradient` (p,) and `hessian` (p, p) of it, positive
            semi-definite; `rows` (1,) what its patients count for; and whatever `more` names.
        names: of the p parameters, for messages.
        settings: the tolerance, and the most exchanges.
        l2: the penalty l2/2 |theta|² beside the mean loss, where `penalised` (p,) is 1.
        known: how many parameters at the end are not fitted, but stay as they are.
        more: shapes of further sums; their totals at the solution are among its facts, with `hessian` and `rows`.
        begin: (at, totals) -> where to start instead, None: here is well; asked after the first exchange.
        grain: by how much the total loss may be off, where sums are rounded to be hidden: a rise by less is none.

    Raises:
        NoFit: the parameters are not settled by the data: collinear or empty columns, separation, no convergence.
    """
    size, free = len(names), slice(0, len(names) - known)
    shapes: Shapes = {"rows": (1,), "loss": (1,), "gradient": (size,), "hessian": (size, size), **(more or {})}
    penalty = l2 * (np.zeros(size) if penalised is None else penalised)

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del facts
        return {"at": theta, "turn": np.zeros(2)}

    def sums(asked: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        return memory, evaluate(asked["at"], rows)

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        at, (turn, halved) = work["at"], work["turn"]
        if begin and not turn and (better := begin(at, totals)) is not None:
            return Solved(at, {"at": better, "turn": np.array([1.0, 0.0])}, False)
        rows = float(totals["rows"][0])
        loss = float(totals["loss"][0]) + rows / 2 * float(penalty @ (at * at))
        # The loss of other patients says nothing of a step: whoever is lost midway, it is a new beginning from here
        same = "best" in work and float(work["best"][1]) == rows
        near = same and float(work["longest"][0]) < NEAR  # there rounding says more of the loss than the step does
        if same and not near and not loss <= float(work["best"][0]) + 1e-12 * abs(loss) + grain:
            return _half(work, turn, halved, settings, names)
        hessian = totals["hessian"][free, free] + rows * np.diag(penalty[free])
        gradient = totals["gradient"][free] + rows * (penalty * at)[free]
        _require_settled(hessian, names, at, turn)
        scale = 1 / np.sqrt(np.diag(hessian))
        step = np.zeros(size)
        step[free] = -scale * np.linalg.solve(scale[:, None] * hessian * scale, scale * gradient)
        longest = float(np.max(np.abs(step[free]) / (np.minimum(scale, 1.0) + np.abs(at[free]))))
        # Sums that were rounded, to be hidden, leave steps that no longer shrink
        if longest <= settings.tolerance or (near and longest > float(work["longest"][0]) / 2):
            facts = {name: totals[name] for name in shapes if name not in ("loss", "gradient")}
            return Solved(at, {}, True, {**facts, "loss": np.array([loss])})
        if turn >= PATIENCE and same and (led := _lasting(step, work["step"], names)):
            raise NoFit(_separated(led))
        if turn + 1 >= settings.exchanges:
            raise NoFit(_runs_away(names, at, settings.exchanges))
        going = {"from": at, "step": step, "best": np.array([loss, rows]), "longest": np.array([longest])}
        return Solved(at, {"at": at + step, "turn": np.array([turn + 1, 0.0]), **going}, False)

    def shapes_of(exchange: int) -> Shapes:
        del exchange
        return shapes

    def takes(exchange: int) -> Shapes:
        del exchange
        return {"at": (size,)}

    return Exact(start, sums, solve, shapes_of, takes)


def _lasting(step: Vector, before: Vector, names: tuple[str, ...]) -> list[str]:
    """The columns that lead a step which does not shrink, as each does once a fit is near; empty if it does."""
    far, led = float(np.max(np.abs(step))), np.argsort(-np.abs(step))
    if far < 1e-3 or far <= 0.7 * float(np.max(np.abs(before))):
        return []
    columns = [names[int(j)] for j in led if not names[int(j)].startswith("the ")]
    return [name for name in columns if abs(step[names.index(name)]) > far / 3][:4] or columns[:1]


def _half(work: Mapping[str, Array], turn: float, halved: float, settings: Settings, names: tuple[str, ...]) -> Solved:
    """Half the step that made the loss rise."""
    if turn + 1 >= settings.exchanges or halved >= HALVINGS:
        raise NoFit(_runs_away(names, work["from"], settings.exchanges))
    step = work["step"] / 2
    again = {"at": work["from"] + step, "turn": np.array([turn + 1, halved + 1])}
    return Solved(work["from"], {**work, **again, "step": step}, False)


def _require_settled(hessian: Array, names: tuple[str, ...], at: Vector, turn: float) -> None:
    """Raise NoFit where the Hessian leaves a direction open, and say in which columns."""
    diagonal = np.diag(hessian)
    if not np.isfinite(hessian).all():
        raise NoFit(
            "expected a fit whose numbers stay finite, found sums that do not: standardise the features, or set model.l2"
        )
    flat = diagonal <= 0
    if flat.any():
        if turn > 1:
            raise NoFit(_separated([names[int(np.argmax(np.abs(at[: len(diagonal)])))]]))
        raise NoFit(
            f"expected patients at some site for every column, found '{names[int(np.argmax(flat))]}' the same for all:"
            " leave it out, or set model.l2"
        )
    scale = 1 / np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(scale[:, None] * hessian * scale)
    if values[0] > SINGULAR:
        return
    weight = np.abs(vectors[:, 0])
    open_ = [names[int(j)] for j in np.argsort(-weight) if weight[j] > 0.1][:4]
    if turn > 1:
        raise NoFit(_separated([name for name in open_ if not name.startswith("the ")] or open_))
    raise NoFit(
        f"expected columns that none of the others add up to, found {' + '.join(open_)} bound together over all sites: leave one out"
        ' (encode = "drop_first" for a category), or set model.l2'
    )


def _separated(columns: list[str]) -> str:
    return (
        f"expected an outcome that no column decides alone, found that {' + '.join(columns)} does so for some patients: its coefficient"
        " has no finite value; leave it out, or set model.l2"
    )


def _runs_away(names: tuple[str, ...], at: Vector, exchanges: int) -> str:
    return (
        f"expected a fit within {exchanges} exchanges, found '{names[int(np.argmax(np.abs(at)))]}' still moving: standardise the features,"
        " set model.l2, or raise algorithm.exchanges"
    )
