"""Tables of routes: what operators and the server decided, and what was found on the way.

What confers authority carries a MAC: who may relay, which way a route takes and over whom, who holds a lease, and where
a node's probe listener is. What was found on the way confers nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from fleet_server.database.columns import Position, id_column, metadata

routes = Table(
    "routes",
    metadata,
    Column("route_id", id_column(), primary_key=True),
    Column("cluster_id", id_column(), nullable=False),
    Column("name", String(63), nullable=False, unique=True),
    Column("source_node_id", id_column(), nullable=False),
    Column("destination_node_id", id_column(), nullable=False),
    Column("service_class", String(32), nullable=False),
    Column("probe_interval_ms", Integer, nullable=False),
    Column("enabled", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", String(63), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("relay_node_id", id_column(), nullable=False),
    Column("candidates", Text, nullable=False),
    Column("waiting_rendezvous", Integer, nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    # What was found on the way; outside the MAC, for it confers nothing.
    Column("state", String(16), nullable=False, server_default="UNKNOWN"),
    Column("state_since_ms", BigInteger, nullable=False, server_default="0"),
    Column("observed_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("rtt_us", BigInteger, nullable=False, server_default="0"),
    Column("loss_permille", Integer, nullable=False, server_default="0"),
    UniqueConstraint("source_node_id", "destination_node_id", "service_class"),
    Index("ix_routes_relay", "relay_node_id"),
)

# Whose snapshots show a route: its ends, its relay, its candidates; none while it is disabled. Kept beside each change
# of a route, so that a node's routes are found without reading all of them.
route_members = Table(
    "route_members",
    metadata,
    Column("node_id", id_column(), primary_key=True),
    Column("route_id", id_column(), primary_key=True),
    Index("ix_route_members_route", "route_id"),
)

relays = Table(
    "relays",
    metadata,
    Column("node_id", id_column(), primary_key=True),
    Column("cluster_id", id_column(), nullable=False),
    Column("site", String(63), nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("added_at_ms", BigInteger, nullable=False),
    Column("added_by", String(63), nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

route_leases = Table(
    "route_leases",
    metadata,
    Column("route_id", id_column(), primary_key=True),
    Column("lease_id", id_column(), nullable=False),
    Column("relay_node_id", id_column(), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("withdrawn", Integer, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    # What the relay told; outside the MAC.
    Column("acked_generation", BigInteger, nullable=False, server_default="0"),
    Column("acked_at_ms", BigInteger, nullable=False, server_default="0"),
    Index("ix_route_leases_relay", "relay_node_id"),
    Index("ix_route_leases_expires", "expires_at_ms"),
    Index("ix_route_leases_issued", "issued_at_ms"),
)

# What is remembered of each way of a route; relay "" is the direct one.
route_candidates = Table(
    "route_candidates",
    metadata,
    Column("route_id", id_column(), primary_key=True),
    Column("relay_node_id", id_column(), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("rtt_us", Double, nullable=False),
    Column("loss", Double, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("observed_at_ms", BigInteger, nullable=False),
    Column("penalty", Double, nullable=False),
    Column("penalty_at_ms", BigInteger, nullable=False),
    Column("suppressed_since_ms", BigInteger, nullable=False),
    Column("stale_since_ms", BigInteger, nullable=False),
    Column("failure", String(64), nullable=False),
    Column("blamed_node_id", id_column(), nullable=False),
)


def _found() -> list[Column[Any]]:
    """What one observation says. `subject` is the relay of the way that was walked, or the node that it is about."""
    return [
        Column("route_id", id_column(), nullable=False),
        Column("observation_type", Integer, nullable=False),
        Column("subject", id_column(), nullable=False),
        Column("reporter_node_id", id_column(), nullable=False),
        Column("generation", BigInteger, nullable=False),
        Column("state", Integer, nullable=False),
        Column("expected_hops", Text, nullable=False),
        Column("observed_hops", Text, nullable=False),
        Column("rtt_us", BigInteger, nullable=False),
        Column("loss_permille", Integer, nullable=False),
        Column("observed_at_ms", BigInteger, nullable=False),
        Column("received_at_ms", BigInteger, nullable=False),
        Column("blamed_node_id", id_column(), nullable=False),
        Column("failure", String(64), nullable=False),
        Column("failed_hop", Integer, nullable=False),
    ]


# The latest of each type about each subject: none overwrites another's.
route_observations = Table(
    "route_observations", metadata, *_found(), PrimaryKeyConstraint("route_id", "observation_type", "subject")
)

route_observation_history = Table(
    "route_observation_history",
    metadata,
    Column("position", Position, primary_key=True),
    *_found(),
    Index("ix_route_observation_history_route", "route_id", "received_at_ms"),
    Index("ix_route_observation_history_received", "received_at_ms"),
)

route_decisions = Table(
    "route_decisions",
    metadata,
    Column("route_id", id_column(), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),
    Column("rule", String(32), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("scores", Text, nullable=False),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("decided_by", String(80), nullable=False),
    Index("ix_route_decisions_decided", "decided_at_ms"),
)

# Which version of its part each node is to have, and which it runs.
route_configs = Table(
    "route_configs",
    metadata,
    Column("node_id", id_column(), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
    Column("applied_version", BigInteger, nullable=False, server_default="0"),
    Column("applied", Integer, nullable=False, server_default="0"),
    Column("reason", String(200), nullable=False, server_default=""),
    Column("applied_at_ms", BigInteger, nullable=False, server_default="0"),
    Index("ix_route_configs_changed", "changed_at_ms"),
)

# Where a node's probe listener is, as the node says.
route_peers = Table(
    "route_peers",
    metadata,
    Column("node_id", id_column(), primary_key=True),
    Column("endpoints", Text, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("reported_at_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)
