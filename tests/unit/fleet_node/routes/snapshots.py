"""Config snapshots and leases as an authority signs them, for tests to change one thing in."""

from collections.abc import Sequence
from typing import Any

from fleet.envelope import Domain, Signer
from fleet.v1 import lease_pb2, route_pb2, trust_pb2
from fleet_node.routes.snapshot_rules import Authority

CLUSTER, NODE = "c-test", "nd_test"
AUTHORITY = Signer.generate()
KEYS = {name: Signer.generate() for name in ("nd_b", "nd_c", "nd_r", "nd_q")}


def authority(signer: Signer = AUTHORITY, generation: int = 1, *, required: bool = True) -> Authority:
    """What the node knows of it."""
    return Authority(CLUSTER, NODE, signer.public_key, generation, required)


def peer(node_id: str) -> route_pb2.Peer:
    """With a listener."""
    return route_pb2.Peer(
        node_id=node_id,
        identity_key=KEYS[node_id].public_key,
        probe_endpoints=["127.0.0.1:9470"],
        probe_certificate=b"leaf of " + node_id.encode(),
    )


def route(
    path: Sequence[str] = (NODE, "nd_b"), *candidates: Sequence[str], route_id: str = "rt_1", **changed: Any
) -> route_pb2.RouteConfig:
    """A route as the server hands it out."""
    said: dict[str, Any] = {
        "generation": 1,
        "service_class": "synthetic",
        "probe_interval_ms": 10_000,
        "candidate_interval_ms": 60_000,
    } | changed
    ways = [route_pb2.CandidatePath(path=way) for way in candidates]
    return route_pb2.RouteConfig(route_id=route_id, path=path, candidates=ways, **said)


def statement(*routes: route_pb2.RouteConfig, version: int = 1, **changed: Any) -> route_pb2.ConfigSnapshotStatement:
    """A snapshot that names every peer there is."""
    said: dict[str, Any] = {"cluster_id": CLUSTER, "node_id": NODE, "peers": map(peer, KEYS)} | changed
    return route_pb2.ConfigSnapshotStatement(version=version, routes=routes, **said)


def signed(said: route_pb2.ConfigSnapshotStatement, signer: Signer = AUTHORITY) -> trust_pb2.Signed:
    """The snapshot, signed."""
    return signer.sign(Domain.CONFIG, said.SerializeToString())


def lease(signer: Signer = AUTHORITY, **changed: Any) -> trust_pb2.Signed:
    """A lease of `rt_1` over `nd_r` for two minutes of 1970."""
    said: dict[str, Any] = {
        "cluster_id": CLUSTER,
        "lease_id": "ls_1",
        "route_id": "rt_1",
        "relay_node_id": "nd_r",
        "generation": 1,
        "expires_at_ms": 120_000,
    } | changed
    return signer.sign(Domain.LEASE, lease_pb2.LeaseStatement(**said).SerializeToString())
