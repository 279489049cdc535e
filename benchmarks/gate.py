"""What a site's gate costs: 100,000 rows, 30 columns, 23 expectations; beside Great Expectations alone, and when the verdict is reused.

    python benchmarks/gate.py [--rows 100000] [--times 7]

A text file of made-up patients: an id, 20 numbers with gaps, 8 categories, a yes/no label. After imports, in one process, on one thread; what
is printed is the fastest and the median of so many times, in milliseconds of wall and of CPU. The targets are the issue's, for the median of
wall on a quiet machine: 300 ms, and 5 ms reused; the load is printed, and where others compute, CPU tells more. `plain` is what
`batch.validate` alone takes on the same data frame, already made, with nothing left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedrounds import sources
from fedrounds.core.plan import build
from fedrounds.tasks import draft, gate
from fedrounds.tasks.folder import Folder, Suite, read
from fedrounds.tasks.frame import frame
from fedrounds.tasks.redraft import merged
from fedrounds.tasks.remembered import Remembered
from fedrounds.tasks.verdict import to_json
from fedrounds.tasks.ward import Ward

NUMBERS, CATEGORIES = [f"x{j}" for j in range(20)], [f"c{j}" for j in range(8)]
FEATURES = [f'{{ type = "number", name = "{name}", range = [-10, 10], missing = ["NA"] }}' for name in NUMBERS]
FEATURES += [f'{{ type = "category", name = "{name}", categories = ["a", "b", "c"] }}' for name in CATEGORIES]
STUDY = f"""
name = "gate"
patient_id = "id"
features = [{", ".join(FEATURES)}]
target = {{ kind = "binary", column = "y", positive = ["yes"], negative = ["no"] }}
model = {{ kind = "logistic" }}
algorithm = "fedavg"
"""


def study(folder: Path, rows: int) -> Folder:
    """A study of one hospital with so many rows."""
    rng = np.random.default_rng(7)
    columns: list[Any] = [[f"P{row:07d}" for row in range(rows)]]
    for _ in NUMBERS:
        known = rng.random(rows) < 0.97
        columns.append([f"{value:.3f}" if it else "NA" for value, it in zip(rng.normal(size=rows), known, strict=True)])
    columns += [rng.choice(["a", "b", "c"], rows).tolist() for _ in CATEGORIES]
    columns.append(rng.choice(["yes", "no"], rows).tolist())
    lines = [",".join(["id", *NUMBERS, *CATEGORIES, "y"]), *map(",".join, zip(*columns, strict=True))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "study.toml").write_text(STUDY)
    (folder / "operations.toml").write_text("rounds = 1\nquorum = 1\n[gate]\nsuite = 'gate'\n")
    (folder / "sites").mkdir()
    (folder / "sites" / "one.toml").write_text("[source]\nkind = 'csv'\npath = 'rows.csv'\n")
    (folder / "expectations").mkdir()
    (folder / "expectations" / "gate.json").write_text(json.dumps({"name": "gate", "expectations": expectations()}))
    return read(folder)


def expectations() -> list[dict[str, Any]]:
    """23 of them, of the kinds that the suites which ship with Fedrounds hold."""

    def made(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"type": f"expect_{kind}", "kwargs": kwargs}

    return [
        made("table_row_count_to_be_between", min_value=20, max_value=10**7),
        made("column_values_to_be_unique", column="id"),
        *(made("column_values_to_be_between", column=name, min_value=-10, max_value=10) for name in NUMBERS[:8]),
        *(made("column_values_to_be_in_set", column=name, value_set=["a", "b", "c"]) for name in CATEGORIES[:4]),
        *(made("column_values_to_not_be_null", column=name, mostly=0.9) for name in NUMBERS[:6]),
        made("column_values_to_not_be_null", column="y"),
        *(made("column_mean_to_be_between", column=name, min_value=-1, max_value=1) for name in NUMBERS[:2]),
    ]


def timed(what: str, work: Callable[[], Any], times: int, target: float | None = None) -> tuple[float, float]:
    """Print the fastest and the median of so many times; returns the medians of wall and of CPU, in milliseconds."""
    found: list[tuple[float, float]] = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = (sorted(1000 * one for one in kind) for kind in zip(*found, strict=True))
    beside = "" if target is None else f"   target {target:g} ms: {'met' if median(walls) <= target else 'MISSED'}"
    print(f"{what:46} {walls[0]:8.1f} {median(walls):8.1f} {cpus[0]:8.1f} {median(cpus):8.1f}{beside}", flush=True)
    return median(walls), median(cpus)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--times", type=int, default=7)
    asked = options.parse_args()
    gate.warm()
    with tempfile.TemporaryDirectory() as scratch:
        measure(study(Path(scratch), asked.rows), asked.times)


def measure(folder: Folder, times: int) -> None:
    table = sources.load(folder.sites["one"].source, folder.data, "one")
    gate.judge(folder, "one", table.take(np.arange(100)), problem="")  # the first of a process imports what is left
    assert folder.suite is not None
    counts = (
        f"{table.rows} rows, {len(table.columns)} columns, {len(folder.suite.document['expectations'])} expectations"
    )
    print(f"{counts}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'milliseconds':46} {'wall min':>8} {'median':>8} {'CPU min':>8} {'median':>8}")
    suite = gate.validate_suite(folder.suite, folder.study)
    asked = [
        column
        for one in suite
        for column in ([one.configuration.kwargs["column"]] if "column" in one.configuration.kwargs else [])
    ]
    rows = frame(table, folder.study, asked=asked)
    timed("the data frame, from the table", lambda: frame(table, folder.study, asked=asked), times)
    plain = timed("plain: batch.validate on a data frame", lambda: validated(rows, folder.suite), times)
    whole = timed("the gate: judge a table", lambda: gate.judge(folder, "one", table, problem=""), times, 300)
    wall, cpu = (ours / theirs for ours, theirs in zip(whole, plain, strict=True))
    print(
        f"the gate, data frame included, beside batch.validate alone: {wall:.2f} times its wall, {cpu:.2f} times its CPU"
    )
    ward = Ward(folder.sites["one"], build(folder.study), folder.data)
    ward.load()
    memory = Remembered(folder, folder.path / "sites.json")
    found = gate.judge(folder, "one", table, problem="")
    answer = {
        "verdict": to_json(found.verdict),
        "fingerprint": ward.fingerprint,
        "aside": found.aside,
        "day": found.day,
    }
    memory.keep(ward, answer)
    timed("the verdict, reused", lambda: memory.verdict(ward), times, 5)
    seen = draft.evidence(folder.study, {"one": (table, ())})
    document, _ = merged("gate", None, draft.draft(folder.study, folder.operations.gate, seen))
    count = len(document["expectations"])
    drafted = Folder(
        folder.path, folder.data, folder.study, folder.operations, folder.sites, Suite("drafted", document, "")
    )
    timed(f"the gate with a drafted suite ({count})", lambda: gate.judge(drafted, "one", table, problem=""), times)
    timed(
        "the load task: read, fingerprint, clean", lambda: Ward(folder.sites["one"], ward.plan, folder.data).load(), 3
    )


def validated(rows: Any, suite: Suite) -> Any:
    """Great Expectations alone, as its documentation has it."""
    import great_expectations as gx

    made = [
        gx.expectations.core.__dict__[one["type"].title().replace("_", "")](**one["kwargs"])
        for one in suite.document["expectations"]
    ]
    batch = gate._batches().get_batch({"dataframe": rows})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return batch.validate(gx.ExpectationSuite(name=suite.name, expectations=made))


if __name__ == "__main__":
    main()
