"""What MkDocs asks of us while it builds the site: pages made from the source, and links that leave docs/ brought to where they lead here.

Nothing is written beside the built site, so a page made here is never stale: the reference is read from the docstrings of `core`, and the
READMEs and the changelog are taken as they are.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

HOUSE = Path(__file__).resolve().parents[1]
TAKEN = {"README.md": "readme.md", "README.zh-CN.md": "readme.zh-CN.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
WIDTH = 88  # of a line of code on a page
SECTION = re.compile(r"^(Args|Returns|Raises|Guarantees|Yields):$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that nav does not name yet are reached under "More"."""
    named = re.findall(r"[\w./-]+\.md", str(config.nav))
    more = sorted(page.name for page in Path(config.docs_dir).glob("*.md") if page.name not in named)
    if more:
        config.nav.append({"More": more})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {f"reference/{name}.md": text for name, text in reference().items()}
    made |= {to: from_house((HOUSE / name).read_text(encoding="utf-8")) for name, to in TAKEN.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links to code lead to its reference where it has one, and are words where not."""
    here = Path(page.file.src_uri)
    return markdown if page.file.src_uri.startswith("reference/") or here.name in TAKEN.values() else inside(markdown)


def inside(markdown: str) -> str:
    """A page of docs/ whose links to the tree beside it stay in the site, and whose links by a file's name go by the page's.

    A file that is not there is left for MkDocs to complain of.
    """

    def led(found: re.Match[str]) -> str:
        words, to, part = found[1], found[2], found[3] or ""
        if not to.startswith("../"):
            return f"[{words.removesuffix('.md')}]({to}{part})" if words == to else found[0]
        name = to.removeprefix("../")
        if name in TAKEN:
            return f"[{words}]({TAKEN[name]}{part})"
        if re.fullmatch(r"core/[\w/]+\.py", name) and (HOUSE / name).is_file():
            return f"[{words}](reference/{name.removesuffix('.py').replace('/', '.')}.md)"
        return f"`{words.strip('`')}`" if (HOUSE / name).exists() else found[0]

    return LINK.sub(led, markdown)


def from_house(markdown: str) -> str:
    """A page of the house's top folder, as if it lay in docs/."""

    def led(found: re.Match[str]) -> str:
        words, to, part = found[1], found[2], found[3] or ""
        if "://" in to:
            return found[0]
        if to in TAKEN:
            return f"[{words}]({TAKEN[to]}{part})"
        return f"[{words}]({to.removeprefix('docs/')}{part})" if to.startswith("docs/") else f"[{words}](../{to}{part})"

    return inside(LINK.sub(led, markdown))


# --- the reference ----------------------------------------------------------------------------------------------------


def reference() -> dict[str, str]:
    """A page for each module of core, and their index, by name."""
    pages, index = (
        {},
        ["# Reference", "", "What `fedrounds.core` offers, from its docstrings. It is pure: no files, no network.", ""],
    )
    for folder, title in (
        ("core", "Rounds and algorithms"),
        ("core/models", "Model families"),
        ("core/privacy", "Privacy"),
    ):
        index += [f"## {title}", "", "| module | what it holds |", "|---|---|"]
        for file in sorted((HOUSE / folder).glob("*.py")):
            module = ast.parse(file.read_text(encoding="utf-8"))
            says = ast.get_docstring(module)
            if not says or file.name == "__init__.py":
                continue
            name = f"{folder.replace('/', '.')}.{file.stem}"
            pages[name] = "\n".join(_module(name, says, module))
            index.append(f"| [`{name}`]({name}.md) | {_cell(says)} |")
        index.append("")
    return {**pages, "index": "\n".join(index)}


def _module(name: str, says: str, module: ast.Module) -> list[str]:
    lines = [f"# fedrounds.{name}", "", _text(says), ""]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            lines += _described(node, node.name, "##")
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        lines += _described(method, f"{node.name}.{method.name}", "###")
    return lines


def _described(node: ast.FunctionDef | ast.ClassDef, name: str, level: str) -> list[str]:
    return [f"{level} {name}", "", "```python", *_signature(node), "```", "", _text(ast.get_docstring(node) or ""), ""]


def _signature(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """How it is called; a class's fields where it has some."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        line = f"def {node.name}({ast.unparse(node.args)}){returns}"
        return [line] if len(line) <= WIDTH else _wrapped(line)
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    fields = [
        f"    {ast.unparse(it)}"
        for it in node.body
        if isinstance(it, ast.AnnAssign) and not ast.unparse(it).startswith("_")
    ]
    return [f"class {node.name}({bases}):" if bases else f"class {node.name}:", *(fields or ["    ..."])]


def _wrapped(line: str) -> list[str]:
    """A call that is too long for one line, an argument a line."""
    start, rest = line.split("(", 1)
    lines, depth, last = [f"{start}("], 0, 0
    for at, letter in enumerate(rest):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return [*lines, f"    {rest[last:at].strip()},", rest[at:]]
        if letter == "," and depth == 0:
            lines.append(f"    {rest[last:at].strip()},")
            last = at + 1
    return [line]


def _text(says: str) -> str:
    """A Google docstring as Markdown: its sections' names in bold, their entries as lists, examples as code."""
    parts = SECTION.split(says)
    lines = [_plain(parts[0])]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries, rest = [], []
        for line in body.strip("\n").splitlines():
            if line[:4].strip() or rest:  # the section has ended
                rest.append(line)
            elif line[4:5].strip():
                entries.append(line.strip())
            elif line.strip() and entries:
                entries[-1] += f" {line.strip()}"
        lines += [
            "",
            f"**{title}**",
            "",
            *(f"- {_safe(entry.removeprefix('* '))}" for entry in entries),
            "",
            _plain("\n".join(rest)),
        ]
    return "\n".join(lines).strip()


def _plain(text: str) -> str:
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        literal = block.lstrip().startswith(">>>") or all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```python\n{block}\n```" if literal and block.strip() else _safe(block))
    return "\n\n".join(blocks)


def _safe(text: str) -> str:
    """Words are words: no HTML, no emphasis, except what stands in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(it if number % 2 else re.sub(r"([*_<\[\]|])", r"\\\1", it) for number, it in enumerate(parts))


def _cell(says: str) -> str:
    return _safe(" ".join(says.split("\n\n")[0].split()))
