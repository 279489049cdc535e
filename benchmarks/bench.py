"""How fast Fedrounds is, as ratios measured in one go: the core's loop beside a bare one, a whole run beside Flower's newest release.

    python benchmarks/bench.py [--quick] [--runs N]      prints, and writes docs/benchmarks.md

Work W1 (DESIGN 5), the same for everybody: `../shared/bench/work.py`. Flower gets an environment of its own, benchmarks/.flower-venv.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import loop
import numpy as np
from one_run import CALM, HERE, REPO, Job, Ran, bare_loss, documented, fedrounds, flower, flower_venv, job, measured

from fedrounds.core.plan import build
from fedrounds.core.study import Study
from fedrounds.tasks.prefect_server import PrefectServer

TARGETS = {(10, "cold"): 3.0, (10, "beside"): 4.0, (50, "cold"): 2.5, (50, "beside"): 3.5}
PARTS = ("start-up", "Prefect", "gate", "training", "baselines", "MLflow")


class Page:
    """What is printed is what is written, as it comes: a page without the load at its end was broken off."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.lines = file, list[str]()

    def say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self.lines += lines
        if self.file is not None:
            self.file.write_text("\n".join(self.lines) + "\n")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.say("", "| " + " | ".join(head) + " |", "|---" * len(head) + "|")
        for row in rows:
            self.say("| " + " | ".join(row) + " |")
        self.say("")


def the_loop(page: Page, work: Any, repeats: int) -> None:
    page.say(
        "## The loop",
        "",
        "`core.simulate` beside the loop of `bare.py`: same process, after imports, alternating, R=20 (K=1000: R=5).",
    )
    rows = []
    for sites, rounds in ((4, 20), (10, 20), (50, 20), (1000, 5)):
        bare, task = loop.bare_loop(work, f"w1:{sites}:{rounds}")
        core = loop.core_loop(build(Study.model_validate(loop.STUDY)), task)
        apart = float(np.abs(bare() - core()).max())
        pairs = [(loop.seconds(bare), loop.seconds(core)) for _ in range(repeats if sites < 1000 else 3)]
        ratio = median(c / b for b, c in pairs)
        times = [f"{median(one):.3f} s" for one in zip(*pairs, strict=True)]
        met = "yes" if ratio <= 1.3 and apart <= 1e-9 else "**no**"
        rows.append([str(sites), *times, f"{ratio:.2f}", f"{apart:.0e}", met])
    page.table(["K", "bare", "core", "ratio", "weights differ by", "≤ 1.3x and 1e-9?"], rows)


@dataclass
class Found:
    """What was measured for one K."""

    made: Job
    runs: dict[str, list[Ran]] = field(default_factory=dict)

    def wall(self, kind: str) -> float:
        return median(ran.wall for ran in self.runs[kind])

    def ratio(self, kind: str, to: str = "flower") -> float:
        """Pairwise, since what disturbs one round of the alternation disturbs its neighbours."""
        return median(a.wall / b.wall for a, b in zip(self.runs[to], self.runs[kind], strict=True))


def whole(made: Job, runs: int, shared: Path, scratch: Path) -> Found:
    """Alternate Flower, a cold run, a run in a workspace that has run before, one beside a running server."""
    found = Found(made)
    again, beside, kept = (scratch / f"{name}-{made.spec.replace(':', '-')}" for name in ("again", "beside", "kept"))
    server = PrefectServer(scratch / f"prefect-{made.sites}", scratch / "prefect.log", services=False)
    try:
        server.wait()
        theirs = {"PREFECT_API_URL": server.api_url}
        fedrounds(made, "--state", again)
        fedrounds(made, "--state", beside, env=theirs)
        shutil.copytree(beside, kept)

        def beside_server() -> Ran:
            shutil.rmtree(beside)
            shutil.copytree(kept, beside)  # every time on from the same round
            return fedrounds(made, "--state", beside, "--more", str(made.rounds), env=theirs)

        def first() -> Ran:
            empty = Path(tempfile.mkdtemp(dir=scratch))
            return fedrounds(made, "--state", empty / "state")

        kinds: dict[str, Callable[[], Ran]] = {
            "flower": lambda: flower(made, shared, scratch),
            "cold": lambda: fedrounds(made, "--state", again, "--fresh"),
            "first": first,
            "beside": beside_server,
        }
        for number in range(runs):
            for kind, run in kinds.items():
                ran = run()
                found.runs.setdefault(kind, []).append(ran)
                print(
                    f"  K={made.sites} run {number + 1} {kind}: wall {ran.wall:.2f} s, CPU {ran.cpu:.2f} s", flush=True
                )
    finally:
        server.stop()
    return found


