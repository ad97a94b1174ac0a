"""The first schema."""

import sqlalchemy as sa
from alembic import op

from fleet_server.database.migrations import audit_tables, credential_tables, trust_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit_checkpoints",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_checkpoints")),
    )
    op.create_table(
        "audit_heads",
        sa.Column("writer", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("writer", name=op.f("pk_audit_heads")),
    )
    op.create_table(
        "audit_rows",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("writer", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=80), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.LargeBinary(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_rows")),
        sa.UniqueConstraint("writer", "number", name=op.f("uq_audit_rows_writer")),
    )
    op.create_table(
        "clusters",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("installation_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_clusters")),
        sa.UniqueConstraint("name", name=op.f("uq_clusters_name")),
    )
    op.create_table(
        "command_issues",
        sa.Column("issue_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=63), nullable=False),
        sa.Column("idempotency_key", sa.String(length=128), nullable=True),
        sa.Column("request_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("specs", sa.LargeBinary(), nullable=False),
        sa.Column("refused", sa.LargeBinary(), nullable=False),
        sa.Column("issued_count", sa.Integer(), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("issue_id", name=op.f("pk_command_issues")),
        sa.UniqueConstraint("actor", "idempotency_key", name="uq_command_issues_idempotency"),
    )
    op.create_index("ix_command_issues_issued_at", "command_issues", ["issued_at_ms"], unique=False)
    op.create_table(
        "command_runs",
        sa.Column("issue_id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("issue_id", "node_id", name=op.f("pk_command_runs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "commands",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("command_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("issue_id", sa.String(length=64), nullable=False),
        sa.Column("spec_no", sa.Integer(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_by", sa.String(length=63), server_default="", nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=True),
        sa.Column("sent_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("accepted_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output", sa.LargeBinary(), nullable=True),
        sa.Column("output_truncated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.String(length=64), server_default="", nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("node_id", "seq", name=op.f("pk_commands")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_commands_command_id", "commands", ["command_id"], unique=True)
    op.create_index(
        "ix_commands_open",
        "commands",
        ["not_after_ms"],
        unique=False,
        sqlite_where=sa.text("state < 5"),
        postgresql_where=sa.text("state < 5"),
    )
    op.create_table(
        "operator_keys",
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("operator", sa.String(length=63), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_operator_keys_cluster_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_operator_keys")),
    )
    op.create_table(
        "cluster_people",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("kept", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_cluster_people_cluster_id")),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_cluster_people")),
    )
    op.create_table(
        "approvals",
        sa.Column("approval_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=128), nullable=False),
        sa.Column("arguments", sa.LargeBinary(), nullable=False),
        sa.Column("intent", sa.LargeBinary(), nullable=False),
        sa.Column("ttl_s", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=63), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("issue_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("closed_by", sa.String(length=63), server_default="", nullable=False),
        sa.Column("reason", sa.String(length=500), server_default="", nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("approval_id", name=op.f("pk_approvals")),
    )
    op.create_index("ix_approvals_created", "approvals", ["created_at_ms"], unique=False)
    op.create_index("ix_approvals_state", "approvals", ["state", "expires_at_ms"], unique=False)
    op.create_table(
        "secret_key_state",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.LargeBinary(length=8), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secret_key_state")),
    )
    op.create_table(
        "sealed_secrets",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sealed_secrets")),
    )
    op.create_table(
        "installation_authority",
        sa.Column("installation_id", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("activated_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("installation_id", name=op.f("pk_installation_authority")),
    )
    op.create_table(
        "platform_role_grants",
        sa.Column("grant_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("installation_id", sa.String(length=64), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("imported_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("grant_sha256", name=op.f("pk_platform_role_grants")),
    )
    op.create_table(
        "operators",
        sa.Column("operator_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("operator_id", name=op.f("pk_operators")),
        sa.UniqueConstraint("name", name=op.f("uq_operators_name")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_operators_token_sha256")),
    )
    op.create_table(
        "replicas",
        sa.Column("replica_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("streams", sa.Integer(), server_default="0", nullable=False),
        sa.Column("admission_per_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("drain_requested_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("drain_deadline_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("drain_reason", sa.Integer(), server_default="0", nullable=False),
        sa.Column("secret_keys", sa.String(length=64), server_default="", nullable=False),
        sa.Column("tls_cas", sa.String(length=320), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("replica_id", name=op.f("pk_replicas")),
    )
    op.create_table(
        "sessions",
        sa.Column("token_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("sealed_frame_keys", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("claimed_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("client_certificate_sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expires_at_ms"), "sessions", ["expires_at_ms"], unique=False)
    op.create_table(
        "telemetry_chunks",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_telemetry_chunks")),
    )
    op.create_index("ix_telemetry_chunks_end", "telemetry_chunks", ["end_ms"], unique=False)
    op.create_index("ix_telemetry_chunks_node_time", "telemetry_chunks", ["node_id", "start_ms"], unique=False)
    op.create_table(
        "telemetry_latest",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("last_batch_seq", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_telemetry_latest")),
    )
    op.create_table(
        "telemetry_series",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("series_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "series_no", name=op.f("pk_telemetry_series")),
    )
    op.create_table(
        "cluster_authorities",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_private", sa.LargeBinary(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_cluster_authorities_cluster_id")
        ),
        sa.PrimaryKeyConstraint("cluster_id", "generation", name=op.f("pk_cluster_authorities")),
    )
    op.create_table(
        "command_keys",
        sa.Column("key_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_private", sa.LargeBinary(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("verify_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_generation", sa.BigInteger(), nullable=False),
        sa.Column("first_number", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_command_keys_cluster_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_command_keys")),
    )
    op.create_table(
        "join_tokens",
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("auto_approve", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=63), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_join_tokens_cluster_id")),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_join_tokens")),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealing_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.String(length=500), server_default="", nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_accepted_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stream_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stream_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("replica_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("online", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rtt_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("clock_offset_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("drain_state", sa.String(length=16), server_default="NONE", nullable=False),
        sa.Column("drain_deadline_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_nodes_cluster_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("identity_key", name=op.f("uq_nodes_identity_key")),
        sa.UniqueConstraint("name", name=op.f("uq_nodes_name")),
    )
    op.create_index("ix_nodes_decided_at", "nodes", ["decided_at_ms"], unique=False)
    trust_tables.create()
    op.create_table(
        "gateway_endpoints",
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("replica_id", sa.String(length=64), nullable=False),
        sa.Column("endpoints", sa.Text(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("stated_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_gateway_endpoints_cluster_id")),
        sa.PrimaryKeyConstraint("cluster_id", "replica_id", name=op.f("pk_gateway_endpoints")),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_api_keys_node_id")),
        sa.PrimaryKeyConstraint("key_sha256", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_node_id"), "api_keys", ["node_id"], unique=False)
    op.create_table(
        "node_ratchets",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("confirmed_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealed_offer", sa.LargeBinary(), nullable=False),
        sa.Column("any_until_ms", sa.BigInteger(), nullable=False),
        sa.Column("seq_floor", sa.BigInteger(), nullable=False),
        sa.Column("floor_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("audit_chain", sa.BigInteger(), nullable=False),
        sa.Column("boots", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_node_ratchets_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_ratchets")),
    )
    audit_tables.create()
    credential_tables.create()
    op.create_table(
        "enrollments",
        sa.Column("enrollment_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("token_id", sa.String(length=64), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sealing_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("reported_labels", sa.Text(), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("peer_address", sa.String(length=64), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("decided_by", sa.String(length=63), server_default="", nullable=False),
        sa.Column("reason", sa.String(length=500), server_default="", nullable=False),
        sa.Column("node_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("bootstrap", sa.LargeBinary(), nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], name=op.f("fk_enrollments_cluster_id")),
        sa.ForeignKeyConstraint(["token_id"], ["join_tokens.token_id"], name=op.f("fk_enrollments_token_id")),
        sa.PrimaryKeyConstraint("enrollment_id", name=op.f("pk_enrollments")),
        sa.UniqueConstraint("token_id", "identity_key", "sealing_key", name=op.f("uq_enrollments_token_id")),
    )
    op.create_index("ix_enrollments_created", "enrollments", ["created_at_ms"], unique=False)
    op.create_table(
        "node_profiles",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("reported_labels", sa.Text(), nullable=False),
        sa.Column("drivers", sa.LargeBinary(), nullable=False),
        sa.Column("drivers_sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("max_in_flight", sa.Integer(), nullable=False),
        sa.Column("bundle_generation", sa.BigInteger(), nullable=False),
        sa.Column("bundle_number", sa.BigInteger(), nullable=False),
        sa.Column("config_version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.node_id"], name=op.f("fk_node_profiles_node_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node_profiles")),
    )
