"""How long an exact fit takes in the plain loop: a logistic regression of 4 sites x 10,000 rows x 50 features by federated Newton.

    python benchmarks/exact.py [--repeat 5]

Beside it, alternating in the same run, the pooled fit that it equals: scikit-learn's Newton solver without a penalty, on one thread.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.regression import regression
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study

SITES, ROWS, FEATURES = 4, 10_000, 50


def study() -> Study:
    """Fifty numbers, yes or no."""
    features = [{"type": "number", "name": f"x{j:02d}"} for j in range(FEATURES)]
    target = {"kind": "binary", "column": "y", "positive": [1], "negative": [0]}
    return Study.model_validate(
        {"name": "speed", "target": target, "features": features, "model": {"kind": "logistic"}, "algorithm": "exact"}
    )


def main() -> None:
    """Print the seconds of each, their ratio, and how far apart their coefficients are."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeat", type=int, default=5)
    repeat = options.parse_args().repeat
    rng = np.random.default_rng(0)
    X = rng.normal(size=(SITES * ROWS, FEATURES))
    y = (rng.random(len(X)) < 1 / (1 + np.exp(-X @ rng.normal(0, 0.3, FEATURES)))).astype(float)
    whole = np.hstack([X, np.ones((len(X), 1))])
    parts = np.array_split(np.arange(len(X)), SITES)
    empty = np.zeros((0, FEATURES + 1)), np.zeros(0)
    data = {f"site{i}": Rows(whole[part], y[part], *empty) for i, part in enumerate(parts)}
    plan = build(study())
    ours, theirs = [], []
    threadpool_limits(1)
    for _ in range(repeat):
        start = time.perf_counter()
        state = list(simulate(plan, data, 1))[-1].state
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        pooled = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
        theirs.append(time.perf_counter() - start)
    apart = np.max(np.abs(state.theta - np.append(pooled.coef_[0], pooled.intercept_)))
    table = regression(plan, state)
    assert table is not None
    print(
        f"federated Newton, {SITES} sites x {ROWS} rows x {FEATURES} features: median {np.median(ours):.3f} s of {repeat}"
    )
    print(f"scikit-learn, all rows in one place (newton-cholesky, one thread): median {np.median(theirs):.3f} s")
    print(f"ratio {np.median(ours) / np.median(theirs):.2f}; coefficients apart by at most {apart:.1e}")


if __name__ == "__main__":
    main()
