"""Statements whose capability comes later, and whose bytes stand already."""

from __future__ import annotations

from fleet.envelope import Domain
from fleet.v1 import lease_pb2, probe_pb2, route_pb2, trust_pb2
from tests.vectors.cast import CLUSTER, NODE, NOW_MS, OTHER_NODE, Statement
from tests.vectors.keys import exchange_public, fixed_bytes, signer


def routes() -> list[Statement]:
    """Leases, config snapshots and probes."""
    lent = lease_pb2.LeaseStatement(
        cluster_id=CLUSTER,
        lease_id="lease-0001",
        route_id="route-0001",
        relay_node_id=OTHER_NODE,
        generation=3,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
    )
    lease = Statement("lease", Domain.LEASE, ("authority-1",), lent)
    route = route_pb2.RouteConfig(
        route_id="route-0001",
        generation=3,
        path=[NODE, OTHER_NODE],
        service_class="synthetic",
        probe_interval_ms=5_000,
        waiting_rendezvous=True,
    )
    peer = route_pb2.Peer(
        node_id=OTHER_NODE, identity_key=signer("node-2").public_key, probe_endpoints=["192.0.2.7:7450"]
    )
    snapshot = route_pb2.ConfigSnapshotStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        version=11,
        routes=[route],
        peers=[peer],
        leases=[lease.signed()],
        issued_at_ms=NOW_MS,
    )
    nonce = fixed_bytes("probe nonce", 16)
    probe = probe_pb2.ProbeStatement(
        cluster_id=CLUSTER,
        route_id="route-0001",
        generation=3,
        path=[NODE, OTHER_NODE],
        hop_index=1,
        nonce=nonce,
        deadline_ms=NOW_MS + 2_000,
    )
    hop = probe_pb2.HopRecord(node_id=OTHER_NODE, nonce=nonce, hop_index=1, onward_us=0)
    return [
        lease,
        Statement("config", Domain.CONFIG, ("authority-1",), snapshot),
        Statement("probe", Domain.PROBE, ("node-1",), probe),
        Statement("probe-hop", Domain.PROBE_HOP, ("node-2",), hop),
    ]


def floor() -> Statement:
    """Raises node-1's sequence floor."""
    raised = trust_pb2.FloorStatement(
        cluster_id=CLUSTER, node_id=NODE, seq_floor=42, intents_after_ms=NOW_MS, issued_at_ms=NOW_MS, audit_chain=1
    )
    return Statement("floor", Domain.FLOOR, ("authority-1",), raised)


def node_key() -> Statement:
    """Replaces both keys of node-1: signed by the old identity and by the new one."""
    rotation = trust_pb2.NodeKeyRotationStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        identity_key=signer("node-1-next").public_key,
        sealing_key=exchange_public("node-1-sealing-next"),
        issued_at_ms=NOW_MS,
    )
    return Statement("node-key", Domain.NODE_KEY, ("node-1", "node-1-next"), rotation)
