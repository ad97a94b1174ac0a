"""A route from node-1 to node-3 by way of node-2: what node-1 is told of it, and one walk along it."""

from __future__ import annotations

import hashlib
from functools import partial

from fleet.envelope import Domain
from fleet.v1 import lease_pb2, probe_pb2, route_pb2
from tests.vectors.cast import CLUSTER, NODE, NOW_MS, OTHER_NODE, Statement
from tests.vectors.keys import fixed_bytes, signer

END_NODE = "node-0003"
ROUTE = "route-0001"
PATH = [NODE, OTHER_NODE, END_NODE]
NONCE = fixed_bytes("probe nonce", 16)
PORTS = {OTHER_NODE: 7, END_NODE: 8}

_Hop = partial(probe_pb2.HopRecord, nonce=NONCE)


def routes() -> list[Statement]:
    """A lease, a config snapshot, and the statements and records of a probe, hop by hop."""
    called, passed_on = _probe("probe", "node-1", 1), _probe("probe-onward", "node-2", 2)
    answered = _Hop(node_id=END_NODE, hop_index=2, statement_sha256=_sha256(passed_on))
    relayed = _Hop(
        node_id=OTHER_NODE,
        hop_index=1,
        onward_us=1_840,
        onward=probe_pb2.ONWARD_RESULT_ANSWERED,
        statement_sha256=_sha256(called),
    )
    refused = _Hop(
        node_id=OTHER_NODE,
        hop_index=1,
        onward_us=910,
        onward=probe_pb2.ONWARD_RESULT_REFUSED,
        failure="UNKNOWN_ROUTE",
        statement_sha256=_sha256(called),
    )
    lease = _lease()
    return [
        lease,
        Statement("config", Domain.CONFIG, ("authority-1",), _snapshot(lease)),
        called,
        passed_on,
        Statement("probe-hop", Domain.PROBE_HOP, ("node-2",), relayed),
        Statement("probe-hop-end", Domain.PROBE_HOP, ("node-3",), answered),
        Statement("probe-hop-refused", Domain.PROBE_HOP, ("node-2",), refused),
    ]


def _lease() -> Statement:
    lent = lease_pb2.LeaseStatement(
        cluster_id=CLUSTER,
        lease_id="lease-0001",
        route_id=ROUTE,
        relay_node_id=OTHER_NODE,
        generation=3,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 120_000,
    )
    return Statement("lease", Domain.LEASE, ("authority-1",), lent)


def _snapshot(lease: Statement) -> route_pb2.ConfigSnapshotStatement:
    route = route_pb2.RouteConfig(
        route_id=ROUTE,
        generation=5,
        path=PATH,
        service_class="synthetic",
        probe_interval_ms=10_000,
        waiting_rendezvous=True,
        candidates=[route_pb2.CandidatePath(path=[NODE, END_NODE])],
        candidate_interval_ms=60_000,
        reason="the direct path does not answer",
    )
    return route_pb2.ConfigSnapshotStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        version=11,
        routes=[route],
        peers=[_peer("node-2", OTHER_NODE), _peer("node-3", END_NODE)],
        leases=[lease.signed()],
        issued_at_ms=NOW_MS,
        policy=route_pb2.RoutePolicy(
            min_refresh_interval_ms=5_000,
            no_change_cooldown_ms=10_000,
            no_change_cooldown_max_ms=600_000,
            degraded_rtt_us=250_000,
            degraded_loss_permille=200,
        ),
    )


def _peer(name: str, node_id: str) -> route_pb2.Peer:
    return route_pb2.Peer(
        node_id=node_id,
        identity_key=signer(name).public_key,
        probe_endpoints=[f"192.0.2.{PORTS[node_id]}:7450"],
        probe_certificate=fixed_bytes(f"probe certificate {name}", 64),
    )


def _probe(name: str, caller: str, hop_index: int) -> Statement:
    asked = probe_pb2.ProbeStatement(
        cluster_id=CLUSTER,
        route_id=ROUTE,
        generation=5,
        path=PATH,
        hop_index=hop_index,
        nonce=NONCE,
        deadline_ms=NOW_MS + 3_000,
    )
    return Statement(name, Domain.PROBE, (caller,), asked)


def _sha256(statement: Statement) -> bytes:
    return hashlib.sha256(statement.raw).digest()
