"""A node's part of the configuration, built from the rows that verify, and signed by the cluster's authority
(docs/protocol.md, "Config snapshots").

Nobody is shown more than it needs: an end both ends and every way of its routes, a relay the ways that it is on. A
route with an end that may not connect is in nobody's part, nor is one whose relay may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fleet.envelope import Domain
from fleet.v1 import lease_pb2, route_pb2, trust_pb2
from fleet_server.database.engine import Connection
from fleet_server.nodes.record import NodeRecord, NodeState
from fleet_server.routes import config_store, decision_store
from fleet_server.routes.model import Policy
from fleet_server.routes.parts import RouteParts
from fleet_server.routes.record import DecisionRecord, LeaseRecord, PeerRecord, RouteRecord

MOST_TOLD = 2_000
"""Routes, and peers, of one part; a node takes 2,048 of either."""
MOST_BYTES = 900 * 1024
"""Of one part, estimated; a frame holds 1 MiB."""
_ROUTE_BYTES = 470  # ids, a name, a way, a sentence; for a relay the ways of others are not told
_PEER_BYTES = 160
_MOST_REMEMBERED = 16_384


class Snapshot(NamedTuple):
    """A node's part, as it is sent."""

    version: int
    signed: trust_pb2.Signed


class PartsOfNodes:
    """Builds parts of many nodes at once: what they have in common is read once, and each lease signed once.

    Args:
        parts: of the room.
    """

    def __init__(self, parts: RouteParts) -> None:
        self._parts = parts
        self._signed: dict[tuple[bytes, LeaseRecord], trust_pb2.Signed] = {}

    def build(self, conn: Connection, node_ids: Sequence[str]) -> list[Snapshot | None]:
        """Each node's part as it stands in the connection's snapshot; None for a node that has none. Any thread."""
        parts = self._parts
        configs = config_store.by_ids(conn, node_ids)
        shown = parts.routes.shown_to(conn, list(configs))
        routes = {route.route_id: route for of_node in shown.values() for route in of_node}
        members = sorted({member for route in routes.values() for member in route.members})
        facts = _Facts(
            nodes=_who_may_connect(parts, conn, members),
            decisions=decision_store.newest_of(conn, routes),
            peers=parts.peers.by_ids(conn, members),
            leases=parts.leases.of_routes(conn, [route.route_id for route in routes.values() if route.relay_id]),
            issued_at_ms=parts.clock.now_ms(),
            past_ms=parts.past_ms(),
        )
        return [
            self._part(configs[node_id].version, node_id, shown[node_id], facts) if node_id in configs else None
            for node_id in node_ids
        ]

    def leases_of(self, conn: Connection, node_ids: Sequence[str]) -> list[list[trust_pb2.Signed]]:
        """For each node the leases that concern it, as their holder or as the source of the route: those that hold, and
        those that were withdrawn while they would still hold. Any thread."""
        parts, past_ms = self._parts, self._parts.past_ms()
        shown = parts.routes.shown_to(conn, node_ids)
        own = {
            node_id: {route.route_id for route in routes if route.source_id == node_id}
            for node_id, routes in shown.items()
        }
        of_routes = parts.leases.of_routes(conn, set().union(*own.values()))
        of_relays: dict[str, list[LeaseRecord]] = {}
        for lease in parts.leases.of_relays(conn, node_ids):
            of_relays.setdefault(lease.relay_id, []).append(lease)
        answers = []
        for node_id in node_ids:
            found = {lease.route_id: lease for lease in of_relays.get(node_id, ())}
            found |= {route_id: of_routes[route_id] for route_id in own[node_id] if route_id in of_routes}
            held = [lease for _, lease in sorted(found.items()) if lease.intact and past_ms < lease.expires_at_ms]
            answers.append([self._sign(lease) for lease in held])
        return answers

    def _part(self, version: int, node_id: str, routes: Sequence[RouteRecord], facts: _Facts) -> Snapshot:
        parts = self._parts
        shown = _fitting(node_id, [route for route in routes if _stands(route, facts.nodes)], facts)
        statement = route_pb2.ConfigSnapshotStatement(
            cluster_id=parts.trust.cluster_id,
            node_id=node_id,
            version=version,
            routes=[
                _route(route, node_id, facts.nodes, facts.decisions.get(route.route_id), parts.policy)
                for route in shown
            ],
            issued_at_ms=facts.issued_at_ms,
            policy=as_told(parts.policy),
        )
        named = {member for route in statement.routes for member in _members(route)} - {node_id}
        for peer_id in sorted(named):
            peer, told = facts.peers.get(peer_id), statement.peers.add(node_id=peer_id)
            told.identity_key, told.name = facts.nodes[peer_id].identity_key, facts.nodes[peer_id].name
            if peer is not None:
                told.probe_endpoints.extend(peer.endpoints)
                told.probe_certificate = peer.certificate
        for route in shown:
            lease = facts.leases.get(route.route_id)
            if lease is None or not lease.holds(facts.past_ms) or lease.relay_id != route.relay_id:
                continue
            if node_id in (lease.relay_id, route.source_id):
                statement.leases.append(self._sign(lease))
        raw = statement.SerializeToString(deterministic=True)
        return Snapshot(version, parts.trust.authority.sign(Domain.CONFIG, raw))

    def _sign(self, lease: LeaseRecord) -> trust_pb2.Signed:
        authority = self._parts.trust.authority
        # What its relay acknowledged is no part of it.
        key = authority.key_id, replace(lease, acked_generation=0, acked_at_ms=0)
        signed = self._signed.get(key)
        if signed is None:
            if len(self._signed) >= _MOST_REMEMBERED:
                self._signed.clear()
            statement = lease_pb2.LeaseStatement(
                cluster_id=self._parts.trust.cluster_id,
                lease_id=lease.lease_id,
                route_id=lease.route_id,
                relay_node_id=lease.relay_id,
                generation=lease.generation,
                issued_at_ms=lease.issued_at_ms,
                expires_at_ms=lease.expires_at_ms,
                withdrawn=lease.withdrawn,
            )
            signed = authority.sign(Domain.LEASE, statement.SerializeToString(deterministic=True))
            self._signed[key] = signed
        return signed


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the parts of several nodes are made of, all of one moment: what is signed has this machine's time, and a
    lease has ended once that is past by the database's clock, too (docs/adr/0033)."""

    nodes: Mapping[str, NodeRecord]
    decisions: Mapping[str, DecisionRecord]
    peers: Mapping[str, PeerRecord]
    leases: Mapping[str, LeaseRecord]
    issued_at_ms: int
    past_ms: int


