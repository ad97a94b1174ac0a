"""Tables of server processes, and of the revisions of the schema that they can work with."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Integer, String, Table, Text

from fleet_server.database.columns import id_column, metadata

REVISION = "0003"
"""Of the newest migration, which is this schema."""

replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", id_column(), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("streams", Integer, nullable=False, server_default="0"),
    Column("admission_per_s", Double, nullable=False, server_default="0"),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("heartbeat_at_ms", BigInteger, nullable=False),
    Column("drain_requested_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("drain_deadline_ms", BigInteger, nullable=False, server_default="0"),
    Column("drain_reason", Integer, nullable=False, server_default="0"),
    Column("secret_keys", String(64), nullable=False, server_default=""),
    Column("tls_cas", String(320), nullable=False, server_default=""),
    Column("boot_id", id_column(), nullable=False, server_default=""),
    Column("endpoints", Text, nullable=False, server_default=""),
    Column("schema_revision", String(32), nullable=False, server_default=""),
    Column("max_streams", Integer, nullable=False, server_default="0"),
    Column("admitted_per_s", Double, nullable=False, server_default="0"),
    Column("commit_mark", BigInteger, nullable=False, server_default="0"),
)

# One row for each revision above 0001 that the database has: what an older server, which does not know it, asks.
schema_revisions = Table(
    "schema_revisions",
    metadata,
    Column("revision", String(32), primary_key=True),
    Column("oldest_server", String(32), nullable=False),
)
