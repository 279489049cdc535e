"""What tests of sources share: a declaration as site.toml has it, and the one line that a person sees where it cannot be."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter

from fedrounds.core.errors import FedroundsError
from fedrounds.sources import Source, load

CANARY = "7351942"


def parse(declaration: dict[str, Any]) -> Any:
    return TypeAdapter(Source, config=ConfigDict(hide_input_in_errors=True)).validate_python(declaration)


def refusal(source: Any, root: Path, kind: type[FedroundsError]) -> str:
    """The one line a person sees; neither it nor anything it was raised from shows a planted value."""
    with pytest.raises(kind) as caught:
        load(source, root, "north")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None or CANARY not in repr(caught.value.__context__)
    message = str(caught.value)
    assert "site 'north'" in message
    assert "expected" in message
    assert "found" in message
    assert "\n" not in message
    return message
