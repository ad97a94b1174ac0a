"""Trust bundles and the server's TLS (`database.tls_schema`): part of v0001, which is long enough."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Make them; `clusters` is there."""
    op.create_table(
        "trust_bundles",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("content_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_trust_bundles_cluster_id")),
        sa.PrimaryKeyConstraint("cluster_id", "generation", "number", name=op.f("pk_trust_bundles")),
    )
    op.create_table(
        "tls_cas",
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("own", sa.Integer(), nullable=False),
        sa.Column("sealed_private", sa.LargeBinary(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_generation", sa.BigInteger(), nullable=False),
        sa.Column("first_number", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_tls_cas_cluster_id")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_tls_cas")),
    )
    op.create_table(
        "tls_leaves",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("ca_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_private", sa.LargeBinary(), nullable=False),
        sa.Column("made_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_tls_leaves_cluster_id")),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_tls_leaves")),
    )
