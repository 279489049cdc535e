"""Version 1, the first release: the study, its visits, verdicts, decisions, failures, the lease and notes."""

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    """Make the tables of an empty database."""
    op.create_table(
        "fedrounds_ledger",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("name", "digest", "lineage")),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("protocol", sa.JSON, nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("from_round", sa.Integer, nullable=False),
        sa.Column("operations", sa.JSON, nullable=False),
    )
    op.create_table(
        "visits",
        sa.Column("visit", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("round", sa.Integer, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("ask", "base", "model", "suite_hash")),
        sa.Column("operations_version", sa.Integer, sa.ForeignKey("operations.version"), nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("committed", sa.Double, nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
        sa.Column("checksum", sa.String, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
    op.create_table("projected", _visit(), sa.Column("at", sa.Double, nullable=False))
    op.create_table(
        "verdicts",
        _visit(),
        sa.Column("site", sa.String, primary_key=True),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("verdict", sa.JSON, nullable=False),
    )
    op.create_table(
        "promotions",
        _visit(),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("promoted", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("model", sa.String, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("visit", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("ask", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("failed", sa.Double, nullable=False),
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("born", sa.String, nullable=False),
        sa.Column("taken", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
    )
    op.create_table("notes", sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.JSON, nullable=False))


def _visit() -> "sa.Column[int]":
    return sa.Column("visit", sa.Integer, sa.ForeignKey("visits.visit"), primary_key=True)
