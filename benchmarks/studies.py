"""The five ready studies, one after another: `make studies`. Each must end with a registered champion and a report.

    python benchmarks/studies.py [--write]

Data are made where a study has a `make_data.py`. States and reports go to build/studies. With --write each study's page in docs/ gets the figures of
this very run, between its markers, and docs/studies.md the seconds.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).resolve().parents[1]
BUILT = HOUSE / "build" / "studies"
STUDIES = {  # study -> what it is an example of
    "diabetes": "chronic-disease risk in a patient population",
    "trial": "drug response in a multi-centre trial",
    "scans": "medical images across hospitals",
    "vaccine": "vaccine effectiveness over countries",
    "departments": "EHR integration over departments",
}
FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


class Done(NamedTuple):
    """What a study ended with."""

    seconds: float
    rounds: int
    champion: int  # the round
    version: str  # of the registered model that the alias `champion` names
    table: str  # every hospital alone, federated and pooled
    fit: str  # coefficients, where the study is an exact regression


def run(study: str) -> Done:
    """Make the data, run the study from nothing, write its report."""
    folder, state = HOUSE / "studies" / study, BUILT / study
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    begun = time.monotonic()
    if (folder / "make_data.py").exists():
        subprocess.run([sys.executable, folder / "make_data.py"], check=True)
    program = Path(sys.executable).with_name("fedrounds")
    subprocess.run([program, "run", folder, "--state", state], check=True)
    subprocess.run([program, "report", folder, "--state", state, "--out", BUILT / f"{study}.html"], check=True)
    return found(study, state, time.monotonic() - begun)


def found(study: str, state: Path, seconds: float) -> Done:
    """What the ledger and MLflow's registry say of a study that has run.

    Raises:
        SystemExit: it has no champion, or MLflow names another.
    """
    from mlflow import MlflowClient

    from fedrounds.ledger import Ledger
    from fedrounds.reports.summary import markdown_table

    with Ledger.open(state / study / "ledger.db") as ledger:
        visits, champion, of = ledger.visits(), ledger.standing().champion, ledger.study()
        table = markdown_table(of, visits, ledger.noted("baselines") or {})
    client = MlflowClient(f"sqlite:///{state / 'mlflow.db'}")
    version = client.get_model_version_by_alias(study, "champion")
    if champion is None or version.tags["fedrounds.round"] != str(champion):
        sys.exit(f"{study}: expected the registered champion to be round {champion}, found {version.tags}")
    files = list((state / "artifacts").glob(f"{version.run_id}/artifacts/regression.csv"))
    fit = regression(files[0]) if files else ""
    return Done(seconds, max(visit.round for visit in visits), champion, str(version.version), table, fit)


def regression(file: Path) -> str:
    """The regression table as Markdown: ratios with their 95 % intervals."""
    head = "| term | odds ratio | 95 % interval | p |\n|---|---|---|---|\n"
    with file.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["term"] != "intercept"]
    return head + "".join(
        f"| {row['term']} | {float(row['ratio']):.3f} | {float(row['ratio_low']):.3f} to {float(row['ratio_high']):.3f} | {float(row['p']):.2g} |\n"
        for row in rows
    )


def written(study: str, done: Done) -> None:
    """Put the figures into the study's page."""
    page = HOUSE / "docs" / f"study-{study}.md"
    text = f"\n{done.table.strip()}\n\n" + (f"{done.fit}\n" if done.fit else "")
    text += f"Champion: round {done.champion} of {done.rounds}, version {done.version} of `models:/{study}`.\n\n"
    page.write_text(FIGURES.sub(lambda at: at[1] + text + at[2], page.read_text()))


def summary(all_done: Mapping[str, Done]) -> Iterator[str]:
    """The lines of the overview."""
    yield "| study | an example of | rounds | seconds |"
    yield "|---|---|---|---|"
    for study, done in all_done.items():
        yield f"| [{study}](study-{study}.md) | {STUDIES[study]} | {done.rounds} | {done.seconds:.0f} |"
    yield f"\nAll five, data and reports included: {sum(done.seconds for done in all_done.values()):.0f} s on two cores."


def main() -> None:
    """Run the five, print what they ended with, and with --write put it into the pages."""
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--write", action="store_true", help="put the figures into docs/")
    write = asked.parse_args().write
    all_done = {study: run(study) for study in STUDIES}
    lines = "\n".join(summary(all_done))
    print(f"\n{lines}\nreports: {BUILT.relative_to(HOUSE)}/*.html")
    if write:
        for study, done in all_done.items():
            written(study, done)
        page = HOUSE / "docs" / "studies.md"
        page.write_text(FIGURES.sub(lambda at: f"{at[1]}\n{lines}\n\n{at[2]}", page.read_text()))


if __name__ == "__main__":
    main()
