"""Tables of what people sign (rooms trust and approvals). Part of `schema`, and to be read like it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, String, Table

from fleet_server.database.columns import id_column as _id
from fleet_server.database.columns import metadata

# -- trust: their public keys, and what owners signed ------------------------------------------------
operator_keys = Table(
    "operator_keys",
    metadata,
    Column("key_id", LargeBinary(16), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("operator", String(63), nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("enrolled_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

cluster_people = Table(
    "cluster_people",
    metadata,
    Column("cluster_id", ForeignKey("clusters.cluster_id"), primary_key=True),
    Column("kept", LargeBinary, nullable=False),  # serialised fleet.v1.TrustBundleStatement: owners, policy, grants
    Column("mac", LargeBinary, nullable=False),
)

# -- approvals: protected commands that wait for people's signatures --------------------------------
approvals = Table(
    "approvals",
    metadata,
    Column("approval_id", _id(), primary_key=True),
    Column("cluster_id", _id(), nullable=False),
    Column("action", String(128), nullable=False),
    Column("arguments", LargeBinary, nullable=False),
    Column("intent", LargeBinary, nullable=False),  # serialised fleet.v1.Signed, with the signatures so far
    Column("ttl_s", BigInteger, nullable=False),
    Column("created_by", String(63), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("issue_id", _id(), nullable=False, server_default=""),
    Column("closed_by", String(63), nullable=False, server_default=""),
    Column("reason", String(500), nullable=False, server_default=""),
    Column("mac", LargeBinary, nullable=False),
    Index("ix_approvals_created", "created_at_ms"),
    Index("ix_approvals_state", "state", "expires_at_ms"),
)
