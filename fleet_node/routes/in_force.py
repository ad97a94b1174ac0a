"""Routes, peers and leases in force on this node. Implements `RouteView`. Does no I/O and waits for nothing.

Peers get another config at another moment than this node, so that a walk may begin under one and arrive under the next:
of a route that changes, the config before is remembered for two intervals, and of the peers those of the snapshot
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet.clock import Clock, ServerTime
from fleet.envelope import Signer
from fleet.logs import get_logger
from fleet.v1 import lease_pb2, route_pb2
from fleet_node.routes import rules, snapshot_rules
from fleet_node.routes.parts import Identity
from fleet_node.routes.rules import Applied, EffectivePath, HeldLease
from fleet_node.routes.signing import SteadySigner
from fleet_node.routes.snapshot_rules import Authority, Snapshot, SnapshotError, SnapshotReason

log = get_logger(__name__)

GRACE_INTERVALS = 2
FORMER_KEY_S = 60.0
"""For which the identity key counts that a peer had before: it signs with that one until all have the other."""


@dataclass(frozen=True, slots=True)
class _Former:
    """A config that was replaced, and until when it counts, in seconds of monotonic time."""

    config: route_pb2.RouteConfig
    until: float


class InForce:
    """See the module.

    Args:
        identity: this node.
        clock: for graces.
        server_time: leases end by it.
        peer_endpoints: where some peers are called, by node id, whatever a snapshot says of them.
    """

    def __init__(
        self, identity: Identity, clock: Clock, server_time: ServerTime, peer_endpoints: Mapping[str, str] | None = None
    ) -> None:
        self.routes: Mapping[str, EffectivePath] = {}
        """By route id."""
        self.own_certificate = b""
        """DER that this node's probe listener shows; empty when there is none."""
        self._identity = identity
        self._clock = clock
        self._server_time = server_time
        self._peer_endpoints = peer_endpoints or {}
        self.configs: dict[str, route_pb2.RouteConfig] = {}
        """The same as they came."""
        self._former: dict[str, _Former] = {}
        self._peers: Mapping[str, route_pb2.Peer] = {}
        self._former_peers: Mapping[str, route_pb2.Peer] = {}
        self._former_until = 0.0
        self._former_keys: dict[str, tuple[bytes, float]] = {}
        self._leases: dict[str, HeldLease] = {}
        self._signer = SteadySigner(identity.signer, clock)

    # -- RouteView ----------------------------------------------------------------------------------------------------
    @property
    def cluster_id(self) -> str:
        """See `RouteView`."""
        return self._identity.cluster_id

    @property
    def node_id(self) -> str:
        """See `RouteView`."""
        return self._identity.node_id

    @property
    def signer(self) -> Signer:
        """See `RouteView`."""
        return self._signer()

    def server_now_ms(self) -> int:
        """See `RouteView`."""
        return self._server_time.now_ms()

    def peer(self, node_id: str) -> route_pb2.Peer | None:
        """See `RouteView`."""
        return self._peers.get(node_id) or self._peers_before().get(node_id)

    def former_key(self, node_id: str) -> bytes:
        """See `RouteView`."""
        key, until = self._former_keys.get(node_id, (b"", 0.0))
        return key if self._clock.monotonic() < until else b""

    def whose(self, certificate: bytes) -> str:
        """See `RouteView`."""
        if not certificate:
            return ""
        if certificate == self.own_certificate:
            return self.node_id
        for peers in (self._peers, self._peers_before()):
            for node_id, peer in peers.items():
                if peer.probe_certificate == certificate:
                    return node_id
        return ""

    def configs_of(self, route_id: str) -> Sequence[route_pb2.RouteConfig]:
        """See `RouteView`."""
        config = self.configs.get(route_id)
        if config is None:
            return ()
        former = self._former.get(route_id)
        if former is None or former.until <= self._clock.monotonic():
            return (config,)
        return (config, former.config)

    def holds_lease(self, route_id: str) -> bool:
        """See `RouteView`."""
        lease, route = self._leases.get(route_id), self.routes.get(route_id)
        if lease is None or route is None or lease.relay_id != self.node_id:
            return False
        return lease.covers(route, self.server_now_ms())

    def note_key(self) -> None:
        """Notice that this node's identity key was replaced. Call it every few seconds."""
        self._signer()

    # -- what the server says -----------------------------------------------------------------------------------------
    def apply(self, snapshot: Snapshot, authority: Authority) -> Applied:
        """Put a snapshot in force, its leases too.

        Args:
            snapshot: judged.
            authority: leases are judged by it.
        """
        offered = [effective_path(config) for config in snapshot.routes.values()]
        applied = rules.apply(self.routes, offered)
        now = self._clock.monotonic()
        for route_id, config in snapshot.routes.items():
            if route_id not in applied.refused:
                self._replace(route_id, config, now)
        for route_id in applied.withdrawn:
            del self.configs[route_id]
            self._former.pop(route_id, None)
            self._leases.pop(route_id, None)
        self._former = {route_id: former for route_id, former in self._former.items() if former.until > now}
        called = {node_id: self._as_called(peer) for node_id, peer in snapshot.peers.items()}
        self._note_keys(called, now)
        self._former_peers, self._peers = {**self._peers_before(), **self._peers}, called
        self._former_until = max((former.until for former in self._former.values()), default=0.0)
        self.routes = applied.routes
        for signed in snapshot.leases:
            try:
                self._hold(snapshot_rules.judge_lease(signed, authority, self.configs))
            except SnapshotError as error:
                if error.reason is not SnapshotReason.WRONG_NODE:  # an end is told of the lease, too
                    log.warning("lease_refused", reason=str(error.reason), detail=error.detail)
        return applied

    def take_lease(self, lease: lease_pb2.LeaseStatement) -> str:
        """Hold a lease that was judged; why it was refused, empty when it was not."""
        return self._hold(lease)

    # -- leases of routes ---------------------------------------------------------------------------------------------
    def lease_of(self, route_id: str) -> HeldLease | None:
        """The newest lease of a route, run out or withdrawn as it may be."""
        return self._leases.get(route_id)

    def may_use(self, route: EffectivePath) -> bool:
        """Whether the path in force may be walked."""
        return rules.may_use(route, self._leases.get(route.route_id), self.server_now_ms())

    def next_lease_end_ms(self) -> int | None:
        """Milliseconds until the next lease ends that a path in force needs; None when there is none that has not
        ended."""
        now_ms = self.server_now_ms()
        ends = [
            lease.expires_at_ms - now_ms
            for route_id, lease in self._leases.items()
            if (route := self.routes.get(route_id)) is not None
            and route.relay_id != rules.DIRECT  # a path that was left for the direct one may leave its lease behind
            and lease.covers(route, now_ms)
        ]
        return min(ends, default=None)

    def _note_keys(self, peers: Mapping[str, route_pb2.Peer], now: float) -> None:
        self._former_keys = {node_id: former for node_id, former in self._former_keys.items() if now < former[1]}
        for node_id, peer in peers.items():
            before = self._peers.get(node_id)
            if before is not None and before.identity_key != peer.identity_key:
                self._former_keys[node_id] = before.identity_key, now + FORMER_KEY_S

    def _peers_before(self) -> Mapping[str, route_pb2.Peer]:
        """Of the snapshot before, while a config of it still counts."""
        return self._former_peers if self._clock.monotonic() < self._former_until else {}

    def _hold(self, lease: lease_pb2.LeaseStatement) -> str:
        offered = HeldLease(
            lease.lease_id,
            lease.route_id,
            lease.relay_node_id,
            lease.generation,
            lease.expires_at_ms,
            lease.withdrawn,
        )
        held, refused = rules.accept_lease(self._leases.get(lease.route_id), offered)
        self._leases[lease.route_id] = held
        return refused

    def _as_called(self, peer: route_pb2.Peer) -> route_pb2.Peer:
        endpoint = self._peer_endpoints.get(peer.node_id)
        if endpoint is None:
            return peer
        called = route_pb2.Peer()
        called.CopyFrom(peer)
        called.probe_endpoints[:] = [endpoint]
        return called

    def _replace(self, route_id: str, config: route_pb2.RouteConfig, now: float) -> None:
        before = self.configs.get(route_id)
        self.configs[route_id] = config
        if before is not None and _ways(before) != _ways(config):
            grace_s = GRACE_INTERVALS * before.probe_interval_ms / 1000
            self._former[route_id] = _Former(before, now + grace_s)


def effective_path(config: route_pb2.RouteConfig) -> EffectivePath:
    """A route as the rules see it."""
    return EffectivePath(
        config.route_id,
        config.generation,
        tuple(config.path),
        tuple(tuple(candidate.path) for candidate in config.candidates),
        config.probe_interval_ms,
        config.candidate_interval_ms,
        config.waiting_rendezvous,
    )


def _ways(config: route_pb2.RouteConfig) -> tuple[int, Sequence[str], list[Sequence[str]]]:
    return config.generation, config.path, [candidate.path for candidate in config.candidates]
