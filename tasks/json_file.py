"""A small JSON file that a crash cannot tear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """What it holds; nothing if it is absent or damaged."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Put `value` in its place, wholly or not at all."""
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps(value))
    scratch.replace(file)
