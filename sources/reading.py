"""What the words of a statement of SQL tell: whether it only reads (the connection is read-only besides, `sources/sql.py`), and in which order."""

from __future__ import annotations

import re

_NOT_CODE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_WRITES = {"insert", "update", "delete", "merge", "into"}


def reads(query: str) -> str:
    """The query; raises ValueError unless it is one SELECT."""
    bare = _bare(query)
    words = re.findall(r"\w+", bare)
    if ";" in bare or words[:1] not in (["select"], ["with"]) or not _WRITES.isdisjoint(words):
        raise ValueError("expected one statement that only reads: SELECT … or WITH … SELECT …")
    return query


def ordered(query: str) -> bool:
    """Whether it says in which order its rows come; ORDER BY inside of brackets does not.

    >>> ordered("SELECT a FROM t ORDER  BY a"), ordered("SELECT rank() OVER (ORDER BY a) FROM (SELECT ')' AS a) t")
    (True, False)
    """
    bare, inner = _bare(query), ""
    while inner != bare:
        inner, bare = bare, re.sub(r"\([^()]*\)", " ", bare)
    return re.search(r"\border\s+by\b", bare) is not None


def _bare(query: str) -> str:
    return _NOT_CODE.sub(" ", query).strip().removesuffix(";").lower()
