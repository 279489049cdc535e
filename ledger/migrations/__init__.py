"""How a ledger of an earlier version is brought up to date: Alembic's operations, one file a version, inside the caller's transaction.

The version stays in the table that it was in from the first release on: opening a ledger reads it without importing Alembic, its row is
what writers lock, and a release that knows nothing of Alembic still refuses what is too new for it.
"""

from __future__ import annotations

from importlib import import_module

from sqlalchemy import Connection


def upgrade(connection: Connection, found: int, wanted: int) -> None:
    """Bring the tables of version `found` (0: none) to version `wanted`; nothing that was written is changed."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    with Operations.context(MigrationContext.configure(connection)):
        for version in range(found + 1, wanted + 1):
            import_module(f"{__name__}.version_{version}").upgrade()
