"""Routes: new tables alone, which an older server neither fills nor misses (rules: `v0002_many_replicas`)."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
oldest_server = "0001"


def upgrade() -> None:
    op.create_table(
        "routes",
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("source_node_id", sa.String(length=64), nullable=False),
        sa.Column("destination_node_id", sa.String(length=64), nullable=False),
        sa.Column("service_class", sa.String(length=32), nullable=False),
        sa.Column("probe_interval_ms", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("relay_node_id", sa.String(length=64), nullable=False),
        sa.Column("candidates", sa.Text(), nullable=False),
        sa.Column("waiting_rendezvous", sa.Integer(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), server_default="UNKNOWN", nullable=False),
        sa.Column("state_since_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("observed_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rtt_us", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("loss_permille", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("route_id", name=op.f("pk_routes")),
        sa.UniqueConstraint("name", name=op.f("uq_routes_name")),
        sa.UniqueConstraint(
            "source_node_id", "destination_node_id", "service_class", name=op.f("uq_routes_source_node_id")
        ),
    )
    op.create_index("ix_routes_relay", "routes", ["relay_node_id"])
    op.create_table(
        "route_members",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "route_id", name=op.f("pk_route_members")),
    )
    op.create_index("ix_route_members_route", "route_members", ["route_id"])
    op.create_table(
        "relays",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("cluster_id", sa.String(length=64), nullable=False),
        sa.Column("site", sa.String(length=63), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("added_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.String(length=63), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_relays")),
    )
    op.create_table(
        "route_leases",
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=64), nullable=False),
        sa.Column("relay_node_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn", sa.Integer(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("acked_generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("acked_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("route_id", name=op.f("pk_route_leases")),
    )
    op.create_index("ix_route_leases_expires", "route_leases", ["expires_at_ms"])
    op.create_index("ix_route_leases_issued", "route_leases", ["issued_at_ms"])
    op.create_index("ix_route_leases_relay", "route_leases", ["relay_node_id"])
    op.create_table(
        "route_candidates",
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("relay_node_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("rtt_us", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("observed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("penalty", sa.Double(), nullable=False),
        sa.Column("penalty_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("suppressed_since_ms", sa.BigInteger(), nullable=False),
        sa.Column("stale_since_ms", sa.BigInteger(), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("blamed_node_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("route_id", "relay_node_id", name=op.f("pk_route_candidates")),
    )
    op.create_table(
        "route_observations",
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("observation_type", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("reporter_node_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("expected_hops", sa.Text(), nullable=False),
        sa.Column("observed_hops", sa.Text(), nullable=False),
        sa.Column("rtt_us", sa.BigInteger(), nullable=False),
        sa.Column("loss_permille", sa.Integer(), nullable=False),
        sa.Column("observed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("blamed_node_id", sa.String(length=64), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("failed_hop", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("route_id", "observation_type", "subject", name=op.f("pk_route_observations")),
    )
    op.create_table(
        "route_observation_history",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("observation_type", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("reporter_node_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("expected_hops", sa.Text(), nullable=False),
        sa.Column("observed_hops", sa.Text(), nullable=False),
        sa.Column("rtt_us", sa.BigInteger(), nullable=False),
        sa.Column("loss_permille", sa.Integer(), nullable=False),
        sa.Column("observed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("blamed_node_id", sa.String(length=64), nullable=False),
        sa.Column("failure", sa.String(length=64), nullable=False),
        sa.Column("failed_hop", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_route_observation_history")),
    )
    op.create_index("ix_route_observation_history_received", "route_observation_history", ["received_at_ms"])
    op.create_index("ix_route_observation_history_route", "route_observation_history", ["route_id", "received_at_ms"])
    op.create_table(
        "route_decisions",
        sa.Column("route_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("scores", sa.Text(), nullable=False),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.String(length=80), nullable=False),
        sa.PrimaryKeyConstraint("route_id", "generation", name=op.f("pk_route_decisions")),
    )
    op.create_index("ix_route_decisions_decided", "route_decisions", ["decided_at_ms"])
    op.create_table(
        "route_configs",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("applied_version", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("applied", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.String(length=200), server_default="", nullable=False),
        sa.Column("applied_at_ms", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_route_configs")),
    )
    op.create_index("ix_route_configs_changed", "route_configs", ["changed_at_ms"])
    op.create_table(
        "route_peers",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("endpoints", sa.Text(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("reported_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_route_peers")),
    )
