"""A module that is put off is the module, later: same names, same errors, loaded once."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASIDE = {
    "aside/__init__.py": "",
    "aside/heavy.py": "print('heavy')\nimport aside.heavy as me\nvalue = 5\ndef __getattr__(name):\n    return name.upper()\n",
    "aside/broken.py": "import nothing_of_that_name\n",
}
PUT_OFF = (
    "from fedrounds.tasks.later import later; later('aside.heavy', 'aside.broken', 'aside.absent', 'no.such', 'sys')\n"
)


@pytest.fixture
def said(tmp_path):
    """Runs a script beside the modules above; gives what it printed."""
    (tmp_path / "aside").mkdir()
    for name, text in ASIDE.items():
        (tmp_path / name).write_text(text)

    def run(script: str) -> list[str]:
        command = [sys.executable, "-c", PUT_OFF + script]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    return run


def test_it_loads_when_something_in_it_is_asked_for_and_once(said):
    assert said("from aside import heavy; print('imported'); print(heavy.value, heavy.value, heavy.other)") == [
        *("imported", "heavy", "5", "5", "OTHER")
    ]


def test_importing_a_name_from_it_loads_it_at_once(said):
    assert said("from aside.heavy import value; print(value)") == ["heavy", "5"]


def test_it_is_in_the_end_an_ordinary_module(said):
    assert said("import aside.heavy as h, types; h.value; print(type(h) is types.ModuleType, h.__name__)") == [
        *("heavy", "True", "aside.heavy")
    ]


def test_one_that_cannot_be_imported_says_so_when_it_is_asked_and_again(said):
    script = (
        "import aside.broken as b, importlib\n"
        "try:\n    b.value\nexcept ImportError as error:\n    print(error.name)\n"
        "try:\n    importlib.import_module('aside.broken')\nexcept ImportError as error:\n    print(error.name)\n"
    )
    assert said(script) == ["nothing_of_that_name", "nothing_of_that_name"]


def test_one_that_is_not_there_is_missed_as_ever(said):
    script = "try:\n    import aside.absent\nexcept ImportError as error:\n    print(error.name)\n"
    assert said(script) == ["aside.absent"]


def test_threads_that_ask_at_once_all_get_the_whole_module(said):
    script = (
        "from aside import heavy; from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n    print(set(pool.map(lambda _: heavy.value, range(64))))\n"
    )
    assert said(script) == ["heavy", "{5}"]
