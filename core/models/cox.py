"""Cox's proportional hazards by federated Newton, on times that are binned to the study's public grid.

    hazard of a patient in an interval of the grid = h_k exp(xβ)

Without strata the sites send sums by interval (`core/partial.py`), whose running totals are those over the pooled risk sets; with
strata = "site" each site has risk sets and a baseline of its own, and sends the value, gradient and information of its own partial
likelihood, which simply add up. Either way the fit is that of all patients in one place with the same binned times.
Source: Cox (1972), J. R. Stat. Soc. B 34, 187; Lu et al. (2015), WebDISCO, J. Am. Med. Inform. Assoc. 22, 1212.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrounds.core.algorithm import Payload, SiteState, Sums
from fedrounds.core.errors import NoFit, StudyError, UpdateRejected
from fedrounds.core.exact import Exact, Shapes, Solved
from fedrounds.core.models.family import CLOSEST, Family, Kind, Task
from fedrounds.core.params import Array, Layout, Vector
from fedrounds.core.partial import Ties, by_interval, hazards, partial, proportionality, shapes, tilted
from fedrounds.core.strategy import Exact as Settings
from fedrounds.core.survival import at_risk, counted, intervals

if TYPE_CHECKING:
    from fedrounds.core.preprocess import Rows
    from fedrounds.core.study import Study

SINGULAR = (
    1e-11  # of an information scaled to a unit diagonal: below this smallest eigenvalue its columns are one another's
)
FLAT = 1e-6  # of the information at β = 0 that a direction keeps: below, the likelihood rises for ever in it
LONGEST = 4.0  # standard deviations of the linear predictor that one step may move: exp() stays finite
NEAR = 1e-6  # of a standard error: as a step's length, the end is in sight
HALVINGS = 30
PATIENCE = 12  # exchanges after which steps that shrink no more are those of a coefficient on its way to infinity


class Cox(Kind):
    """Proportional hazards (Cox) of the time until something happens.

    `at_risk`: how many of its training patients a site must have at risk in each interval that it has any in; else it sends nothing.
    """

    targets: ClassVar[tuple[str, ...]] = ("survival",)
    algorithms: ClassVar[tuple[str, ...]] = ("exact",)
    ratio: ClassVar[str] = "hazard ratio"
    l2: ClassVar[float] = 0.0
    paper: ClassVar[str] = "Cox 1972; ties of Breslow 1974 or Efron 1977"
    kind: Literal["cox"]
    ties: Ties = "efron"
    strata: Literal["site"] | None = None
    at_risk: int = Field(default=10, ge=1)

    def family(self, width: int, classes: int, task: Task) -> Family:
        """Its functions: a coefficient a column, a hazard for each of `classes` intervals."""
        del task
        return cox(width, classes)

    def exact(self, study: Study, columns: tuple[str, ...], family: Family) -> Exact:
        """Newton's method by sums over the risk sets. Raises StudyError where the study has case weights."""
        assert isinstance(study.algorithm, Settings)
        if getattr(study, "case_weights", None):
            raise StudyError(
                "expected a Cox model without case weights, found `case_weights`: leave them out of study.toml"
            )
        return newton_cox(columns, family.layout.shapes["hazard"][0], self, study.algorithm)