def as_told(policy: Policy) -> route_pb2.RoutePolicy:
    """What nodes are told of the policy."""
    return route_pb2.RoutePolicy(
        min_refresh_interval_ms=policy.min_refresh_interval_ms,
        no_change_cooldown_ms=policy.no_change_cooldown_ms,
        no_change_cooldown_max_ms=policy.no_change_cooldown_max_ms,
        degraded_rtt_us=policy.degraded_rtt_us,
        degraded_loss_permille=policy.degraded_loss_permille,
    )


def _fitting(node_id: str, routes: Sequence[RouteRecord], facts: _Facts) -> Sequence[RouteRecord]:
    """What fits into one frame, and is no more than a node takes. How many routes a node is an end or the relay of is
    bounded; a relay may be a candidate of any number, and of those that are left out it answers no probe."""
    own = [route for route in routes if node_id in route.path]
    fitting = len(own)
    if fitting == len(routes):
        return routes
    size_bytes, named = 0, set[str]()
    ordered = own + [route for route in routes if node_id not in route.path]
    for route in ordered:
        strangers = set(route.path) - named
        size_bytes += _ROUTE_BYTES + sum(_peer_bytes(facts.peers.get(peer_id)) for peer_id in strangers)
        named |= strangers
        if len(named) > MOST_TOLD or fitting > MOST_TOLD or size_bytes > MOST_BYTES:
            break
        fitting += node_id not in route.path
    return sorted(ordered[:fitting], key=lambda route: route.route_id)


def _peer_bytes(peer: PeerRecord | None) -> int:
    return _PEER_BYTES + (0 if peer is None else len(peer.certificate) + sum(map(len, peer.endpoints)))


def _stands(route: RouteRecord, nodes: Mapping[str, NodeRecord]) -> bool:
    """Whether everybody on its path may connect."""
    return all(node_id in nodes for node_id in route.path)


def _who_may_connect(parts: RouteParts, conn: Connection, node_ids: Sequence[str]) -> dict[str, NodeRecord]:
    """Those of the nodes whose machines would be let in: peers would take a key for theirs that is in the snapshot."""
    found = parts.nodes.load_to_admit(conn, node_ids)
    return {
        node_id: node
        for node_id, node in found.items()
        if isinstance(node, NodeRecord) and node.state is NodeState.ACTIVE
    }


def _route(
    route: RouteRecord, node_id: str, nodes: Mapping[str, NodeRecord], why: DecisionRecord | None, policy: Policy
) -> route_pb2.RouteConfig:
    is_end = node_id in (route.source_id, route.destination_id)
    others = [
        relay_id
        for relay_id in route.candidates
        if (is_end or relay_id == node_id) and (not relay_id or relay_id in nodes)
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
        reason=_sentence(why) if is_end else "",
        name=route.name,
    )


def _sentence(why: DecisionRecord | None) -> str:
    return str(why.reasons[0].get("text", ""))[:300] if why and why.reasons else ""


def _members(route: route_pb2.RouteConfig) -> Iterable[str]:
    yield from route.path
    for candidate in route.candidates:
        yield from candidate.path
