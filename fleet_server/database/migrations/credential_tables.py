"""Tables about the end of credentials (`database.credential_schema`): part of v0001, which is long enough."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create() -> None:
    """Make them; `nodes` is there."""
    op.create_table(
        "credential_rotations",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("old_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("ordered_by", sa.String(length=63), nullable=False),
        sa.Column("ordered_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("new_key_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealed_api_key", sa.LargeBinary(), nullable=False),
        sa.Column("keys_issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("asked_from_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("asked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_credential_rotations_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_credential_rotations")),
    )
    op.create_table(
        "node_certificate_budgets",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_node_certificate_budgets_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_certificate_budgets")),
    )
    op.create_table(
        "revocation_items",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("item", sa.String(length=32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_by", sa.String(length=63), nullable=False),
        sa.Column("note", sa.String(length=500), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_revocation_items_node_id")),
        sa.PrimaryKeyConstraint("node_id", "item", name=op.f("pk_revocation_items")),
    )
