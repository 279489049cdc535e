"""What drift detection sees: how often a shift is held, by a hospital's size, and how often chance alone is told. Figures of README and design.

    python benchmarks/drift_power.py [--draws 100] [--quiet 2000]

Made-up hospitals of one number with a range, one without and one category of two, a label of three in ten, one value in 25 missing, no cell
below 10 told. A hospital is profiled twice, as in a run: ask, answer, thinning, comparison. Between the two profiles the first number moves by
so many of its standard deviations, or nothing does. Held is what is beyond `drift.hold` as it is set by default; told is what is beyond chance.
"""

from __future__ import annotations

import argparse

import numpy as np

from fedrounds.core.answer import Policy, handle
from fedrounds.core.drift import assess
from fedrounds.core.operations import Drift
from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Cohort
from fedrounds.core.round import close_exchange, open_round
from fedrounds.core.study import Study

SEED = 2026
SPREAD = 12.0  # standard deviation of the number that moves
SHIFT = 1.5  # by how many deviations
STUDY = {
    "name": "power",
    "target": {"kind": "binary", "column": "y", "positive_above": 0.0},
    "features": [
        {"type": "number", "name": "age", "range": [0, 100]},
        {"type": "number", "name": "dose"},
        {"type": "category", "name": "ward", "categories": ["red", "blue"]},
    ],
    "model": {"kind": "logistic"},
    "algorithm": "fedavg",
}
ROWS = (30, 44, 60, 80, 150, 300)  # training rows of both profiles
QUIET = ((60, 80), (300, 200), (1000, 500))  # before and after, where nothing moves


def drawn(rng: np.random.Generator, rows: int, shift: float = 0.0) -> Cohort:
    """Patients of a hospital, all of them for training; the first number is `shift` higher."""
    values = np.column_stack([rng.normal(50 + shift, SPREAD, rows), rng.normal(0, 1, rows), rng.integers(0, 2, rows)])
    values[rng.random((rows, 3)) < 0.04] = np.nan
    return Cohort("a", values, (rng.random(rows) < 0.3).astype(float), np.zeros(rows, bool), {})


def profile(plan: Plan, data: Cohort) -> dict[str, list[float]]:
    """What the hospital tells of these rows, as the ledger keeps it."""
    asking = open_round(plan.start(plan.no_statistics()), plan, "profile", [data.site])
    reply = handle(asking.request, {}, data, plan, Policy(), data.site, np.random.default_rng(0))[1]
    closed = close_exchange(asking, plan, [reply])
    return {name: cells.tolist() for name, cells in closed.profiles[data.site].items()}


def held(plan: Plan, limits: Drift, then: Cohort, now: Cohort) -> bool:
    found = assess(plan.study, limits, {1: {"a": profile(plan, then)}, 2: {"a": profile(plan, now)}}, 1, ["a"])
    return found["held"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="a size (100)")
    parser.add_argument("--quiet", type=int, default=2000, help="profiles without drift (2000)")
    words = parser.parse_args()
    plan, limits = build(Study.model_validate(STUDY)), Drift()
    for rows in ROWS:
        rng = np.random.default_rng([SEED, rows])
        found = sum(held(plan, limits, drawn(rng, rows), drawn(rng, rows, SHIFT * SPREAD)) for _ in range(words.draws))
        print(
            f"{rows:4} training rows: a shift by {SHIFT} deviations held in {found} of {words.draws} draws", flush=True
        )
    rng, anything = np.random.default_rng([SEED, 0]), Drift(warn=0.0, hold=0.0)
    told = sum(held(plan, anything, *(drawn(rng, rows) for rows in QUIET[k % len(QUIET)])) for k in range(words.quiet))
    print(f"no drift: told in {told} of {words.quiet} profiles")


if __name__ == "__main__":
    main()
