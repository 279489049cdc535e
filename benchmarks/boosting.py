"""What federated boosting costs beside scikit-learn's HistGradientBoosting on one thread: 100 trees, depth 6, 4 x 25,000 rows, 50 columns.

    python benchmarks/boosting.py [--rows 100000] [--columns 50] [--trees 100] [--depth 6] [--bins 64] [--times 3]

Made-up patients with a yes/no outcome, in one process, every library held to one thread. The plain loop (`core.simulate`) agrees on bins and grows
all trees in one round, over four sites; scikit-learn fits the same rows in one place, with as many bins, the same trees, depth, rate and
leaf size, and no early stop. The two alternate, and the fastest of each is compared: the issue asks for a ratio of at most 6. Where others
compute on the machine, seconds of CPU tell more.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Rows
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study

SITES = ("east", "north", "south", "west")
FRESH = 20_000  # rows that neither has seen, to judge both


def plan_of(args: argparse.Namespace) -> Plan:
    """The study: all trees in one round."""
    return build(
        Study.model_validate(
            {
                "name": "boosting",
                "target": {"kind": "binary", "column": "y", "positive": [1], "negative": [0]},
                "features": [{"type": "number", "name": f"x{j}"} for j in range(args.columns)],
                "model": {
                    "kind": "boosting",
                    "most": args.trees,
                    "trees": args.trees,
                    "depth": args.depth,
                    "bins": args.bins,
                    "l2": 0.0,
                },
                "algorithm": "exact",
            }
        )
    )


def made_up(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal columns, the last of ones, and an outcome by a few of them."""
    rng = np.random.default_rng(0)
    X = np.hstack([rng.normal(size=(rows, columns)), np.ones((rows, 1))])
    score = X[:, 0] + X[:, 1] * X[:, 2] + np.sin(3 * X[:, 3])
    return X, (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(float)


def clock() -> np.ndarray:
    """(2,) seconds of wall and of CPU."""
    return np.array([time.perf_counter(), time.process_time()])


def ours(plan: Plan, data: Mapping[str, Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (2,), and the model."""
    start = clock()
    closed = next(iter(simulate(plan, data, rounds=1)))
    return clock() - start, closed.state.theta


def theirs(args: argparse.Namespace, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
    """Seconds (2,), and the model."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=args.trees, max_depth=args.depth, max_leaf_nodes=None, max_bins=args.bins, early_stopping=False
    )
    start = clock()
    model.fit(X, y)
    return clock() - start, model


def told(what: str, seconds: np.ndarray, beside: np.ndarray) -> str:
    """Both and their ratio, wall and CPU."""
    (wall, cpu), (other, other_cpu) = seconds, beside
    return (
        f"{what} ours {wall:.2f} s, {cpu:.2f} s; scikit-learn {other:.2f} s, {other_cpu:.2f} s;"
        f" ratio {wall / other:.2f}, {cpu / other_cpu:.2f}"
    )


def main() -> None:
    """Print both times of every turn, their ratio, and both areas under the ROC curve."""
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option, default in (
        ("rows", 100_000),
        ("columns", 50),
        ("trees", 100),
        ("depth", 6),
        ("bins", 64),
        ("times", 3),
    ):
        parser.add_argument(f"--{option}", type=int, default=default)
    args = parser.parse_args()
    plan = plan_of(args)
    X, y = made_up(args.rows + FRESH, args.columns)
    seen, fresh = slice(0, args.rows), slice(args.rows, None)
    parts = [slice(i, args.rows, len(SITES)) for i in range(len(SITES))]
    none = X[:0], y[:0]
    data = {name: Rows(X[part].copy(), y[part].copy(), *none) for name, part in zip(SITES, parts, strict=True)}
    found: list[tuple[np.ndarray, np.ndarray]] = []
    theta, model = np.zeros(0), None
    with threadpool_limits(1):
        for _ in range(args.times):
            seconds, theta = ours(plan, data)
            beside, model = theirs(args, X[seen, :-1], y[seen])
            found.append((seconds, beside))
            print(told("wall and CPU:", seconds, beside), flush=True)
    fastest = [np.min(column, axis=0) for column in zip(*found, strict=True)]
    print(told("fastest:", *fastest), f"(load {os.getloadavg()[0]:.1f})")
    areas = [
        roc_auc_score(y[fresh], predicted)
        for predicted in (plan.family.predict(theta, X[fresh]), model.predict_proba(X[fresh, :-1])[:, 1])
    ]
    print(f"area under the curve on {FRESH} fresh rows: ours {areas[0]:.4f}, scikit-learn {areas[1]:.4f}")


if __name__ == "__main__":
    main()
