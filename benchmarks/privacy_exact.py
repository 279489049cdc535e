"""What privacy costs an exact fit: rows of docs/privacy-dp.md, by `benchmarks/privacy_dp.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import clean, encode
from fedrounds.core.privacy.forecast import forecast
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study
from fedrounds.core.table import Table

RANGES = {  # what such measurements can be, not what these patients have
    "age": (18, 85), "sex": (1, 2), "bmi": (15, 50), "bp": (50, 150), "s1": (80, 320), "s2": (30, 260), "s3": (15, 110),
    "s4": (1, 10), "s5": (3, 6.5), "s6": (50, 130),
}  # fmt: skip


def study(eps: float | None, clip: float, masked: bool, patients: int) -> Study:
    """Progression of diabetes from ten measurements."""
    features = [{"type": "number", "name": name, "range": span} for name, span in RANGES.items()]
    target = {"kind": "regression", "column": "progression"}
    words: dict[str, Any] = {"name": "diabetes", "features": features, "target": target, "model": {"kind": "linear"}}
    words |= {"algorithm": "exact", "validation": {"fold": "fold"}, "privacy": {}}
    if eps:
        dp = {"unit": "patient", "epsilon": eps, "patients": patients, "rounds": 1, "sample_rate": 1.0, "steps": 1}
        words["privacy"]["dp"] = dp | {"target": (0, 350), "clip": clip}
        words["privacy"] |= {"protect": {"kind": "masked"}} if masked else {}
    return Study.model_validate(words)


def r2(plan: Plan, data: Any, seed: int) -> float:
    """R² on a fifth that is held out, of one fit to the others, dealt to four sites by the seed."""
    order = np.random.default_rng(seed).permutation(len(data.target))
    train, test = np.split(order, [int(0.8 * len(order))])
    cohorts: list[Any] = []
    for k, (own, held) in enumerate(zip(np.array_split(train, 4), np.array_split(test, 4), strict=True)):
        rows = np.concatenate([own, held])
        columns: dict[str, Any] = {name: data.data[rows, j] for j, name in enumerate(RANGES)}
        columns["progression"] = data.target[rows].astype(float)
        columns["fold"] = np.array(["train"] * len(own) + ["test"] * len(held), object)
        cohorts.append(clean(Table(columns, {}), plan.study, f"s{k}"))
    *_, last = simulate(plan, {it.site: it for it in cohorts}, 1)
    parts = [encode(it, plan.study, last.state.statistics, plan.ones) for it in cohorts]
    X, y = np.vstack([it.X_valid for it in parts]), np.concatenate([it.y_valid for it in parts])
    return float(1 - np.square(X @ last.state.theta - y).sum() / np.square(y - y.mean()).sum())


def rows(seeds: int) -> Iterator[str]:
    """R² at three ε."""
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes(scaled=False)
    yield "| diabetes, 4 sites of 88 training patients, δ = 1/880 | R², a split a seed | under masks | noise over a column's own sum, forecast |"
    yield "|---|---|---|---|"
    plain = [r2(build(study(None, 1.0, False, 88)), data, seed) for seed in range(seeds)]
    yield f"| without privacy | {np.mean(plain):.3f} ± {np.std(plain):.3f} | | |"
    for eps in (1.0, 3.0, 8.0):
        for clip in (0.7, 1.0):
            plans = [build(study(eps, clip, masked, 88)) for masked in (False, True)]
            told = [[r2(plan, data, seed) for seed in range(seeds)] for plan in plans]
            cells = [f"{np.mean(one):.3f} ± {np.std(one):.3f}" for one in told]
            loud = forecast(plans[0], 4, 1)
            assert loud
            yield f"| ε = {eps:g}, statistics included; clip {clip:g} | {' | '.join(cells)} | {loud.noise:.2f} |"
    yield ""
    yield (
        "One release a site of 77 sums. 353 patients are few for it: the signal of n patients is n, and noise does not grow, so ten times as"
        " many patients have a tenth of the noise beside it. Above 0.5 `fedrounds plan` warns. A smaller clip is less noise and shorter rows."
    )
