"""Tables of the server's TLS: its CAs, and the certificate that every replica shows. Part of `schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, Table

from fleet_server.database.columns import metadata

tls_cas = Table(
    "tls_cas",
    metadata,
    Column("sha256", LargeBinary(32), primary_key=True),
    Column("cluster_id", ForeignKey("clusters.cluster_id"), nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("own", Integer, nullable=False),
    # Empty for one from outside, and once the key is of no use any more.
    Column("sealed_private", LargeBinary, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("first_generation", BigInteger, nullable=False),
    Column("first_number", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

tls_leaves = Table(
    "tls_leaves",
    metadata,
    Column("cluster_id", ForeignKey("clusters.cluster_id"), primary_key=True),
    Column("ca_sha256", LargeBinary(32), nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("sealed_private", LargeBinary, nullable=False),
    Column("made_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)
