"""The tables of a ledger, for SQLite and PostgreSQL alike.

Rows of visits, failures, promotions, acts, verdicts and operations are only ever added. What changes in time (the lease, notes, flow runs)
has its own table, so that a visit's state, the one large column, is written once: SQLite rewrites a whole row to change a bit of it.

To change a table: raise VERSION and write `migrations/version_N.py`, which brings the version before it up to date. A test holds a ledger that
was migrated step by step to one that was made at once; so a new column goes to its table's end.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
)

VERSION = (
    4  # 2: acts of people, and decisions that wait for one; 3: attempts, and what came in for them; 4: the audit log
)
ONLY = 1  # the key of a table with one row

metadata = MetaData()


def _visit() -> Column[int]:
    return Column("visit", Integer, ForeignKey("visits.visit"), primary_key=True)


# Found in every ledger from its first transaction on; PostgreSQL locks its row so that one writer works at a time.
version = Table(
    "fedrounds_ledger",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("lineage", String, nullable=False),
    Column("created", Double, nullable=False),
    Column("protocol", JSON, nullable=False),
)

operations = Table(
    "operations",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("from_round", Integer, nullable=False),
    Column("operations", JSON, nullable=False),
)

# One visit to the sites that closed: 1, 2, 3… without a gap, so the key itself refuses a second commit of the same visit.
visits = Table(
    "visits",
    metadata,
    Column("visit", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("ask", String, nullable=False),
    Column("base", String, nullable=False),
    Column("model", String, nullable=False),
    Column("suite_hash", String, nullable=False),
    Column("operations_version", Integer, ForeignKey("operations.version"), nullable=False),
    Column("started", Double, nullable=False),
    Column("committed", Double, nullable=False),
    Column("record", JSON, nullable=False),
    Column("checksum", String, nullable=False),  # SHA-256 of `state`
    Column("state", LargeBinary, nullable=False),  # last: whoever leaves it out never reads its pages
)

projected = Table("projected", metadata, _visit(), Column("at", Double, nullable=False))

verdicts = Table(
    "verdicts",
    metadata,
    _visit(),
    Column("site", String, primary_key=True),
    Column("passed", Boolean, nullable=False),
    Column("verdict", JSON, nullable=False),
)

promotions = Table(
    "promotions",
    metadata,
    _visit(),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("promoted", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("model", String, nullable=False),
    Column("pending", Boolean, nullable=False, server_default=false()),  # it passed the rule and waits for a person
)

# What a person did after `visit`: 1, 2, 3… without a gap.
acts = Table(
    "acts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("visit", Integer, ForeignKey("visits.visit"), nullable=False),
    Column("at", Double, nullable=False),
    Column("act", String, nullable=False),
    Column("round", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String, nullable=False),
)

# A try at a visit that did not close. `visit` is the number that it would have had; the next try may take it.
failures = Table(
    "failures",
    metadata,
    Column("visit", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("round", Integer, nullable=False),
    Column("ask", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("started", Double, nullable=False),
    Column("failed", Double, nullable=False),
)

# Requests that went out to sites: 1, 2, 3… over the whole ledger, whatever became of them, so that no number is used twice.
attempts = Table(
    "attempts",
    metadata,
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("visit", Integer, nullable=False),  # that it would close
    Column("round", Integer, nullable=False),
    Column("exchange", Integer, nullable=False),
    Column("opened", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("closed", Double),  # empty while it is open
    Column("outcome", String, nullable=False),  # committed, failed or dropped; empty while it is open
    Column("asking", LargeBinary, nullable=False),  # `core.asking`; emptied when it closes
)

# What came in for an attempt, one row a message and site however often it came.
replies = Table(
    "replies",
    metadata,
    Column("attempt", Integer, ForeignKey("attempts.attempt"), primary_key=True),
    Column("exchange", Integer, primary_key=True, autoincrement=False),
    Column("site", String, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("received", Double, nullable=False),
    Column("outcome", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("owner", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("host", String, nullable=False),
    Column("born", String, nullable=False),  # when the process started: a recycled pid is another process
    Column("taken", Double, nullable=False),
    Column("expires", Double, nullable=False),
)

notes = Table("notes", metadata, Column("key", String, primary_key=True), Column("value", JSON, nullable=False))

# The audit log, `core.privacy.log`: a line a leaf, 0, 1, 2… without a gap. `about` is the number of the visit, act or attempt that it is about.
log = Table(
    "log",
    metadata,
    Column("leaf", Integer, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("about", Integer, nullable=False),
    Column("hash", String, nullable=False),
    Column("line", LargeBinary, nullable=False),
)

# Its signed heads, one a transaction that added to it. `peaks` are all that is needed to go on.
heads = Table(
    "heads",
    metadata,
    Column("size", Integer, primary_key=True, autoincrement=False),
    Column("root", String, nullable=False),
    Column("peaks", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
)

# Who witnessed a head, and with which line.
cosignatures = Table(
    "cosignatures",
    metadata,
    Column("size", Integer, ForeignKey("heads.size"), primary_key=True),
    Column("witness", String, primary_key=True),
    Column("line", Text, nullable=False),
)
