"""The five ready studies: their data can be made, every site's data pass its gate, and each has its page with figures of a run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fedrounds

import studies

HOUSE = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("study", studies.STUDIES)
def test_the_data_of_a_ready_study_pass_its_gate(study, tmp_path):
    folder = tmp_path / study
    shutil.copytree(HOUSE / "studies" / study, folder, ignore=shutil.ignore_patterns("data", "mlruns"))
    if (folder / "make_data.py").exists():
        subprocess.run([sys.executable, folder / "make_data.py"], check=True, timeout=120)
    done = fedrounds("check", folder, "--gate")
    assert done.returncode == 0, done.stderr
    assert "ready to run" in done.stdout
    sites = [file.stem for file in (folder / "sites").glob("*.toml")]
    lines = [line for site in sites for line in done.stdout.splitlines() if line.strip().startswith(f"{site}:")]
    assert len(lines) == len(sites)
    assert all("passed" in line for line in lines), done.stdout


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_ready_study_has_a_page_with_the_figures_of_a_run(study):
    page = (HOUSE / "docs" / f"study-{study}.md").read_text()
    figures = studies.FIGURES.search(page)
    assert figures
    assert f"of `models:/{study}`." in figures[0]
    for file in (HOUSE / "studies" / study / "sites").glob("*.toml"):
        assert f"| {file.stem} |" in figures[0]
    assert f"(study-{study}.md)" in (HOUSE / "docs" / "studies.md").read_text()


@pytest.mark.parametrize("study", ["trial", "vaccine"])
def test_an_estimate_of_a_page_is_near_the_truth(study):
    """Each interval of 95 % that the page gives for what make_data.py makes true, widened by half of its length."""
    rows = [line.strip("| ").split(" | ") for line in (HOUSE / "docs" / f"study-{study}.md").read_text().splitlines()]
    found = {row[0]: [float(end) for end in row[2].split(" to ")] for row in rows if len(row) == 4 and " to " in row[2]}
    truth = (
        {"vaccine=primary": 0.45, "vaccine=booster": 0.20}
        if study == "vaccine"
        else {"treated=1": 1.568, "treated_marker=1": 2.460, "marker=1": 0.905}
    )
    for term, ratio in truth.items():
        low, high = found[term]
        assert low / (high / low) ** 0.25 <= ratio <= high * (high / low) ** 0.25, (term, ratio)
