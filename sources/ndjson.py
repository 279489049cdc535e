"""Files of newline-delimited JSON, packed or not: one resource of FHIR a line, never more than one line in memory."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedrounds.core.errors import DataContractError, StudyError
from fedrounds.sources import cells

ENDINGS = (".ndjson", ".ndjson.gz")
LONGEST = 16 * 2**20  # bytes of a line: a resource with a picture in it fits


def files(root: Path, path: str, site: str) -> list[Path]:
    """The files that `path` names, in the order of their names: a file, or those of a folder."""
    place = root / path
    if not place.is_dir():
        return [cells.existing(root, path, site)]
    found = sorted(file for file in place.iterdir() if file.name.endswith(ENDINGS))
    if not found:
        raise StudyError(
            f"site '{site}': expected files .ndjson or .ndjson.gz in {place}, found none: correct `path` in the site file"
        )
    return found


def resources(file: Path, place: str, wanted: frozenset[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each resource of a type that is wanted, and its line's number; a blank line is skipped.

    Raises:
        DataContractError: a line is no resource, is endless, or the file is damaged.
    """
    words = [f'"{kind}"'.encode() for kind in (*wanted, "Bundle")]
    number, problem = 0, ""
    for number, line in enumerate(_lines(file, place), 1):
        whole = line.startswith(b"{") and line.endswith(b"}")
        if not line or (whole and not any(word in line for word in words)):
            continue
        resource = _parsed(line)
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if not isinstance(kind, str):
            problem = f"one resource of FHIR a line, found none in line {number}: export as application/fhir+ndjson"
            break
        if kind == "Bundle":
            problem = f"resources, found a Bundle in line {number}: export anew and in full, not what changed since"
            break
        if kind in wanted:
            yield number, resource
    if problem:
        raise DataContractError(f"{place}: expected {problem}")


def _parsed(line: bytes) -> Any:
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _refuse(_: str) -> None:
    raise ValueError  # NaN and Infinity are no JSON


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _lines(file: Path, place: str) -> Iterator[bytes]:
    """Stripped lines."""
    problem = ""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            first = True
            while line := stream.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    problem = f"lines of at most {LONGEST // 2**20} MiB, found a longer one"
                    break
                yield (line.removeprefix(b"\xef\xbb\xbf") if first else line).strip()
                first = False
    except (OSError, EOFError, zlib.error) as error:
        problem = f"a file that can be read to its end, found a damaged or forbidden one ({type(error).__name__})"
    if problem:
        raise DataContractError(f"{place}: expected {problem}: export it anew")
