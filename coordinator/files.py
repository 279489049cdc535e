"""Files of a coordinator, and a hospital's secrets: written whole or not at all, for their owner alone, read as what they must be."""

from __future__ import annotations

import os
import secrets
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fedrounds.core.errors import StateError, StudyError

T = TypeVar("T", bound=BaseModel)
PUBLIC, SECRET = 0o644, 0o600


def write(file: Path, text: str, mode: int = PUBLIC) -> None:
    """Put the text there, in one step. A secret's file is never readable by others, not even while it is written."""
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(file)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StateError(
            f"expected to write {file}, found: {error.strerror}: check the folder's rights and free space"
        ) from None


def secret(
    file: Path,
    what: str = "a secret",
    lost: str = "restore it from a copy; the coordinator's user must own it",
) -> str:
    """The text of a secret's file.

    Args:
        what: is expected there.
        lost: what to do where it cannot be read.

    Raises StateError where it is not there, or others may read it.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise StateError(
                f"expected {what} that its owner alone reads, found {file} open to others: chmod 600 {file}"
            )
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise StateError(f"expected {what} in {file}, found: {error.strerror}: {lost}") from None


def typed(text: str, kind: type[T], file: Path) -> T:
    """TOML as that type, or one line about the first thing that is wrong; it shows keys, never what stands there."""
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        where = str(error).rpartition(" (")[2].rstrip(")")
        raise StudyError(f"expected TOML in {file}, found a mistake ({where}): correct it there") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key, said = (
            ".".join(str(part) for part in first["loc"]) or "the file",
            first["msg"].removeprefix("Value error, "),
        )
        raise StudyError(f"expected another `{key}` in {file}: {said[0].lower()}{said[1:]}: correct it") from None
