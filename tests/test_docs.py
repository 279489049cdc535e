"""The documentation is true: every block of code on its pages runs, is read by the product's own classes, or says in its title why neither; the
site builds without a broken link and loads nothing from elsewhere; and what there is in two languages says the same commands.

`python -m pytest tests/test_docs.py -k few` after a failure shows which blocks are not run. To mark one: ```sh title="at a hospital".
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import warmed
from conftest import alone

from fedrounds.core.operations import Operations
from fedrounds.core.plan import build
from fedrounds.core.study import Study
from fedrounds.sources.site_file import SiteFile

HOUSE = Path(__file__).resolve().parents[1]
TEMPLATE = HOUSE / "cli" / "template"
NOT_RUN = {  # the title of a block that is not run, and why
    "in this folder": "the suite itself; .ci/run runs both commands on a clean checkout",
    "in an empty folder that holds your copy": "it installs",
    "all commands": "a list to choose from; each has a test of its own",
    "at the coordinator": "more than one machine; tests/test_federated.py",
    "at a hospital": "more than one machine; tests/test_federated.py",
    "with a cluster": "more than one machine; tests/test_dask.py",
    "with a server of your own": "it stays in the foreground; tests/test_schedule.py, tests/test_exchange.py",
    "stays in the foreground": "tests/test_schedule.py",
    "while it serves": "tests/test_serve.py",
    "with PyTorch": "it is not everywhere; tests/test_torch*.py",
    "takes a while": "a test of its own runs it",
    "Flower": "another project's program",
    "NVIDIA FLARE": "another project's program",
    "DataSHIELD": "another project's program",
    "MLflow and scikit-learn": "what a reader has; it would make a store of its own",
}
RUN_ELSEWHERE = {"docs/adding-a-strategy.md": "tests/test_combine.py puts its blocks together and runs them"}
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOREGROUND = re.compile(
    r"^(?:fedrounds (?:serve|ui|deploy .*--serve|site start|coordinator start)|prefect .* start|curl)\b", re.MULTILINE
)
INDENTED = re.compile(r"^    (fedrounds .*)$", re.MULTILINE)
PAIRS = (("README.md", "README.zh-CN.md"), ("docs/tutorial.md", "docs/tutorial.zh-CN.md"))


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    number: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}-{self.language}"


def read(page: Path) -> list[Block]:
    name = page.relative_to(HOUSE).as_posix()
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(name, number, *it) for number, it in enumerate(found, 1)]


PAGES = sorted([*HOUSE.glob("*.md"), *(HOUSE / "docs").glob("*.md")])
BLOCKS = [block for page in PAGES for block in read(page)]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and block.page not in RUN_ELSEWHERE]


# --- every block ------------------------------------------------------------------------------------------------------


def test_every_block_says_what_it_is():
    odd = [str(block) for block in BLOCKS if block.language not in {"sh", "toml", "python", "json", "text", "r"}]
    assert not odd, f"expected ```sh, ```toml, ```python, ```json, ```text or ```r, found another word, or none: {odd}"
    opened = {
        page.name: len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) - 2 * len(read(page))
        for page in PAGES
    }
    assert not {page: left for page, left in opened.items() if left}, "a block that is not read: mend its first line"


def test_few_blocks_are_not_run_and_each_says_why():
    marked = [block for block in BLOCKS if block.title]
    odd = {str(block): block.title for block in marked if block.title not in NOT_RUN}
    assert not odd, f"expected one of the titles of NOT_RUN, found {odd}"
    counted = Counter(block.title for block in marked)
    assert len(marked) <= 40, counted
    never_end = [
        str(block) for block in BLOCKS if block.language == "sh" and not block.title and FOREGROUND.search(block.text)
    ]
    assert not never_end, (
        f'expected blocks that end to be run; mark these as title="stays in the foreground": {never_end}'
    )
    assert set(NOT_RUN) <= set(counted), "a reason that nobody has: take it out of NOT_RUN"


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_settings_are_read_by_the_products_own_classes(block):
    given = tomllib.loads(block.text)
    owners = [kind for kind in (Study, Operations, SiteFile) if given.keys() <= kind.model_fields.keys()]
    assert len(owners) == 1, f"expected the keys of one file of a study, found {sorted(given)}"
    (kind,) = owners
    if kind is SiteFile:
        SiteFile.model_validate({"name": "west"} | given)
        return
    base = tomllib.loads((TEMPLATE / f"{kind.__name__.lower()}.toml").read_text())
    if (
        given.get("privacy", {}).get("dp", {}).get("unit") == "patient" and "algorithm" not in given
    ):  # a study that may have it
        base |= {"weights": "uniform", "algorithm": {"preset": "fedavg", "local": {"rate": 1.0}}}
    read = kind.model_validate(base | given)
    if isinstance(read, Study) and not block.title:  # some need a library that is not everywhere
        build(read)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_messages_are_json(block):
    assert json.loads(block.text)


def commands(text: str) -> list[list[str]]:
    """The words of every `fedrounds …` in a shell block."""
    text = re.sub(r"<<'END'\n.*?^END$", "", text.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    found, open_line = [], ""
    for line in text.splitlines():
        parts = shlex.shlex(open_line + line, posix=True, punctuation_chars=";&|")
        parts.whitespace_split = True
        try:
            words = [*parts, ";"]
        except ValueError:  # a quotation that goes on
            open_line += f"{line}\n"
            continue
        open_line, command = "", []
        for word in words:
            if set(word) <= set(";&|"):
                found.append(command)
                command = []
            else:
                command.append(word)
    assert not open_line, f"a quotation that does not end: {open_line}"
    return [command[1:] for command in found if command[:1] == ["fedrounds"]]


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_the_program_knows_every_command(block):
    from fedrounds.cli.main import _parser

    for words in commands(block.text):
        assert _parser().parse_args(words), words
    for target in re.findall(r"^make (?:-C \S+ )?([\w-]+)", block.text, re.MULTILINE):
        assert re.search(rf"^{target}:", (HOUSE / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_program_knows_commands_in_a_sentence_too(page):
    """Those by themselves in an indented block whole; those between backticks as far as they go."""
    from fedrounds.cli.main import UsageError, _parser

    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in INDENTED.findall(text):
        for words in commands(re.split(r"\s{3,}", line)[0]):
            assert _parser().parse_args(words), words
    refused = []
    for line in re.findall(r"`(fedrounds [\w-][^`]*)`", text):
        for words in commands(line.replace("\n", " ")):
            try:
                _parser().parse_args(words)
            except UsageError as error:
                refused += [str(error)] * ("the following arguments are required" not in str(error))
    assert not refused


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_python(block):
    assert ast.parse(block.text).body


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user(tmp_path_factory, warm):
    """Runs a block as a user with an empty home would, in one folder, with what blocks before it left there.

    MLflow's and Prefect's empty databases lie ready in the study that `init` makes: other tests see their migrations run.
    """
    home = tmp_path_factory.mktemp("user")
    program = home / "bin" / "fedrounds"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\nsys.path.insert(0, {str(HOUSE / 'tests')!r})\nimport warmed\n"
        "asked = warmed.Started(os.environ[warmed.ADDRESS], 'fedrounds.cli.main', sys.argv[1:], os.environ, stdout=1, stderr=2)\n"
        "sys.exit(asked.wait())\n"
    )
    program.chmod(stat.S_IRWXU)
    place = home / "empty"
    place.mkdir()
    env = alone(HOME=str(home), PATH=f"{program.parent}:{os.environ['PATH']}")

    def run(block: Block) -> str:
        if block.language == "python":
            done = warmed.run(os.environ[warmed.ADDRESS], "warmed", ["code", block.text], env, place)
        else:
            words = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        if (mlruns := place / "my-study" / "mlruns").is_dir() and not (mlruns / ".cache").exists():
            warm(mlruns)
        return done.stdout

    return run


def test_the_tutorial_does_what_it_says(user):
    said = ""
    for block in read(HOUSE / "docs" / "tutorial.md"):
        if block.language == "text":
            missing = [line for line in block.text.splitlines() if line not in said.splitlines()]
            assert not missing, f"{block}: expected these lines, found\n{said}"
        elif not block.title:
            said = user(block)


@pytest.mark.parametrize(
    "block", [it for it in of("sh", "python") if not it.title and not it.page.startswith("docs/tutorial.")], ids=str
)
def test_other_pages_run_after_the_tutorial(user, block):
    user(block)


# --- two languages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda name: name)
def test_both_languages_say_the_same_commands(english, chinese):
    ours, theirs = ([line for block in read(HOUSE / name) for line in _lines(block)] for name in (english, chinese))
    missing, more = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    assert not missing, f"in {english} alone: add these lines to {chinese}"
    assert not more, f"in {chinese} alone: take these lines out of it, or mend them"
    assert ours == theirs


def _lines(block: Block) -> list[str]:
    """What it says, comments aside; what programs print and drawings may be told otherwise."""
    said = [] if block.language == "text" else re.sub(r"\s+# .*", "", block.text).splitlines()
    return [f"{block.language} {block.title}", *said] if said else []


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda name: name)
def test_both_languages_have_the_same_sections(english, chinese):
    parts = [
        re.findall(r"^(#+) ", FENCE.sub("", (HOUSE / name).read_text(encoding="utf-8")), re.MULTILINE)
        for name in (english, chinese)
    ]
    assert parts[0] == parts[1]


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, elsewhere."""
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
        cwd=HOUSE,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_every_page_is_in_the_site(site):
    built = {page.stem for page in site.glob("*.html")}
    assert {page.stem for page in (HOUSE / "docs").glob("*.md")} <= built
    assert {"core.answer", "core.models.glm", "core.privacy.disclosure"} <= {
        it.stem for it in site.glob("reference/*.html")
    }
    assert "withhold" in (site / "reference" / "core.privacy.disclosure.html").read_text()


def test_the_site_loads_nothing_from_elsewhere(site):
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:)?//|<link[^>]*rel=\"?stylesheet[^>]*//", re.IGNORECASE
    )
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text())] == []
    assert [
        sheet.name for sheet in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", sheet.read_text())
    ] == []