def cox(features: int, count: int) -> Family:
    """Cumulative hazards H_k exp(xβ) at the ends of K intervals.

    Args:
        features: Columns p; X is (n, p) or more, of which the first p are read: no column of ones is needed.
        count: K.

    Returns:
        A family with theta (p + K,): coefficients, then the increments of the baseline cumulative hazard, at x = 0. It predicts
        (n, 1 + K): the linear predictor xβ, then the cumulative hazards. Its loss is minus the log of the probability given to what
        was seen: of having the event in its interval, or of none up to the end of the one in which the patient was censored.
    """
    layout = Layout({"coef": (features,), "hazard": (count,)})

    def init(_rng: np.random.Generator) -> Vector:
        return np.zeros(layout.size)

    def predict(theta: Vector, X: Array) -> Array:
        score = X[:, :features] @ theta[:features]
        with np.errstate(over="ignore", invalid="ignore"):
            grown = np.exp(score)[:, None] * np.cumsum(theta[features:])
        return np.column_stack([score, grown])

    def losses(prediction: Array, y: Array) -> Array:
        index, event = intervals(y)
        whole = np.column_stack([np.zeros(len(y)), prediction[:, 1:]])
        n = np.arange(len(y))
        before, after = whole[n, index], whole[n, index + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            told = np.where(event, before - np.log(-np.expm1(before - after)), after)
        return np.minimum(told, -np.log(CLOSEST))  # NaN stays NaN

    def estimator(theta: Vector) -> Any:
        from sklearn.linear_model import LinearRegression

        fitted: Any = LinearRegression()
        fitted.coef_ = theta[:features].copy()
        fitted.intercept_ = 0.0
        fitted.n_features_in_ = features
        return fitted

    return Family(layout, np.zeros(layout.size), init, None, predict, losses, estimator)


def newton_cox(columns: tuple[str, ...], count: int, model: Cox, settings: Settings) -> Exact:
    """A damped Newton fit that begins at β = 0.

    Facts of a fit: `information` (p, p) of the coefficients, `log_likelihood` (1,), `log_likelihood_null` (1,) at β = 0, `events` (1,),
    `rows` (1,), and `proportionality` (p + 1, 2): χ² and p of each column's score test (one degree of freedom), then of all (p degrees).

    Args:
        columns: names of the p columns of X, which may have one of ones after them.
        count: intervals K of the grid.

    Raises:
        UpdateRejected: at a site, which then sends nothing: too few are at risk in an interval.
        NoFit: no events; collinear or constant columns; a column that separates; no convergence.
    """
    size = len(columns)
    asked: Shapes = shapes(size, count, model.ties)
    if model.strata:
        tilts = {"tilt.1": (size,), "tilt.2": (size, size), "tilt.3": (size, size)}
        asked = {
            "counts": (2, count),
            "risk.0": (count,),
            "value": (2,),
            "gradient": (size,),
            "information": (size, size),
        }
        asked = {**asked, **tilts, "squares": (size,)}

    def start(theta: Vector, facts: Mapping[str, Array]) -> Mapping[str, Array]:
        del theta, facts
        return {"at": np.zeros(size), "turn": np.zeros(2), "last": np.zeros(1)}

    def sums(payload: Payload, memory: SiteState, rows: Rows) -> tuple[SiteState, Sums]:
        require_at_risk(counted(rows.y, count)[0], model.at_risk)
        found = by_interval(rows.X[:, :size], rows.y, payload["at"], count, model.ties)
        if not model.strata:
            return memory, found
        here = _stratum(found, payload["at"], model.ties)
        # by interval and at many points, Σ exp(xβ) would tell each x where one patient is alone: it is told once, for the baseline
        here["risk.0"] = here["risk.0"] * payload["last"]
        return memory, here

    def solve(work: Mapping[str, Array], totals: Sums) -> Solved:
        whole = totals if model.strata else _stratum(totals, work["at"], model.ties)
        solved = _solve(work, {**totals, **whole}, columns, settings)
        if solved.done and model.strata and not work["last"][0]:
            return Solved(work["at"], {**work, "last": np.ones(1)}, False)
        return solved

    def wanted(exchange: int) -> Shapes:
        del exchange
        return asked

    def takes(exchange: int) -> Shapes:
        del exchange
        return {"at": (size,), "last": (1,)}

    return Exact(start, sums, solve, wanted, takes)


def require_at_risk(counts: Array, least: int) -> None:
    """Raise UpdateRejected where an interval has somebody at risk, but fewer than `least`; counts (2, K) are the site's."""
    risk = at_risk(counts.sum(0))
    few = np.flatnonzero((risk > 0) & (risk < least))
    if len(few):
        raise UpdateRejected(
            f"fewer than {least} of its training patients are at risk from interval {int(few[0]) + 1} of {len(risk)} on: let the grid of the"
            " target end earlier, or lower model.at_risk"
        )


def _stratum(sums: Sums, at: Vector, ties: Ties) -> dict[str, Array]:
    """What adds up over strata: the partial likelihood of one of them."""
    here = partial(sums, at, ties)
    return {
        "counts": sums["counts"],
        "risk.0": sums["risk.0"],
        "value": np.array([here.value, here.null]),
        "gradient": here.scores.sum(0),
        "information": here.information.sum(0),
        "squares": here.squares,
        **tilted(here.scores, here.information),
    }


def _solve(work: Mapping[str, Array], totals: Sums, columns: tuple[str, ...], settings: Settings) -> Solved:
    at, (turn, halved) = work["at"], work["turn"]
    value, null = totals["value"]
    rows, events = float(totals["counts"].sum()), float(totals["counts"][1].sum())
    now = np.array([value, null, rows, events])
    if events < 1:
        raise NoFit(
            "expected events among the training patients, found none: nothing can be learnt of when they happen"
        )
    # values of other patients say nothing of a step: whoever has left or come back since, it is a new beginning from here
    best = work.get("best")
    same = best is not None and bool(np.array_equal(best[1:], now[1:]))
    near = same and float(work["longest"][0]) < NEAR  # there rounding says more of the value than the step does
    if (
        best is not None
        and not near
        and not (value >= best[0] - 1e-9 * (1 + abs(value)) if same else np.isfinite(value))
    ):
        return _half(work, turn, halved, columns, settings)
    information = totals["information"]
    first = _require_settled(information, totals["squares"], work, columns)
    step = _step(information, totals["gradient"], events)
    scale = 1 / np.sqrt(np.diag(information))
    longest = float(np.max(np.abs(step) / (np.minimum(scale, 1.0) + np.abs(at))))
    # sums that were rounded, to be hidden, leave steps that no longer shrink
    if longest <= settings.tolerance or (near and longest > float(work["longest"][0]) / 2):
        return _done(at, totals, now)
    size = np.abs(step) / first["unit"]
    if turn >= PATIENCE and same and np.max(size) > 0.7 * np.max(np.abs(work["step"]) / first["unit"]):
        raise NoFit(_separated(_named(size, columns)))
    if turn + 1 >= settings.exchanges:
        raise NoFit(_runs_away(columns, at, settings.exchanges))
    going = {"last": np.zeros(1), "from": at, "step": step, "best": now, "longest": np.array([longest]), **first}
    return Solved(at, {"at": at + step, "turn": np.array([turn + 1, 0.0]), **going}, False)


def _step(information: Array, gradient: Vector, events: float) -> Vector:
    """Newton's, but no longer than LONGEST."""
    scale = 1 / np.sqrt(np.diag(information))
    step = scale * np.linalg.solve(scale[:, None] * information * scale, scale * gradient)
    moved = float(np.sqrt(step @ information @ step / events))
    return step * min(1.0, LONGEST / moved) if moved > 0 else step


def _done(at: Vector, totals: Sums, now: Vector) -> Solved:
    value, null, rows, events = now
    tests = proportionality(totals["information"], totals)
    facts = {
        "information": totals["information"],
        "log_likelihood": np.array([value]),
        "log_likelihood_null": np.array([null]),
        "rows": np.array([rows]),
        "events": np.array([events]),
        "proportionality": np.array([[test.statistic, test.p] for test in tests]),
    }
    return Solved(np.concatenate([at, hazards(totals)]), {}, True, facts)


def _half(
    work: Mapping[str, Array], turn: float, halved: float, columns: tuple[str, ...], settings: Settings
) -> Solved:
    """Half the step that made the likelihood fall."""
    if turn + 1 >= settings.exchanges or halved >= HALVINGS:
        raise NoFit(_runs_away(columns, work["from"], settings.exchanges))
    step = work["step"] / 2
    again = {"at": work["from"] + step, "turn": np.array([turn + 1, halved + 1]), "step": step}
    return Solved(work["from"], {**work, **again}, False)


def _require_settled(
    information: Array, squares: Vector, work: Mapping[str, Array], columns: tuple[str, ...]
) -> dict[str, Array]:
    """How much each direction was known by at first: `unit` (p,) scales it, `least` (1,) is its smallest eigenvalue. Raises NoFit."""
    if not np.isfinite(information).all():
        raise NoFit("expected sums over risk sets that are finite, found others: standardise the features")
    diagonal = np.diag(information)
    first = "unit" not in work
    flat = diagonal <= SINGULAR * squares
    if first and flat.any():
        raise NoFit(
            f"expected columns that differ between patients at risk, found '{columns[int(np.argmax(flat))]}' the same for all"
            ' whenever an event happens: leave it out (encode = "drop_first" for a category)'
        )
    unit = 1 / np.sqrt(diagonal) if first else work["unit"]
    values, vectors = np.linalg.eigh(unit[:, None] * information * unit)
    if first and values[0] <= max(SINGULAR, 1e-14 * float(np.max(squares / diagonal))):
        raise NoFit(
            f"expected columns that none of the others add up to, found {' + '.join(_named(vectors[:, 0], columns))} bound together over all"
            ' sites: leave one out (encode = "drop_first" for a category)'
        )
    least = np.array([values[0]]) if first else work["least"]
    if values[0] <= FLAT * least[0]:
        raise NoFit(_separated(_named(vectors[:, 0], columns)))
    return {"unit": unit, "least": least}


def _named(weight: Vector, columns: tuple[str, ...]) -> list[str]:
    """Up to four columns that matter most in a direction."""
    size = np.abs(weight)
    return [columns[int(j)] for j in np.argsort(-size) if size[j] > np.max(size) / 5][:4]


def _separated(columns: list[str]) -> str:
    return (
        f"expected events on both sides of every column, found that {' + '.join(columns)} alone decides who has them first: its coefficient"
        " has no finite value (monotone likelihood); leave it out, or join its levels"
    )


def _runs_away(columns: tuple[str, ...], at: Vector, exchanges: int) -> str:
    return (
        f"expected a fit within {exchanges} exchanges, found '{columns[int(np.argmax(np.abs(at)))]}' still moving: standardise the features,"
        " or raise algorithm.exchanges"
    )
