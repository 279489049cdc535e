"""Version 3: numbered attempts at sites out in the world, and what came in for them."""

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    """Nothing went out to sites before."""
    op.create_table(
        "attempts",
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("visit", "round", "exchange")),
        sa.Column("opened", sa.Double, nullable=False),
        sa.Column("deadline", sa.Double, nullable=False),
        sa.Column("closed", sa.Double),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("asking", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "replies",
        sa.Column("attempt", sa.Integer, sa.ForeignKey("attempts.attempt"), primary_key=True),
        sa.Column("exchange", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("site", sa.String, primary_key=True),
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("bytes_in", sa.BigInteger, nullable=False),
        sa.Column("bytes_out", sa.BigInteger, nullable=False),
    )
