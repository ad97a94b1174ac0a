"""Tables about the end of credentials: rotations under way, and what is left to do for nodes that were revoked."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, String, Table, Text

from fleet_server.database.columns import metadata

credential_rotations = Table(
    "credential_rotations",
    metadata,
    Column("node_id", ForeignKey("nodes.node_id"), primary_key=True),
    Column("wanted", Integer, nullable=False),
    Column("old_until_ms", BigInteger, nullable=False),
    Column("ordered_by", String(63), nullable=False),
    Column("ordered_at_ms", BigInteger, nullable=False),
    Column("new_key_sha256", LargeBinary(32), nullable=False),
    Column("sealed_api_key", LargeBinary, nullable=False),
    Column("keys_issued_at_ms", BigInteger, nullable=False),
    # Outside the MAC: it confers nothing.
    Column("asked_from_ms", BigInteger, nullable=False, server_default="0"),
    Column("asked", Integer, nullable=False, server_default="0"),
    Column("mac", LargeBinary, nullable=False),
)

revocation_items = Table(
    "revocation_items",
    metadata,
    Column("node_id", ForeignKey("nodes.node_id"), primary_key=True),
    Column("item", String(32), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("done_at_ms", BigInteger, nullable=False),
    Column("done_by", String(63), nullable=False),
    Column("note", String(500), nullable=False),
)

node_certificate_budgets = Table(  # without a MAC: it confers nothing
    "node_certificate_budgets",
    metadata,
    Column("node_id", ForeignKey("nodes.node_id"), primary_key=True),
    Column("from_ms", BigInteger, nullable=False),
    Column("asked", Integer, nullable=False),
)
