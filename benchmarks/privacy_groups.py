"""What a median of groups under masks is worth, beside a mean and a median of single updates, with and without sites that attack.

    python benchmarks/privacy_groups.py [--quick]

scikit-learn's breast_cancer, dealt to as many sites; each attacker sends its update times -4 or -10 every round, and keeps to the rules
otherwise. Areas under the ROC curve on the honest sites' validation rows, of all together; mean and least of the draws. Writes
docs/privacy-groups.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from fedrounds.core import answer, masked
from fedrounds.core.groups import deal
from fedrounds.core.plan import build
from fedrounds.core.preprocess import Rows
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study

PAGE = Path(__file__).parent.parent / "docs" / "privacy-groups.md"
TIMES = (-4.0, -10.0)


def study(combine: str, protect: dict[str, Any], attackers: int) -> Study:
    """Logistic regression of breast_cancer's thirty numbers."""
    way: dict[str, Any] = {"kind": "weighted_mean"} if combine == "mean" else {"kind": "median", "attackers": attackers}
    return Study.model_validate(
        {
            "name": "wdbc",
            "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
            "features": [{"type": "number", "name": f"x{i}", "range": [-20, 20]} for i in range(30)],
            "model": {"kind": "logistic", "l2": 0.001},
            "algorithm": {"preset": "fedavg", "local": {"rate": 0.1, "epochs": 2}, "combine": way},
            "weights": "uniform",
            "privacy": {"protect": protect},
        }
    )


def wdbc(sites: int, seed: int) -> dict[str, Rows]:
    """So many sites, a quarter of each to judge by."""
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    order = np.random.default_rng(seed).permutation(len(y))
    found = {}
    for number, part in enumerate(np.array_split(order, sites)):
        design, cut = np.column_stack([X[part], np.ones(len(part))]), len(part) // 4
        found[f"s{number:02d}"] = Rows(design[cut:], y[part][cut:] * 1.0, design[:cut], y[part][:cut] * 1.0)
    return found


@contextmanager
def attacked(by: Sequence[str], times: float):
    """These sites send their update times so much."""
    protect, written = masked.protect, answer.handle

    def hidden(request, sums, sheet, vault, me):
        if me.site in by and "delta" in sums:
            sums = {**sums, "delta": times * sums["delta"]}
        return protect(request, sums, sheet, vault, me)

    def shown(request, state, data, plan, policy, site, rng):
        after, reply = written(request, state, data, plan, policy, site, rng)
        if site in by and "delta" in reply.arrays:
            reply.arrays["delta"] *= times  # type: ignore[index]
        return after, reply

    from fedrounds.core import simulate as loop

    masked.protect, loop.handle = hidden, shown
    try:
        yield
    finally:
        masked.protect, loop.handle = protect, written


def area(of: Study, data: dict[str, Rows], rounds: int, by: Sequence[str], times: float) -> float:
    """The area under the curve of the last model, on the rows of those who do not attack."""
    with attacked(by, times):
        theta = list(simulate(build(of), data, rounds))[-1].state.theta
    honest = [rows for site, rows in data.items() if site not in by]
    return float(
        roc_auc_score(
            np.concatenate([rows.y_valid for rows in honest]), np.concatenate([rows.X_valid @ theta for rows in honest])
        )
    )


WAYS = {
    "mean, masked as one sum": ("mean", {"kind": "masked"}),
    "median of groups of three, masked": ("median", {"kind": "masked", "groups": 0}),
    "median of single updates, not masked": ("median", {"kind": "plain"}),
}


def main() -> None:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one draw, and write nothing")
    quick = parser.parse_args().quick
    draws, rounds = (1, 3) if quick else (3, 15)
    rows = ["| sites | attack | times | how updates combine | mean AUC | least |", "|---|---|---|---|---|---|"]
    for sites, most in ((9, 1), (15, 2)):
        for count, times in [(0, 1.0), *((some, much) for some in (most, most + 1) for much in TIMES)]:
            for name, (combine, protect) in WAYS.items():
                found = []
                for seed in range(draws):
                    of = study(combine, protect | ({"groups": sites // 3} if "groups" in protect else {}), most)
                    data = wdbc(sites, seed)
                    parts = deal(data, sites // 3, of.digest)
                    by = [part[0] for part in parts[:count]]  # each in another group: the worst for the median
                    found.append(area(of, data, rounds, by, times))
                beyond = " (more than it is for)" if count > most and combine == "median" else ""
                rows.append(
                    f"| {sites} | {count} | {f'{times:g}' if count else '–'} | {name}{beyond} | {np.mean(found):.3f} | {min(found):.3f} |"
                )
    table = "\n".join(rows)
    page = f"""# What a median of groups is worth

`python benchmarks/privacy_groups.py`: breast_cancer (WDBC), logistic regression, {rounds} rounds, {draws} draws of who has which rows. An attacker
sends its update times -4 or -10 every round; each is in another group. What it is and what it needs: [privacy](privacy.md).

{table}
"""
    print(page)
    if not quick:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
