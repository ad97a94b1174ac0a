"""What a node takes for its part of the configuration, and for a lease: pure (docs/protocol.md, "Routes", "Leases").

Versions are compared within one generation of the authority: under a new one they begin again, so that one which the
holder of a stolen authority set far ahead is not for ever, and what the old one signed does not verify any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.clock import MAX_TIME_MS
from fleet.envelope import Domain, EnvelopeError
from fleet.sequence import MAX_DETAIL_CHARS
from fleet.tls import split_endpoint
from fleet.v1 import lease_pb2, route_pb2, trust_pb2

MAX_SNAPSHOT_BYTES = 1024 * 1024
MAX_LEASE_BYTES = 4 * 1024
MAX_ROUTES = 2048
MAX_PEERS = 2048
MAX_PATH = 5
MAX_CANDIDATES = 8
"""The server hands out four; a later one may find more worth its while."""
MAX_ID_CHARS = 64
MAX_ENDPOINTS = 4
MAX_ENDPOINT_CHARS = 261
"""A name of 255 characters, a colon and a port."""
MAX_CERTIFICATE_BYTES = 4 * 1024
MAX_SENTENCE_CHARS = 1024
MAX_NUMBER = 2**53
MIN_INTERVAL_MS = 100
MAX_INTERVAL_MS = 3_600_000
MAX_CANDIDATE_INTERVAL_MS = 24 * 3_600_000
MAX_LEASE_MS = 24 * 3_600_000
SERVICE_CLASS = "synthetic"


class SnapshotReason(StrEnum):
    """Why a snapshot or a lease is refused."""

    WRONG_SIGNER = "WRONG_SIGNER"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    WRONG_NODE = "WRONG_NODE"
    OLDER = "OLDER"
    OVERSIZE = "OVERSIZE"
    MALFORMED = "MALFORMED"
    LOOP = "LOOP"
    TOO_MANY_HOPS = "TOO_MANY_HOPS"
    RELAY_IS_END = "RELAY_IS_END"
    UNKNOWN_PEER = "UNKNOWN_PEER"
    UNKNOWN_ROUTE = "UNKNOWN_ROUTE"


class SnapshotError(Exception):
    """A snapshot or lease that is not taken. `detail` is cut, as that of a `StatementRefusal`."""

    def __init__(self, reason: SnapshotReason, detail: str) -> None:
        detail = detail[:MAX_DETAIL_CHARS]
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Authority:
    """Who may sign, and for whom.

    Args:
        cluster_id: the node's cluster.
        node_id: the node.
        public_key: of the authority in force.
        generation: of that authority.
        required: False takes what nobody signed (setting `routes.authority_required`); everything else is judged all
            the same.
    """

    cluster_id: str
    node_id: str
    public_key: bytes
    generation: int
    required: bool = True


@dataclass(frozen=True, slots=True)
class Floor:
    """The newest version that was taken; compared in the order of the fields.

    Args:
        generation: of the authority that signed it.
        version: of the snapshot; 0 when there was none.
    """

    generation: int = 0
    version: int = 0

    def under(self, authority: Authority) -> int:
        """The version that counts under `authority`."""
        return self.version if self.generation == authority.generation else 0


NEVER = Floor()
"""No snapshot was taken yet."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A config snapshot that was judged.

    Args:
        floor: generation and version of it.
        routes: by route id.
        peers: by node id, without this node.
        leases: signed, as they came; each is judged by `judge_lease`.
        policy: how to probe and when to ask.
        signed: as it came.
    """

    floor: Floor
    routes: Mapping[str, route_pb2.RouteConfig]
    peers: Mapping[str, route_pb2.Peer]
    leases: tuple[trust_pb2.Signed, ...]
    policy: route_pb2.RoutePolicy
    signed: trust_pb2.Signed

    @property
    def version(self) -> int:
        """Its version."""
        return self.floor.version

    def says_the_same(self, other: Snapshot) -> bool:
        """Whether it differs at most in its leases, which are renewed under one version."""
        return (self.floor, self.routes, self.peers, self.policy) == (
            other.floor,
            other.routes,
            other.peers,
            other.policy,
        )


def judge_snapshot(signed: trust_pb2.Signed, authority: Authority, floor: Floor) -> Snapshot:
    """Take a snapshot. The version that is held is taken again: it answers an ask, and may bring newer leases.

    Args:
        floor: the newest version that was taken, by this process or one before it.

    Raises:
        SnapshotError: it is not taken.
    """
    raw = _verified(signed, authority, Domain.CONFIG, MAX_SNAPSHOT_BYTES)
    try:
        statement = route_pb2.ConfigSnapshotStatement.FromString(raw)
    except DecodeError as error:
        raise SnapshotError(SnapshotReason.MALFORMED, "this is no config snapshot") from error
    _check_addressee(statement.cluster_id, statement.node_id, authority)
    if not 0 < statement.version <= MAX_NUMBER:
        raise SnapshotError(SnapshotReason.MALFORMED, f"version {statement.version} is out of range")
    least = floor.under(authority)
    if statement.version < least:
        raise SnapshotError(SnapshotReason.OLDER, f"version {statement.version} is older than {least}")
    return _checked(statement, signed, authority)


def judge_lease(
    signed: trust_pb2.Signed, authority: Authority, routes: Mapping[str, route_pb2.RouteConfig]
) -> lease_pb2.LeaseStatement:
    """Take a lease of a route whose source or relay this node is. Whether it counts beside the one that is held,
    `rules.accept_lease` says.

    Args:
        routes: that the snapshot in force holds.

    Raises:
        SnapshotError: it is not taken.
    """
    raw = _verified(signed, authority, Domain.LEASE, MAX_LEASE_BYTES)
    try:
        lease = lease_pb2.LeaseStatement.FromString(raw)
    except DecodeError as error:
        raise SnapshotError(SnapshotReason.MALFORMED, "this is no lease") from error
    if lease.cluster_id != authority.cluster_id:
        raise SnapshotError(SnapshotReason.WRONG_CLUSTER, f"the lease is for cluster {lease.cluster_id!r}")
    _check_lease(lease, authority, routes)
    return lease


def claimed_lease(signed: trust_pb2.Signed) -> tuple[str, int]:
    """Lease id and generation that a lease claims, not verified: good for saying which one was refused, for nothing
    else. Empty for what is no lease."""
    try:
        lease = lease_pb2.LeaseStatement.FromString(signed.statement[:MAX_LEASE_BYTES])
    except DecodeError:
        return "", 0
    return lease.lease_id[:MAX_ID_CHARS], lease.generation


def _check_lease(
    lease: lease_pb2.LeaseStatement, authority: Authority, routes: Mapping[str, route_pb2.RouteConfig]
) -> None:
    route = routes.get(lease.route_id)
    if route is None:
        raise SnapshotError(SnapshotReason.UNKNOWN_ROUTE, f"route {lease.route_id!r} is not one of this node's")
    if authority.node_id not in (lease.relay_node_id, route.path[0]):
        raise SnapshotError(SnapshotReason.WRONG_NODE, "this node is neither source nor relay of it")
    if lease.relay_node_id in (route.path[0], route.path[-1]):
        raise SnapshotError(SnapshotReason.RELAY_IS_END, "its relay is an end of the route")
    if not _is_id(lease.lease_id) or not _is_id(lease.relay_node_id) or not 0 < lease.generation <= MAX_NUMBER:
        raise SnapshotError(SnapshotReason.MALFORMED, "a field of the lease is out of range")
    if not 0 <= lease.issued_at_ms <= lease.expires_at_ms <= MAX_TIME_MS:
        raise SnapshotError(SnapshotReason.MALFORMED, "the lease ends before it begins, or never")
    if lease.expires_at_ms - lease.issued_at_ms > MAX_LEASE_MS:
        raise SnapshotError(SnapshotReason.MALFORMED, f"the lease is for longer than {MAX_LEASE_MS} ms")


def _verified(signed: trust_pb2.Signed, authority: Authority, domain: Domain, max_bytes: int) -> bytes:
    size = signed.ByteSize()
    if size > max_bytes:
        raise SnapshotError(SnapshotReason.OVERSIZE, f"{size} bytes; {max_bytes} are allowed")
    if not authority.required:
        return signed.statement
    if len(signed.signatures) != 1:
        detail = f"{len(signed.signatures)} signatures; the authority's alone is expected"
        raise SnapshotError(SnapshotReason.WRONG_SIGNER, detail)
    try:
        return envelope.verify_one(signed, domain=domain, public_key=authority.public_key)
    except EnvelopeError as error:
        raise SnapshotError(SnapshotReason.WRONG_SIGNER, error.detail) from error


def _check_addressee(cluster_id: str, node_id: str, authority: Authority) -> None:
    if cluster_id != authority.cluster_id:
        detail = f"the snapshot is for cluster {cluster_id!r}, this is {authority.cluster_id!r}"
        raise SnapshotError(SnapshotReason.WRONG_CLUSTER, detail)
    if node_id != authority.node_id:
        raise SnapshotError(SnapshotReason.WRONG_NODE, f"the snapshot is for node {node_id!r}")


def _checked(statement: route_pb2.ConfigSnapshotStatement, signed: trust_pb2.Signed, authority: Authority) -> Snapshot:
    if len(statement.routes) > MAX_ROUTES or len(statement.peers) > MAX_PEERS or len(statement.leases) > MAX_ROUTES:
        raise SnapshotError(SnapshotReason.OVERSIZE, f"it lists more than {MAX_ROUTES} routes, peers or leases")
    peers = {peer.node_id: peer for peer in statement.peers}
    if len(peers) != len(statement.peers):
        raise SnapshotError(SnapshotReason.MALFORMED, "it lists a peer twice")
    for peer in statement.peers:
        _check_peer(peer)
    routes = {route.route_id: route for route in statement.routes}
    if len(routes) != len(statement.routes):
        raise SnapshotError(SnapshotReason.MALFORMED, "it lists a route twice")
    for route in statement.routes:
        _check_route(route, known={*peers, authority.node_id}, node_id=authority.node_id)
    peers.pop(authority.node_id, None)
    return Snapshot(
        floor=Floor(authority.generation, statement.version),
        routes=routes,
        peers=peers,
        leases=tuple(statement.leases),
        policy=statement.policy,
        signed=signed,
    )


def _check_peer(peer: route_pb2.Peer) -> None:
    key = peer.identity_key
    wrong = not _is_id(peer.node_id) or len(key) != envelope.PUBLIC_KEY_BYTES or envelope.is_small_order(key)
    if wrong or len(peer.probe_endpoints) > MAX_ENDPOINTS or len(peer.probe_certificate) > MAX_CERTIFICATE_BYTES:
        raise SnapshotError(SnapshotReason.MALFORMED, f"peer {peer.node_id[:MAX_ID_CHARS]!r} is out of range")
    for endpoint in peer.probe_endpoints:
        try:
            split_endpoint(endpoint[: MAX_ENDPOINT_CHARS + 1])
        except ValueError as error:
            raise SnapshotError(SnapshotReason.MALFORMED, f"peer {peer.node_id}: {error}") from error
        if len(endpoint) > MAX_ENDPOINT_CHARS:
            raise SnapshotError(SnapshotReason.MALFORMED, f"peer {peer.node_id}: an endpoint is too long")


def _check_route(route: route_pb2.RouteConfig, *, known: set[str], node_id: str) -> None:
    name = f"route {route.route_id[:MAX_ID_CHARS]!r}"
    if not _is_id(route.route_id) or not 0 < route.generation <= MAX_NUMBER or len(route.reason) > MAX_SENTENCE_CHARS:
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: id, generation or reason is out of range")
    if route.service_class != SERVICE_CLASS:
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: service class {route.service_class[:64]!r} is unknown")
    if not MIN_INTERVAL_MS <= route.probe_interval_ms <= MAX_INTERVAL_MS:
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: {route.probe_interval_ms} ms is no interval")
    ways = [tuple(route.path), *(tuple(each.path) for each in route.candidates)]
    if len(ways) > 1 + MAX_CANDIDATES:
        raise SnapshotError(SnapshotReason.OVERSIZE, f"{name}: {len(ways) - 1} candidates")
    if len(ways) > 1 and not MIN_INTERVAL_MS <= route.candidate_interval_ms <= MAX_CANDIDATE_INTERVAL_MS:
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: {route.candidate_interval_ms} ms is no interval")
    for way in ways:
        _check_path(way, name, known)
    if len(set(ways)) != len(ways) or len({(way[0], way[-1]) for way in ways}) != 1:
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: a candidate stands twice, or has other ends")
    if not any(node_id in way for way in ways):
        raise SnapshotError(SnapshotReason.WRONG_NODE, f"{name}: this node is on none of its paths")


def _check_path(path: tuple[str, ...], name: str, known: Iterable[str]) -> None:
    if len(path) < 2 or not all(map(_is_id, path)):
        raise SnapshotError(SnapshotReason.MALFORMED, f"{name}: a path has no two ends")
    if len(path) > MAX_PATH:
        raise SnapshotError(SnapshotReason.TOO_MANY_HOPS, f"{name}: a path of {len(path) - 1} hops")
    if path[0] in path[1:-1] or path[-1] in path[1:-1]:
        raise SnapshotError(SnapshotReason.RELAY_IS_END, f"{name}: a relay is an end of the path")
    if len(set(path)) != len(path):
        raise SnapshotError(SnapshotReason.LOOP, f"{name}: a path meets a node twice")
    if missing := [node for node in path if node not in known]:
        raise SnapshotError(SnapshotReason.UNKNOWN_PEER, f"{name}: nothing is said of {missing[0]}")


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID_CHARS and text.isprintable()
