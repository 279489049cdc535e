"""What several parts of a ledger ask of its tables."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Select, func, select

from fedrounds.ledger import schema
from fedrounds.ledger.rows import Lineage

ENTRY = [column for column in schema.visits.c if column.name not in ("state", "checksum")]


def last(key: Any, *columns: Any) -> Select[Any]:
    """The row with the greatest key."""
    return select(*columns).order_by(key.desc()).limit(1)


def is_last(connection: Connection, row: dict[str, Any]) -> bool:
    """Whether the last visit is this row."""
    found = connection.execute(last(schema.visits.c.visit, *ENTRY, schema.visits.c.checksum)).mappings().first()
    sent = row | {"record": json.loads(json.dumps(row["record"]))}
    return found is not None and all(found[name] == value for name, value in sent.items())


def newest(connection: Connection) -> int:
    """The last visit, 0 before the first."""
    return connection.scalar(select(func.max(schema.visits.c.visit))) or 0


def lineage_of(connection: Connection) -> Lineage | None:
    """The lineage, None before `begin`."""
    row = connection.execute(select(schema.study)).first()
    return Lineage(row.name, row.digest, row.lineage, row.created) if row else None
