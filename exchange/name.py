"""What an object in an exchange is called: `round/attempt/phase/digest`, and nothing else is a name.

    000012/001/reply/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

The digest is the SHA-256 of the object's bytes, so a name says what its object must be, and two ends that hold the same bytes call them
the same. Numbers are padded: what sorts as text sorts in time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from fedrounds.core.errors import UpdateRejected

PARTS = (
    re.compile(r"[0-9]{6}"),
    re.compile(r"[0-9]{3}"),
    re.compile(r"[a-z][a-z0-9-]{0,31}"),
    re.compile(r"[0-9a-f]{64}"),
)


@dataclass(frozen=True, order=True)
class Name:
    """The name of an object. Names are ordered by round, attempt, phase, digest.

    Raises UpdateRejected where a part is none: a round is below a million, an attempt below a thousand, a phase is a word of small
    letters, digits and hyphens, a digest is 64 hex digits.

    >>> Name.of(b"sums", round=12, attempt=1, phase="reply").folder
    '000012/001/reply'
    """

    round: int
    attempt: int
    phase: str
    digest: str

    def __post_init__(self) -> None:
        _checked(str(self), len(PARTS))

    def __str__(self) -> str:
        return f"{folder(self.round, self.attempt, self.phase)}/{self.digest}"

    @property
    def folder(self) -> str:
        """All of the name but the digest."""
        return folder(self.round, self.attempt, self.phase)

    @classmethod
    def of(cls, data: bytes, round: int, attempt: int, phase: str) -> Name:
        """The name of these bytes."""
        return cls(round, attempt, phase, sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Name:
        """The name that `str` writes as this text. Raises UpdateRejected on any other text."""
        number, attempt, phase, digest = _checked(text, len(PARTS))
        return cls(int(number), int(attempt), phase, digest)


def folder(round: int, attempt: int | None = None, phase: str | None = None) -> str:
    """The folder of a round, of one attempt, or of one phase of it: what `list` takes.

    >>> folder(12), folder(12, 1), folder(12, 1, "reply")
    ('000012', '000012/001', '000012/001/reply')
    """
    parts = [f"{round:06d}"]
    if attempt is not None:
        parts.append(f"{attempt:03d}")
    if attempt is not None and phase is not None:
        parts.append(phase)
    return "/".join(parts)


def folder_of(text: str) -> str:
    """The text, if it is a folder that names can be in; empty for all of them. Raises UpdateRejected on any other."""
    return "/".join(_checked(text, len(PARTS) - 1, fewer=True)) if text else ""


def _checked(text: str, most: int, fewer: bool = False) -> list[str]:
    parts = text.split("/", most)
    enough = len(parts) <= most if fewer else len(parts) == most
    if not enough or not all(pattern.fullmatch(part) for pattern, part in zip(PARTS, parts, strict=False)):
        what = "a folder as round/attempt/phase" if fewer else "a name as round/attempt/phase/digest"
        raise UpdateRejected(f"expected {what}, found {text[:80]!r}: it was refused")
    return parts