def the_whole(page: Page, found: Sequence[Found], commands: Mapping[int, list[Ran]], work: Any) -> None:
    rows = []
    names = {
        "flower": "Flower, `run_simulation`",
        "cold": "Fedrounds, own server (`run --fresh`)",
        "first": "Fedrounds, own server, empty state folder: the databases are made too",
        "beside": "Fedrounds, beside a running Prefect server, verdicts reused (`run --more`)",
    }
    for one in found:
        for kind, name in names.items():
            ran = one.runs[kind]
            ratio = "" if kind == "flower" else f"{one.ratio(kind):.2f}x"
            met = _met(one.made.sites, kind, one.ratio(kind)) if kind != "flower" else ""
            spread = f"{min(r.wall for r in ran):.1f} to {max(r.wall for r in ran):.1f}"
            cpu = median(r.cpu for r in ran)
            rows.append([str(one.made.sites), name, f"{one.wall(kind):.1f} s", spread, f"{cpu:.1f} s", ratio, met])
    page.table(["K", "", "wall, median", "from, to", "CPU, median", "faster than Flower", "target"], rows)
    page.say(
        "`run_simulation` is deprecated; the command that Flower documents is `flwr run`, which talks to a SuperLink,",
        "as Fedrounds does to a Prefect server. The first run starts the SuperLink, later ones find it. The targets are the same.",
    )
    rows = []
    for one in found:
        first, *later = (ran.wall for ran in commands[one.made.sites])
        for kind, name, wall in (
            ("cold", "it starts its server", first),
            ("beside", "beside its running server", median(later)),
        ):
            ours = one.wall(kind)
            met = _met(one.made.sites, kind, wall / ours)
            rows.append([str(one.made.sites), name, f"{wall:.1f} s", f"{ours:.1f} s", f"{wall / ours:.2f}x", met])
    page.table(["K", "", "`flwr run --stream`", "`fedrounds run`", "faster", "target"], rows)
    loads = [ran.load for one in found for kind in one.runs.values() for ran in kind]
    page.say(
        f"Load over the minute before a run, its neighbours' work included: {min(loads):.1f} to {max(loads):.1f}.", ""
    )
    page.say("The last round's loss on all rows, by whoever computed it:")
    agreed = []
    for one in found:
        losses = [
            bare_loss(one.made, work),
            one.runs["flower"][0].document["loss"],
            one.runs["cold"][0].document["metrics"]["log_loss"],
        ]
        apart = max(losses) - min(losses)
        agreed.append(
            [
                str(one.made.sites),
                *(f"{loss:.12f}" for loss in losses),
                f"{apart:.0e}",
                "yes" if apart <= 1e-6 else "**no**",
            ]
        )
    page.table(["K", "bare loop", "Flower", "Fedrounds", "largest difference", "≤ 1e-6?"], agreed)


def _met(sites: int, kind: str, ratio: float) -> str:
    """The target of a kind of run, where it has one, and whether it was met: the same beside either of Flower's commands."""
    target = TARGETS.get((sites, kind))
    return "" if target is None else f"{target:g}x: {'yes' if ratio >= target else '**no**'}"


def the_split(page: Page, found: Sequence[Found]) -> None:
    page.say(
        "Where a run's wall time goes, in seconds (medians). Every moment counts once, for what the run waits for or does; the Prefect server, the",
        "gate and MLflow's projector are processes of their own and work meanwhile, so a part that hides behind another shows as nothing.",
        "`other` is the interpreter's own start and end.",
    )
    rows = []
    for one in found:
        for kind in ("cold", "first", "beside"):
            split = [ran.document.get("timings") or {} for ran in one.runs[kind]]
            parts = [median(each.get(part, 0.0) for each in split) for part in PARTS]
            other = median(ran.wall - sum(each.values()) for ran, each in zip(one.runs[kind], split, strict=True))
            rows.append([str(one.made.sites), kind, *(f"{value:.2f}" for value in (*parts, other))])
    page.table(["K", "run", *PARTS, "other"], rows)


def the_floor(page: Page) -> None:
    imports = {
        "command line: Prefect's client, matplotlib": "from prefect import flow, task, get_client; import fastapi.encoders, matplotlib.figure",
        "own server: Prefect's server": "from prefect.server.api.server import create_app; create_app(final=True)",
        "gate: Great Expectations, what it may need later left out": "from fedrounds.tasks.gate import warm; warm()",
        "projector: MLflow and its SQL store": "from mlflow import MlflowClient; import mlflow.store.tracking.sqlalchemy_store",
    }
    page.say(
        "What a run imports before it can do anything, in CPU seconds (each a process of its own, medians of 3). A run with all four",
        f"can take no less wall time than their sum over {os.cpu_count()} cores.",
    )
    rows, total = [], 0.0
    with tempfile.TemporaryDirectory() as home:
        for name, code in imports.items():
            cpu = median(
                measured(
                    [sys.executable, "-c", f"import gc; gc.disable(); {code}; print(); import os; os._exit(0)"],
                    {**CALM, "PREFECT_HOME": home},
                ).cpu
                for _ in range(3)
            )
            total += cpu
            rows.append([name, f"{cpu:.1f}"])
    page.table(
        ["process: what", "CPU"],
        [
            *rows,
            [
                "**floor of a run with its own server and gate**",
                f"{total:.1f} / {os.cpu_count()} = {total / (os.cpu_count() or 1):.1f}",
            ],
        ],
    )


