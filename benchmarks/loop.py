"""What the core's plain loop costs beside a bare NumPy loop of the same mathematics, in one process and after imports.

    python benchmarks/loop.py [--bare ../shared/bench]

Work W1 (DESIGN 5): scikit-learn's breast_cancer over K sites, logistic regression, 5 local epochs, batch 32, rate 0.05, the average by
patients, scores at every site each round. `simulate` scores the model that came in before it trains, and the last one at the end: one
evaluation more than the bare loop. Loops alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedrounds.core.plan import Plan, build
from fedrounds.core.preprocess import Rows
from fedrounds.core.simulate import simulate
from fedrounds.core.study import Study

STUDY: dict[str, Any] = {
    "name": "w1",
    "target": {"kind": "binary", "column": "y", "positive_above": 0.5},
    "features": [{"type": "number", "name": f"x{j}"} for j in range(30)],
    "preprocess": {"standardise": "none"},
    "model": {"kind": "logistic"},
    "algorithm": {"preset": "fedavg", "local": {"rate": 0.05, "epochs": 5, "batch": 32}},
}


def bare_loop(work: Any, spec: str) -> tuple[Callable[[], np.ndarray], Any]:
    """The loop of bare.py, and its task."""
    task = work.Task(spec)
    sites = range(task.sites)

    def run() -> np.ndarray:
        params = task.init()
        for r in range(1, task.rounds + 1):
            params = work.fedavg([task.fit(params, s, r) for s in sites])
            scored = [task.evaluate(params, s, r) for s in sites]
            n = sum(rows for _, rows in scored)
            {name: sum(found[name] * rows for found, rows in scored) / n for name in ("loss", "auc")}
        return np.concatenate(params)

    return run, task


def core_loop(plan: Plan, task: Any) -> Callable[[], np.ndarray]:
    """The same work by the core."""
    width = len(str(task.sites - 1))  # sites are folded in name order
    data: dict[str, Rows] = {}
    for site in range(task.sites):
        X, y = task.rows(site)
        X = np.column_stack([X, np.ones(len(y))])
        data[f"{site:0{width}}"] = Rows(X, y, X, y)

    def rng_of(number: int, site: str) -> np.random.Generator:
        return np.random.default_rng([number, int(site)])

    def run() -> np.ndarray:
        for closed in simulate(plan, data, task.rounds, rng_of=rng_of):
            state = closed.state
        return state.theta

    return run


def seconds(run: Callable[[], np.ndarray]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(work: Any, spec: str, repeats: int) -> bool:
    """Print one line; True if the weights agree."""
    bare, task = bare_loop(work, spec)
    core = core_loop(build(Study.model_validate(STUDY)), task)
    difference = float(np.abs(bare() - core()).max())
    pairs = [(seconds(bare), seconds(core)) for _ in range(repeats)]
    bare_s, core_s = median(b for b, _ in pairs), median(c for _, c in pairs)
    ratio = median(c / b for b, c in pairs)
    print(
        f"{spec:12} bare {bare_s:6.3f} s   core {core_s:6.3f} s   ratio {ratio:5.2f}   largest difference {difference:.1e}"
    )
    return difference <= 1e-9


def peak_mb() -> float:
    """Peak resident memory of this process (Linux; `ru_maxrss` would count the parent's)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def memory(work: Any, spec: str) -> int:
    """Print what the core's loop adds to this process's peak memory, and the peak."""
    core = core_loop(build(Study.model_validate(STUDY)), work.Task(spec))
    before = peak_mb()
    took = seconds(core)
    peak = peak_mb()
    print(
        f"{spec:12} alone in a process: {took:.3f} s, peak memory {peak:.0f} MB, of which the loop {peak - before:.0f} MB"
    )
    return 0


def main() -> int:
    """Compare at several numbers of sites; 1 if any weights differ, 2 if the bare loop is not here."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--bare", type=Path, default=Path(__file__).parents[2] / "shared" / "bench", help="folder of work.py"
    )
    ap.add_argument("--repeats", type=int, default=9)
    ap.add_argument("--memory-of", help=argparse.SUPPRESS)  # a task to run alone, for its peak memory
    a = ap.parse_args()
    if not (a.bare / "work.py").is_file():
        print(f"expected the bare loop's work.py in {a.bare}, found none: point --bare at its folder", file=sys.stderr)
        return 2
    sys.path.insert(0, str(a.bare))
    if a.memory_of:
        import work

        return memory(work, a.memory_of)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_DATA"] = folder
        import work

        work.prepare()
        agree = [compare(work, f"w1:{sites}:20", a.repeats) for sites in (4, 10, 50)]
        agree.append(compare(work, "w1:1000:5", 3))
        subprocess.run([sys.executable, __file__, "--bare", str(a.bare), "--memory-of", "w1:1000:5"], check=True)
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
