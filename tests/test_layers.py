"""The house: which room may call which, and the habits that every room keeps. Read from the source, nothing is run but the doctests."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import tomllib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
CONFIG = tomllib.loads((HOUSE / "pyproject.toml").read_text())
ROOMS = sorted(CONFIG["tool"]["setuptools"]["package-dir"].values())
FILES = sorted(path for room in ROOMS for path in (HOUSE / room).rglob("*.py"))
LEVEL = {
    "core": 0,
    "examples": 0,
    "exchange": 1,
    "ledger": 1,
    "sources": 1,
    "reports": 1,
    "expectations": 1,
    "site": 1,
    "coordinator": 2,
    "tasks": 3,
    "flows": 4,
    "cli": 5,
}
CORE_MAY_IMPORT = {"numpy", "scipy", "sklearn", "pydantic", "cryptography", "dp_accounting", "tenseal", "fedrounds"}
CORE_STANDARD = {
    "__future__", "abc", "base64", "collections", "contextlib", "dataclasses", "datetime", "difflib", "enum", "fractions", "functools", "hashlib",
    "hmac",     "itertools", "json", "math", "operator", "re", "secrets", "statistics", "string", "struct", "typing", "warnings",
}  # fmt: skip
ONLY_IN = {
    "mlflow": {
        "tasks/track.py",
        "tasks/origin.py",
        "tasks/module_folder.py",
        "tasks/predictor.py",
        "exchange/mlflow.py",
        "cli/ui.py",
        "cli/serve.py",
        "tasks/mlflow_server.py",
    },
    "great_expectations": {"tasks/gate.py"},
}
NOWHERE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
SLOW = {"prefect", "mlflow", "great_expectations", "sklearn", "pandas", "matplotlib", "torch", "pydicom", "PIL"}


def name(path):
    """The path as people write it."""
    return path.relative_to(HOUSE).as_posix()


@functools.cache
def tree(path):
    return ast.parse(path.read_text(), name(path))


@functools.cache
def imports(path, top=False):
    """Modules that a file imports: anywhere in it, or only at the top, where they cost whoever imports it."""
    found = set()
    nodes = list(_at_top(tree(path))) if top else ast.walk(tree(path))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: expected absolute imports"
            found.add(node.module)
            if node.module.startswith("fedrounds"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _at_top(node):
    """Every node outside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_top(child)


def rooms_called(path):
    return {module.split(".")[1] for module in imports(path) if module.startswith("fedrounds.")}


every_file = pytest.mark.parametrize("path", FILES, ids=name)
every_core_file = pytest.mark.parametrize(
    "path", [path for path in FILES if path.is_relative_to(HOUSE / "core")], ids=name
)


@every_file
def test_a_room_calls_only_rooms_below_it(path):
    own = name(path).split("/")[0]
    wrong = {room for room in rooms_called(path) if room != own and LEVEL[room] >= LEVEL[own]}
    assert not wrong, (
        f"{own} must not import {wrong}: cli → flows → tasks → (exchange, ledger, sources, reports) → core"
    )


@every_core_file
def test_core_imports_mathematics_alone(path):
    roots = {module.split(".")[0] for module in imports(path)}
    allowed = CORE_MAY_IMPORT | CORE_STANDARD
    if name(path) == "core/export.py":
        allowed = allowed | {"pandas"}  # inside one function: a pipeline's input is a data frame
    if name(path) == "core/models/module.py":
        allowed = allowed | {"importlib", "threading"}  # installed code that a site allows, and PyTorch's one generator
    assert roots <= allowed, f"core is pure, it must not import {sorted(roots - allowed)}"


@every_core_file
def test_core_opens_no_file_and_prints_nothing(path):
    called = {
        node.func.id for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@every_core_file
def test_core_draws_from_no_global_generator(path):
    drawn = {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "np.random"
    }
    assert drawn <= {"Generator", "SeedSequence", "default_rng"}, f"pass a generator instead of np.random.{drawn}"
    unseeded = [
        node for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("default_rng") and not node.args
    ]  # fmt: skip
    assert not unseeded


@every_core_file
def test_everything_public_in_core_says_what_it_is(path):
    module = tree(path)
    described = [node for node in _public(module) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not [node.name for node in described if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert ast.get_docstring(module) or not module.body


def _public(module):
    """Functions and classes of the module, and methods of its classes; not functions inside functions."""
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    return [*module.body, *(node for owner in classes for node in owner.body)]


@every_file
def test_nothing_is_pickled(path):
    assert not {module.split(".")[0] for module in imports(path)} & NOWHERE


@every_file
def test_mlflow_and_great_expectations_stay_in_their_rooms(path):
    roots = {module.split(".")[0] for module in imports(path)}
    for module, homes in ONLY_IN.items():
        assert module not in roots or name(path) in homes, f"{module} is imported only in {sorted(homes)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(HOUSE / "cli")], ids=name)
def test_the_command_line_loads_nothing_heavy_before_a_command_runs(path):
    assert not {module.split(".")[0] for module in imports(path, top=True)} & SLOW


@every_file
def test_a_file_has_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(HOUSE / "flows")], ids=name)
def test_a_flow_is_a_paragraph(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 40, f"{node.name} has {lines} lines: what is more than a paragraph belongs to tasks or core"


def test_every_folder_with_code_is_packed_into_the_wheel():
    packages = set(CONFIG["tool"]["setuptools"]["packages"])
    found = {"fedrounds." + name(path.parent).replace("/", ".") for path in FILES}
    assert packages == found
    assert CONFIG["tool"]["setuptools"]["package-dir"] == {f"fedrounds.{room}": room for room in ROOMS}
    assert all((path.parent / "py.typed").exists() for path in FILES)
    top = {path.parent.name for path in HOUSE.glob("*/__init__.py")} - {"tests"}
    assert top <= set(ROOMS), "a folder with __init__.py is missing from pyproject.toml"


def test_core_never_imports_a_heavy_library_by_itself():
    for path in FILES:
        if path.is_relative_to(HOUSE / "core"):
            assert not {module.split(".")[0] for module in imports(path, top=True)} & (SLOW | {"scipy"})


DOCTESTED = [path for path in FILES if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", DOCTESTED, ids=name)
def test_the_examples_in_docstrings_are_true(path):
    module = importlib.import_module("fedrounds." + name(path).removesuffix(".py").replace("/", "."))
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
