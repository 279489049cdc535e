"""The wheel, in a clean environment, from `/`: what is shipped is the whole house, and it works without the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

HOUSE = Path(__file__).resolve().parents[1]
ROOMS = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what the build reads, so that no `build/` is left in the tree or taken from it."""
    import shutil

    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for room in set(ROOMS.values()):
        shutil.copytree(HOUSE / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(HOUSE / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(built), str(source)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """Runs a program of a new environment that holds the wheel, and sees our libraries but not this tree."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place, symlinks=True)
    bin_, site = place / "bin", Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    pip = [sys.executable, "-m", "pip", "--python", str(bin_ / "python"), "install"]
    subprocess.run(
        [*pip, "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)], check=True, cwd="/"
    )
    # A .pth's folder gets no .pth of its own processed, so the editable install's import hook stays out.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words):
        ended = subprocess.run(
            [bin_ / words[0], *words[1:]],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            env={"HOME": str(place), "PATH": str(bin_)},
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stderr == ""
        return ended.stdout

    run.site = site
    return run


def test_the_wheel_holds_the_house_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in shipped} == {"fedrounds"}
    ours = set()
    for module, room in ROOMS.items():
        for file in (HOUSE / room).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                ours.add(str(PurePosixPath(*module.split("."), *file.relative_to(HOUSE / room).parts)))
    assert shipped == ours
    assert "fedrounds/cli/template/study.toml" in shipped
    assert any(name.startswith("fedrounds/expectations/") and name.endswith(".json") for name in shipped)


def test_the_program_comes_from_the_wheel(clean):
    code = "import fedrounds.cli.main as m, fedrounds.flows.study as f; print(m.__file__); print(f.study.name)"
    file, flow = clean("python", "-c", code).splitlines()
    assert Path(file).is_relative_to(clean.site)
    assert flow == "study"


def test_it_works_from_anywhere(clean, tmp_path):
    assert "Federated learning for hospitals" in clean("fedrounds", "--help")
    assert "is ready" in clean("fedrounds", "init", str(tmp_path / "study"))
    checked = json.loads(clean("fedrounds", "check", str(tmp_path / "study"), "--gate", "--json"))
    assert [site["passed"] for site in checked["sites"]] == [True] * 4
