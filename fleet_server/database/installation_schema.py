"""Tables of the installation as a whole: its activation, and its secret encryption key."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, String, Table

from fleet_server.database.columns import id_column, metadata

# -- the secret encryption key: which one writes, and what outlives it -----------------------------
secret_key_state = Table(
    "secret_key_state",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("key_id", LargeBinary(8), nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
    Column("done_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary(32), nullable=False),
)

sealed_secrets = Table(
    "sealed_secrets",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)

# -- installation: only what is signed in these rows counts ---------------------------------------
installation_authority = Table(
    "installation_authority",
    metadata,
    Column("installation_id", id_column(), primary_key=True),
    Column("manifest", LargeBinary, nullable=False),
    Column("activated_at_ms", BigInteger, nullable=False),
    Column("claim", LargeBinary, nullable=False),
)

platform_role_grants = Table(
    "platform_role_grants",
    metadata,
    Column("grant_sha256", LargeBinary(32), primary_key=True),
    Column("installation_id", id_column(), nullable=False),
    Column("signed", LargeBinary, nullable=False),
    Column("imported_at_ms", BigInteger, nullable=False),
)
