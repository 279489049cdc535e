"""`fedrounds expectations draft`: a suite from the dictionary, and what it finds in the data as they are."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrounds.core.table import Table
    from fedrounds.tasks.folder import Folder
    from fedrounds.tasks.redraft import Changes
    from fedrounds.tasks.verdict import Verdict


def draft(directory: Path, data: Path | None, as_json: bool) -> int:
    """Write `expectations/NAME.json`, or bring it up to date, then run it at every site that can be read here."""
    from fedrounds.core.operations import Gate
    from fedrounds.tasks import draft as drafting
    from fedrounds.tasks import folder as folders
    from fedrounds.tasks.redraft import merged

    folder = folders.read(directory, data, with_suite=False)
    name = folder.operations.gate.suite or folder.study.name
    file = directory / "expectations" / f"{name}.json"
    before = folders.suite_in(file, name).document if file.exists() else None
    tables = _tables(folder)
    seen = drafting.evidence(folder.study, {site: (table, folder.sites[site].absent) for site, table in tables.items()})
    document, changes = merged(name, before, drafting.draft(folder.study, folder.operations.gate, seen))
    _write(file, document)
    gate = Gate(**{**folder.operations.gate.model_dump(), "suite": name})
    operations = folder.operations.model_copy(update={"gate": gate})
    drafted = replace(folder, operations=operations, suite=folders.suite_in(file, name))
    found = _findings(drafted, tables)
    line = "" if folder.operations.gate.suite else f'suite = "{name}"'
    if as_json:
        print(json.dumps(_document(drafted, file, changes, found, line), ensure_ascii=False))
    else:
        _print(drafted, file, changes, found, line)
    return 0


def _tables(folder: Folder) -> dict[str, Table]:
    """The rows of the sites that can be read from here."""
    from fedrounds import sources
    from fedrounds.core.errors import FedroundsError
    from fedrounds.tasks.withheld import withheld

    tables: dict[str, Table] = {}
    for site, about in folder.sites.items():
        try:
            with withheld(f"to read the rows of site '{site}'"):
                tables[site] = sources.load(about.source, folder.data, site)
        except FedroundsError:  # a hospital elsewhere, or a file that is broken: `fedrounds check` says which
            continue
    return tables


def _write(file: Path, document: dict[str, Any]) -> None:
    from fedrounds.core.errors import StateError
    from fedrounds.tasks.redraft import text

    scratch = file.with_suffix(".new")
    try:
        file.parent.mkdir(exist_ok=True)
        scratch.write_text(text(document), encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        raise StateError(f"expected to write the suite to {file}, found: {error.strerror}: check its rights") from None


def _findings(folder: Folder, tables: dict[str, Table]) -> dict[str, Verdict]:
    from fedrounds.tasks.gate import check

    return {site: check(folder, site, table) for site, table in tables.items()}


def _document(folder: Folder, file: Path, changes: Changes, found: dict[str, Verdict], line: str) -> dict[str, Any]:
    from fedrounds.tasks.verdict import to_json

    assert folder.suite is not None
    return {
        "study": folder.study.name,
        "suite": folder.suite.name,
        "file": str(file),
        "expectations": len(folder.suite.document["expectations"]),
        **asdict(changes),
        "findings": {site: to_json(verdict) for site, verdict in found.items()},
        "not_read": [site for site in folder.sites if site not in found],
        "add_to_operations": line or None,
    }


def _print(folder: Folder, file: Path, changes: Changes, found: dict[str, Verdict], line: str) -> None:
    assert folder.suite is not None
    print(f"{file}: {len(folder.suite.document['expectations'])} expectations")
    told = {
        "added": changes.added,
        "updated": changes.updated,
        "unchanged": changes.unchanged,
        "withdrawn, as the dictionary no longer asks for them": changes.withdrawn,
        "edited by hand and kept": changes.edited,
        "of your own and kept": changes.own,
        "taken out by hand and left out": changes.removed,
    }
    for words, names in told.items():
        if names:
            few = f": {', '.join(names)}" if len(names) <= 12 and words != "unchanged" else ""
            print(f"  {len(names)} {words}{few}")
    for site, verdict in found.items():
        print(f"{site}: {_headline(verdict)}")
        for failure in verdict.failures:
            print(f"  {failure}")
        if verdict.note:
            print(f"  {verdict.note}")
    for site in folder.sites:
        if site not in found:
            print(f"{site}: cannot be read here, so the limits do not know it (`fedrounds check` says why)")
    print("Look at each, correct the dictionary, the data or the file; what you edit, add or take out stays so.")
    if line:
        print(f"To use it, add under [gate] in {folder.path / 'operations.toml'}: {line}")


def _headline(verdict: Verdict) -> str:
    word = "passes" if verdict.passed else "would fail"
    return (
        f"{word}, {len(verdict.failures)} of {verdict.checks} checks found something"
        if verdict.failures
        else f"passes {verdict.checks} checks"
    )