def many(page: Page, made: Job, shared: Path, scratch: Path) -> None:
    """K=1000."""
    page.say(
        f"## K={made.sites}, R={made.rounds}",
        "",
        "One run each. Memory is the largest resident set of any one process.",
    )
    theirs = flower(made, shared, scratch)
    alone = measured([sys.executable, HERE / "loop.py", "--bare", shared, "--memory-of", made.spec], CALM)
    ours = fedrounds(made, "--state", scratch / "many")
    rows = [["Flower, `run_simulation`", f"{theirs.wall:.1f} s", f"{theirs.peak:.0f} MB", "", ""]]
    for name, ran in (
        ("`core.simulate` in one process, imports and data included", alone),
        ("`fedrounds run` with everything on, gate included", ours),
    ):
        ratio = theirs.wall / ran.wall
        met = "yes" if ratio >= 3 and ran.peak < 1024 else "**no**"
        rows.append([name, f"{ran.wall:.1f} s", f"{ran.peak:.0f} MB", f"{ratio:.1f}x", met])
    page.table(["", "wall", "memory", "faster than Flower", "≥ 3x and < 1 GiB?"], rows)
    timings = ours.document.get("timings") or {}
    page.say("Split of `fedrounds run`: " + ", ".join(f"{name} {value:.1f} s" for name, value in timings.items()) + ".")
    page.say(f"In the loop itself: {alone.said.partition('process: ')[2]}.", "")


def main() -> int:
    """Measure; 2 if the shared work is not here."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bare", type=Path, default=REPO.parent / "shared" / "bench", help="folder of work.py")
    ap.add_argument("--runs", type=int, default=5, help="of each kind (default 5)")
    ap.add_argument(
        "--quick", action="store_true", help="K=4, R=2, once: does it work? docs/benchmarks.md is left alone"
    )
    ap.add_argument("--no-many", action="store_true", help="leave K=1000 out")
    a = ap.parse_args()
    if not (a.bare / "work.py").is_file():
        print(f"expected the bare loop's work.py in {a.bare}, found none: point --bare at its folder", file=sys.stderr)
        return 2
    sys.path.insert(0, str(a.bare))
    page = Page(None if a.quick else REPO / "docs" / "benchmarks.md")
    versions = flower_venv()
    commit = subprocess.check_output(["git", "-C", REPO, "describe", "--always", "--dirty"], text=True).strip()
    page.say(
        "# Benchmarks",
        "",
        f"Written by `make bench` on {time.strftime('%d %B %Y, %H:%M')}, commit {commit}. {os.cpu_count()} cores, {platform.machine()}, Python"
        f" {platform.python_version()}, load at the start {os.getloadavg()[0]:.2f}. {versions}.",
        "",
        "Work W1: scikit-learn's breast_cancer, standardised, dealt to K sites; logistic regression, 5 local epochs, batch 32, rate 0.05; average",
        "by patients; loss and AUC at every site each round. Ratios hold within this page; seconds are this machine's.",
        "",
    )
    with tempfile.TemporaryDirectory(prefix="fedrounds-bench-") as name:
        scratch = Path(name)
        os.environ["BENCH_DATA"] = str(scratch)
        import work

        work.prepare()
        sizes, runs = ((4,), 1) if a.quick else ((10, 50), a.runs)
        the_loop(page, work, 3 if a.quick else 9)
        page.say(
            f"## A whole run, R={2 if a.quick else 20}, {runs} of each, alternating",
            "",
            "Fedrounds has everything on: Prefect, MLflow with a version a round, a gate of 20 expectations a site, baselines. It reads CSV",
            "files that hold every row twice, to train on and to be scored on. Flower has no gate, tracking or baselines; `run_simulation` is the",
            "quickest way into it (deprecated, it warns), and has a Ray actor a core and its telemetry off.",
            "`--more` goes on from round R with the same data and suite, so the gate's verdicts stand; its baselines are then of 2R rounds.",
        )
        found, commands = [], {}
        for sites in sizes:
            made = job(work, sites, 2 if a.quick else 20, scratch)
            found.append(whole(made, runs, a.bare, scratch))
            commands[sites] = documented(made, 1 + min(2, runs), a.bare, scratch)
        the_whole(page, found, commands, work)
        the_split(page, found)
        the_floor(page)
        if not (a.quick or a.no_many):
            many(page, job(work, 1000, 5, scratch), a.bare, scratch)
    page.say(f"Load at the end {os.getloadavg()[0]:.2f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
