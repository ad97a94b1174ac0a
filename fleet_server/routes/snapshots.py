"""A node's part of the configuration, built from the rows that verify, and signed by the cluster's authority
(docs/protocol.md, "Config snapshots").

Nobody is shown more than it needs: an end both ends and every way of its routes, a relay the ways that it is on. A
route with an end that may not connect is in nobody's part, nor is one whose relay may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fleet.envelope import Domain
from fleet.v1 import lease_pb2, route_pb2, trust_pb2
from fleet_server.database.engine import Connection
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.routes import config_store, decision_store
from fleet_server.routes.model import Policy
from fleet_server.routes.parts import RouteParts
from fleet_server.routes.record import DecisionRecord, LeaseRecord, RouteRecord


class Snapshot(NamedTuple):
    """A node's part, as it is sent."""

    version: int
    signed: trust_pb2.Signed


def build(parts: RouteParts, conn: Connection, node_id: str) -> Snapshot | None:
    """A node's part as it stands in the connection's snapshot; None for a node that has none. Any thread."""
    config = config_store.by_ids(conn, [node_id]).get(node_id)
    if config is None:
        return None
    now_ms = parts.now_ms()
    routes = parts.routes.shown_to(conn, node_id)
    nodes = parts.nodes.load_all(conn, sorted({member for route in routes for member in route.members}))
    shown = [route for route in routes if _stands(route, nodes)]
    decisions = decision_store.newest_of(conn, [route.route_id for route in shown])
    statement = route_pb2.ConfigSnapshotStatement(
        cluster_id=parts.trust.cluster_id,
        node_id=node_id,
        version=config.version,
        routes=[_route(route, node_id, nodes, decisions.get(route.route_id), parts.policy) for route in shown],
        issued_at_ms=now_ms,
        policy=as_told(parts.policy),
    )
    named = {member for route in statement.routes for member in _members(route)} - {node_id}
    listening = parts.peers.by_ids(conn, named)
    for peer_id in sorted(named):
        peer, told = listening.get(peer_id), statement.peers.add(node_id=peer_id)
        told.identity_key = nodes[peer_id].identity_key
        if peer is not None:
            told.probe_endpoints.extend(peer.endpoints)
            told.probe_certificate = peer.certificate
    held = parts.leases.of_routes(conn, [route.route_id for route in shown if route.relay_id])
    paths = {route.route_id: route for route in shown}
    for route_id, lease in sorted(held.items()):
        route = paths[route_id]
        if lease.holds(now_ms) and lease.relay_id == route.relay_id and node_id in (lease.relay_id, route.source_id):
            statement.leases.append(sign_lease(parts, lease))
    raw = statement.SerializeToString(deterministic=True)
    return Snapshot(config.version, parts.trust.authority.sign(Domain.CONFIG, raw))


def leases_of(parts: RouteParts, conn: Connection, node_id: str) -> list[trust_pb2.Signed]:
    """Leases that concern a node, as their holder or as the source of the route: those that hold, and those that were
    withdrawn while they would still hold. Any thread."""
    now_ms = parts.now_ms()
    own = [route.route_id for route in parts.routes.shown_to(conn, node_id) if route.source_id == node_id]
    found = {lease.route_id: lease for lease in parts.leases.of_relay(conn, node_id)}
    found |= parts.leases.of_routes(conn, own)
    return [
        sign_lease(parts, lease) for _, lease in sorted(found.items()) if lease.intact and now_ms < lease.expires_at_ms
    ]


def sign_lease(parts: RouteParts, lease: LeaseRecord) -> trust_pb2.Signed:
    """A lease as nodes are told of it."""
    statement = lease_pb2.LeaseStatement(
        cluster_id=parts.trust.cluster_id,
        lease_id=lease.lease_id,
        route_id=lease.route_id,
        relay_node_id=lease.relay_id,
        generation=lease.generation,
        issued_at_ms=lease.issued_at_ms,
        expires_at_ms=lease.expires_at_ms,
        withdrawn=lease.withdrawn,
    )
    return parts.trust.authority.sign(Domain.LEASE, statement.SerializeToString(deterministic=True))


def as_told(policy: Policy) -> route_pb2.RoutePolicy:
    """What nodes are told of the policy."""
    return route_pb2.RoutePolicy(
        min_refresh_interval_ms=policy.min_refresh_interval_ms,
        no_change_cooldown_ms=policy.no_change_cooldown_ms,
        no_change_cooldown_max_ms=policy.no_change_cooldown_max_ms,
        degraded_rtt_us=policy.degraded_rtt_us,
        degraded_loss_permille=policy.degraded_loss_permille,
    )


def _stands(route: RouteRecord, nodes: Mapping[str, NodeRecord]) -> bool:
    """Whether everybody on its path may connect."""
    return all(_may_connect(nodes.get(node_id)) for node_id in route.path)


def _may_connect(node: NodeRecord | None) -> bool:
    return node is not None and node.state is NodeState.ACTIVE


def _route(
    route: RouteRecord, node_id: str, nodes: Mapping[str, NodeRecord], why: DecisionRecord | None, policy: Policy
) -> route_pb2.RouteConfig:
    is_end = node_id in (route.source_id, route.destination_id)
    others = [
        relay_id
        for relay_id in route.candidates
        if (is_end or relay_id == node_id) and (not relay_id or _may_connect(nodes.get(relay_id)))
    ]
    return route_pb2.RouteConfig(
        route_id=route.route_id,
        generation=route.generation,
        path=route.path,
        service_class=route.service_class,
        probe_interval_ms=route.probe_interval_ms,
        waiting_rendezvous=route.waiting_rendezvous,
        candidates=[route_pb2.CandidatePath(path=route.way(relay_id)) for relay_id in others],
        candidate_interval_ms=route.probe_interval_ms * policy.candidate_interval_factor,
        reason=_sentence(why),
    )


def _sentence(why: DecisionRecord | None) -> str:
    return str(why.reasons[0].get("text", ""))[:300] if why and why.reasons else ""


def _members(route: route_pb2.RouteConfig) -> Iterable[str]:
    yield from route.path
    for candidate in route.candidates:
        yield from candidate.path
