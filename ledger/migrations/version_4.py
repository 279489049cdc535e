"""Version 4: the audit log, its heads, and who witnessed them."""

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    """A log begins with the next thing that is done; its first leaf says how much was there before."""
    op.create_table(
        "log",
        sa.Column("leaf", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("about", sa.Integer, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "heads",
        sa.Column("size", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("root", sa.String, nullable=False),
        sa.Column("peaks", sa.LargeBinary, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "cosignatures",
        sa.Column("size", sa.Integer, sa.ForeignKey("heads.size"), primary_key=True),
        sa.Column("witness", sa.String, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
    )
