"""Version 2: what people do about versions, and decisions that wait for a person."""

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    """Decisions of version 1 waited for nobody."""
    op.add_column("promotions", sa.Column("pending", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "acts",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("visit", sa.Integer, sa.ForeignKey("visits.visit"), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("act", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.String, nullable=False),
    )
