"""What a reviewer would otherwise say: style, types, and nothing in the tree that only holds on somebody's machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOT_OURS = {"mlruns", "build", "dist", "screenshots", "__pycache__", "node_modules"}
MACHINE = re.compile(r"(?<![\w./-])/(?:root|home|Users|work)/[\w.-]")
REGISTRY = re.compile(r"index-url|trusted-host|files\.pythonhosted|pypi\.org/simple|artifactory", re.IGNORECASE)


def files():
    """Every file of the tree that a person wrote; a folder with a pyvenv.cfg or a hidden name is not ours, but `.ci` is."""
    found = []
    for folder, folders, names in os.walk(HOUSE):
        folders[:] = [
            name
            for name in folders
            if name not in NOT_OURS
            and (name == ".ci" or not name.startswith("."))
            and not name.endswith(".egg-info")
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        found += [Path(folder, name) for name in names if not name.startswith(".coverage")]
    return sorted(found)


def texts():
    for file in files():
        if file == Path(__file__).resolve():
            continue
        try:
            yield file.relative_to(HOUSE).as_posix(), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue


def found(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("words", ["ruff check .", "ruff format --check .", "pyright"])
def test_the_tools_have_nothing_to_say(words):
    view = HOUSE / ".venv" / "view" / "fedrounds" / "core"  # pyright does not follow setuptools' import hook
    if words == "pyright" and not view.exists():
        view.parent.mkdir(parents=True, exist_ok=True)
        view.symlink_to(Path("../../../core"))
    tool, *options = words.split()
    quiet = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    said = subprocess.run([BIN / tool, *options], cwd=HOUSE, env=quiet, capture_output=True, text=True, check=False)
    assert said.returncode == 0, (said.stdout + said.stderr)[-4000:]


def test_the_walk_sees_the_tree():
    seen = {file.relative_to(HOUSE).as_posix() for file in files()}
    assert {"Makefile", ".ci/run", "requirements.lock", "core/study.py", "studies/heart/study.toml"} <= seen
    assert not [name for name in seen if "site-packages" in name]


def test_no_path_of_somebodys_machine():
    assert found(MACHINE) == []


def test_no_address_of_a_registry():
    assert found(REGISTRY) == []


def test_the_lock_is_names_and_versions_only():
    lines = [
        line
        for lock in ("requirements.lock", "requirements-torch.lock")
        for line in (HOUSE / lock).read_text().splitlines()
    ]
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+]+", line)]
    assert odd == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))
    assert {"prefect", "mlflow", "great-expectations", "pytest", "ruff"} <= set(names)


def test_nothing_is_pickled():
    assert found(re.compile(r"^\s*(?:import|from)\s+(?:c?[Pp]ickle|dill|cloudpickle|joblib|shelve|marshal)\b")) == []
