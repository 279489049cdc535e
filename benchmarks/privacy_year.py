"""A year of weekly rounds under a yearly ε: what `fedrounds plan` forecasts, what the hospitals' ledgers hold, and what becomes of week 53.

    python benchmarks/privacy_year.py [--weeks 52]

Every week is a `fedrounds run` of its own, with Prefect, MLflow and the gate, as its schedule would start it; only the calendar is not waited
for. Five minutes. Writes docs/privacy-year.md. Exit code 1 if forecast and ledgers differ, or week 53 trains.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedrounds.ledger import Ledger

HOUSE = Path(__file__).resolve().parent.parent
PAGE = HOUSE / "docs" / "privacy-year.md"
PROGRAM = Path(sys.executable).with_name("fedrounds")
EPSILON = 8.0


def fedrounds(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """One command, as a person gives it."""
    return subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=600, check=False)


def document(*words: str | Path) -> dict[str, Any]:
    """What a command answers as JSON. Raises CalledProcessError where it fails."""
    done = fedrounds(*words, "--json")
    done.check_returncode()
    return json.loads(done.stdout)


def study(folder: Path, weeks: int) -> Path:
    """The ready study, weekly and private."""
    fedrounds("init", folder).check_returncode()
    protocol, operations = folder / "study.toml", folder / "operations.toml"
    text = protocol.read_text()
    for old, new in (('weights = "patients"', 'weights = "uniform"'), (", epochs = 2, batch = 32", "")):
        text = text.replace(old, new)
    scores = f"{{ every = {max(weeks // 4, 1)} }}"  # versions are held against the champion once a quarter
    private = f'dp = {{ unit = "patient", epsilon = {EPSILON}, patients = 200, rounds = {weeks}, scores = {scores} }}'
    protocol.write_text(f"{text}\n[privacy]\n{private}\n")
    operations.write_text('rounds = 1\nquorum = 3\n\n[schedule]\ninterval = "7d"\nrounds = 1\n')
    return folder


def spent(place: Path) -> dict[str, float]:
    """Hospital -> ε in its ledger."""
    return {row["dataset"]: row["epsilon"] for row in document("site", "budget", place)["spent"]}


def main() -> None:
    """Forecast, live through the year, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weeks", type=int, default=52)
    weeks = parser.parse_args().weeks
    with tempfile.TemporaryDirectory(prefix="fedrounds-year-") as scratch:
        os.environ["HOME"] = scratch
        place = study(Path(scratch) / "private", weeks)
        plan = document("plan", place)
        forecast, gaps = plan["privacy"]["epsilons"], list[float]()
        for week in range(1, weeks + 1):
            fedrounds("run", place, "--more", "1").check_returncode()
            held = spent(place)
            gaps.append(max(abs(epsilon - forecast[week]) for epsilon in held.values()))
            print(f"week {week:2}  ε {max(held.values()):.6f}  forecast {forecast[week]:.6f}", flush=True)
        after = fedrounds("run", place, "--more", "1")
        [ledger] = Path(scratch).rglob("ledger.db")
        with Ledger.open(ledger) as known:
            trained = len(known.visits(ask="train"))
        again = spent(place)
    refused = after.returncode != 0 and trained == weeks and again == held
    lines = [
        f"forecast      {plan['rounds']} rounds a year, ε = {forecast[weeks]:.6f} of {EPSILON:g} at its end",
        f"the ledgers   ε = {min(held.values()):.6f} to {max(held.values()):.6f} of {len(held)} hospitals after {weeks} runs of `fedrounds run`",
        f"difference    at most {max(gaps):.1e} in any week",
        f"week {weeks + 1}       exit code {after.returncode}, rounds trained {trained}, ε unchanged: {again == held}",
        *(f"              {line}" for line in (after.stdout + after.stderr).strip().splitlines()[-4:]),
    ]
    print("\n".join(lines))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HOUSE, capture_output=True, text=True, check=False
    ).stdout.strip()
    if weeks == 52:
        head = f"# A year under one budget\n\nWritten by `python benchmarks/privacy_year.py` on {dt.date.today()} at commit {commit}.\n"
        PAGE.write_text("\n".join([head, "```text", *lines, "```", ""]), encoding="utf-8")
    sys.exit(not refused or max(gaps) > 1e-9)


if __name__ == "__main__":
    main()
