"""What the docstrings of `core/` promise a reader: none is missing, errors are named, arrays have shapes, words of a study have their paper."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fedrounds.core import catalogue, errors
from fedrounds.core.combine import Combine
from fedrounds.core.local import Local
from fedrounds.core.models import Model
from fedrounds.core.pace import Inverse, Power
from fedrounds.core.participation import Participation, Uneven
from fedrounds.core.personal import Personal
from fedrounds.core.server import Server

CORE = Path(__file__).parents[1] / "core"
TREES = {path.relative_to(CORE).as_posix(): ast.parse(path.read_text()) for path in sorted(CORE.rglob("*.py"))}
ERRORS = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
RAISED = ERRORS | {"ValueError"}
EVERYTHING = {"FedroundsError", "Exception"}
YEAR = re.compile(r"\b(?:19|20)\d\d\b")
CITED = re.compile(r"\([^()]*(?:19|20)\d\d[^()]*\)")  # (Li et al. 2020, equation 2) is no shape
SHAPE = re.compile(
    r"\((?:[^()]|\([^()]*\))+,\)"  # (n,), (1 + classes,), (scales(d),)
    r"|\([\w^-]+(?: [+^*-] \w+| \d\^\w+)?, [^()]*(?:\([^()]*\)[^()]*)?\)"  # (n, k + 1), (k 2^level, bins)
    r"|\(\)|\bshape"  # of a number; "of the same shape"
)
WORDS = [
    kind for union in (Model, Local, Combine, Server, Personal) for kind in catalogue.words(union)
] + [Participation, Uneven, Power, Inverse]  # fmt: skip


def public(tree: ast.Module):
    """Every public class, function and method, with the name by which people find it."""
    for one in tree.body:
        if not isinstance(one, ast.ClassDef | ast.FunctionDef) or one.name.startswith("_"):
            continue
        yield one.name, one
        if isinstance(one, ast.ClassDef):
            for inner in one.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{one.name}.{inner.name}", inner


def functions():
    for file, tree in TREES.items():
        for name, one in public(tree):
            if isinstance(one, ast.FunctionDef):
                yield f"{file}: {name}", one


def said(one: ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(one) or ""


def leaving(node: ast.AST, caught: frozenset[str] = frozenset()) -> set[str]:
    """The errors of `RAISED` that are raised under a node, in functions inside it too, and that no handler around them takes."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        name = call.id if isinstance(call, ast.Name) else ""
        return {name} if name in RAISED and not caught & {name, *EVERYTHING} else set()
    if isinstance(node, ast.Try):
        kinds = [kind for handler in node.handlers if handler.type for kind in ast.walk(handler.type)]
        within = caught | {kind.id for kind in kinds if isinstance(kind, ast.Name)}
        rest = [*node.handlers, *node.orelse, *node.finalbody]
        return set().union(*(leaving(one, within) for one in node.body), *(leaving(one, caught) for one in rest))
    return set().union(*(leaving(one, caught) for one in ast.iter_child_nodes(node)))


def arrays(one: ast.FunctionDef) -> set[str]:
    """Parameters that are an array, the model's `theta` aside, whose shape is the layout's; and `return`, where an array is returned."""
    given = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]
    told = {arg.arg: arg.annotation for arg in given if arg.arg != "theta"} | {"return": one.returns}
    return {name for name, kind in told.items() if isinstance(kind, ast.Name) and kind.id in ("Vector", "Array")}


def test_every_public_class_function_and_method_says_what_it_is():
    silent = [f"{file}: {name}" for file, tree in TREES.items() for name, one in public(tree) if not said(one)]
    assert silent == []


def test_a_function_that_raises_names_the_error():
    silent = {name: left for name, one in functions() if (left := {e for e in leaving(one) if e not in said(one)})}
    assert silent == {}


def test_a_function_of_arrays_states_a_shape():
    silent = {name: found for name, one in functions() if (found := arrays(one)) and not has_shape(said(one))}
    assert silent == {}


def has_shape(text: str) -> bool:
    plain = text.split(">>>")[0]
    return bool(SHAPE.search(CITED.sub("", plain)))


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}")
def test_a_word_of_a_study_names_its_paper_with_the_year_or_says_that_there_is_none(kind):
    text = f"{kind.__doc__} {getattr(kind, 'paper', '')}"
    assert YEAR.search(text) or "No paper" in text


def test_the_walk_sees_what_it_is_about():
    seen = {name for name, _ in functions()}
    assert {"combine.py: krum", "privacy/shamir.py: split", "models/boosting.py: Boosting.exact"} <= seen
    assert len(seen) > 400


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("raise StudyError('x')", {"StudyError"}),
        ("raise AssertionError", set()),
        ("def inner():\n  raise ValueError", {"ValueError"}),
        ("try:\n  raise UpdateRejected\n except UpdateRejected:\n  pass", set()),
        ("try:\n  raise UpdateRejected\n except KeyError:\n  raise NoFit from None", {"UpdateRejected", "NoFit"}),
        ("try:\n  raise GateHalt\n except (KeyError, FedroundsError):\n  pass", set()),
    ],
)
def test_an_error_leaves_unless_it_is_caught(body, left):
    assert leaving(ast.parse(f"def f():\n {body}")) == left


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("Sums (4,) of rows", True),
        ("(columns, CELLS - 1) edges", True),
        ("bytes (scales(d),)", True),
        ("a width of shape ()", True),
        ("The gradient (Li et al. 2020, equation 2).", False),
        ("the nearest (the first, if two are equally near)", False),
        ("The rows.\n\n>>> f(1, 2)", False),
    ],
)
def test_a_citation_and_an_example_are_no_shape(text, states):
    assert has_shape(text) is states
