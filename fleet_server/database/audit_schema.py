"""Tables about the chains of the audit (room audit). Part of `schema`, and to be read like it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, String, Table

from fleet_server.database.columns import id_column as _id
from fleet_server.database.columns import metadata

# Newest number of each chain that a checkpoint has signed: so the next one names only chains that grew.
audit_signed = Table(
    "audit_signed",
    metadata,
    Column("writer", _id(), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# Number of the newest checkpoint, and SHA-256 of its statement: what the next one follows. From number `since` on
# checkpoints vouch for where chains ended: a person took the audit as it stood before.
audit_newest = Table(
    "audit_newest",
    metadata,
    Column("cluster_id", _id(), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

# What the server makes of each node's own chain.
node_audits = Table(
    "node_audits",
    metadata,
    Column("node_id", _id(), primary_key=True),
    Column("chain", BigInteger, nullable=False),
    Column("last_at_ms", BigInteger, nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("day_rows", BigInteger, nullable=False),
    Column("day_bytes", BigInteger, nullable=False),
    Column("finding", String(300), nullable=False),
    Column("finding_at_ms", BigInteger, nullable=False),
)

# When a server found that the database went back in time; 0 until a person has settled what that cost. Under no MAC:
# a row keeps nodes out, and lets none in.
rewinds = Table(
    "rewinds",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("found_by", _id(), nullable=False),
    Column("settled_at_ms", BigInteger, nullable=False),
)
