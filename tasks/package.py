"""What a hospital must have to take part in a study: the protocol as it is written, the gate's rules, the suite. Public, and data only.

A coordinator packs it from the study's folder; a hospital unpacks it into a folder of its own, where its site.toml makes it whole.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from fedrounds.core.errors import StudyError, UpdateRejected
from fedrounds.core.operations import Gate
from fedrounds.core.study import Study
from fedrounds.sources.site_file import SiteFile
from fedrounds.tasks import folder as folders
from fedrounds.tasks.folder import Folder

VERSION = 1
LARGEST = 4 << 20  # bytes of a package
ACTIVE = {
    "row_condition",
    "condition_parser",
    "query",
    "unexpected_rows_query",
    "template_dict",
    "batch_id",
    "result_format",
}
ELSEWHERE = (
    "query",
    "unexpected_rows",
    "other_table",
    "json_schema",
)  # in the name of an expectation that looks beyond its columns
SUITE = "suite"  # what the suite's file is called at a hospital


def pack(study: Path) -> bytes:
    """The study in a folder as bytes: the same files always give the same. Raises StudyError where the folder says what it cannot mean."""
    return packed(folders.read_protocol(study), study)


def packed(folder: Folder, study: Path) -> bytes:
    """A study's folder that was read already, as bytes."""
    gate = folder.operations.gate.model_dump(mode="json", exclude={"suite", "rules"})
    document = {
        "version": VERSION,
        "study": (study / "study.toml").read_text(encoding="utf-8"),
        "gate": gate,
        "suite": dict(folder.suite.document) if folder.suite else None,
        "timezone": folder.operations.schedule.timezone if folder.operations.schedule else "UTC",
    }
    data = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > LARGEST:
        raise StudyError(
            f"expected a study of at most {LARGEST} bytes in {study}, found {len(data)}: make its suite smaller"
        )
    return data


def unpack(data: bytes, digest: str, into: Path, site_file: Path, site: SiteFile) -> Folder:
    """Write the study that these bytes are into a folder, beside the hospital's own site file, and read it.

    Args:
        digest: of the protocol that was asked about.
        site_file, site: the hospital's site.toml and what it says; where its sources' relative paths start.

    Raises:
        UpdateRejected: the bytes are no package, or one of another protocol; nothing was written.
        StudyError: the site file does not fit the study.
    """
    document = _read(data)
    if not document["gate"].keys().isdisjoint(("suite", "rules")):
        raise UpdateRejected("expected what a failed gate does in a study's package, found more: it was refused")
    try:
        study = Study.model_validate(tomllib.loads(document["study"]))
        gate = Gate.model_validate(document["gate"])
        ZoneInfo(document["timezone"])
    except (ValueError, KeyError, OSError, RecursionError):  # of TOML, pydantic and zoneinfo
        raise UpdateRejected(
            "expected a study that this release reads, found another: install the coordinator's release"
        ) from None
    if study.digest != digest:
        raise UpdateRejected(
            f"expected protocol {digest[:12]} in the package, found {study.digest[:12]}: it was refused"
        )
    texts = {"study.toml": document["study"], "operations.toml": _operations(gate, document, site.name)}
    if document["suite"] is not None:
        _harmless(document["suite"])
        texts[f"expectations/{SUITE}.json"] = json.dumps(document["suite"], indent=1, ensure_ascii=False)
    texts[f"sites/{site.name}.toml"] = site_file.read_text(encoding="utf-8")
    try:
        files = {name: text.encode() for name, text in texts.items()}
    except UnicodeEncodeError:
        raise UpdateRejected("expected text in a study's package, found half a character: it was refused") from None
    for name, data in files.items():
        file = into / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o700)
        scratch = file.with_name(f".{file.name}.new")
        scratch.write_bytes(data)
        scratch.replace(file)
    return folders.read(into, site_file.parent / site.data, alone=True)


def _read(data: bytes) -> Mapping[str, Any]:
    types = {"version": int, "study": str, "gate": dict, "suite": dict | None, "timezone": str}
    try:
        document = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        document = None
    version = document.get("version") if isinstance(document, dict) else None
    if not isinstance(document, dict) or type(version) is not int or version != VERSION:
        raise UpdateRejected(f"expected a study's package of version {VERSION}, found other bytes: it was refused")
    if document.keys() != types.keys() or not all(isinstance(document[key], kind) for key, kind in types.items()):
        raise UpdateRejected(f"expected {', '.join(types)} in a study's package, found others: it was refused")
    return document


def _harmless(suite: Mapping[str, Any]) -> None:
    """Refuse what a suite could make a hospital do beside judging columns: conditions are evaluated as code, queries reach other tables,
    a JSON schema may refer to any file or address.
    """
    listed = suite.get("expectations")
    if not isinstance(listed, list) or not all(isinstance(it, dict) for it in listed):
        raise UpdateRejected("expected a suite with a list of expectations, found another document: it was refused")
    for expectation in listed:
        asked, name = expectation.get("kwargs") or {}, str(expectation.get("type", ""))
        if (
            not isinstance(asked, dict)
            or ACTIVE & asked.keys()
            or any(word in name for word in ELSEWHERE)
            or "$PARAMETER" in json.dumps(expectation)
        ):
            raise UpdateRejected(
                f"expected a suite that judges columns alone, found {name[:60]} with a condition, a query or a parameter: it was refused"
            )


def _operations(gate: Gate, document: Mapping[str, Any], site: str) -> str:
    """The little of an operations.toml that a hospital needs. JSON's text, numbers and truth are TOML's too."""
    rules = gate.model_dump(mode="json", exclude={"suite", "rules"})
    if document["suite"] is not None:
        rules["suite"] = SUITE
    said = [f"{key} = {json.dumps(value)}" for key, value in rules.items()]
    days = [
        "[schedule]",
        'interval = "1d"',
        f"timezone = {json.dumps(document['timezone'])}",
        "",
    ]  # what day it is for the gate
    roster = f"sites = {json.dumps([site])}"  # of all that the study may state weights for
    return "\n".join(["rounds = 1", "quorum = 1", roster, "", "[gate]", *said, "", *days])
