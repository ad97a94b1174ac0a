"""What the routes room is built on. Light: a node without routes loads this and the door, and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.clock import Clock, ServerTime
from fleet.envelope import Signer
from fleet_node.link.ports import KeyAuditPort, TrustPort
from fleet_node.observability.metrics import RouteMetrics


@dataclass(frozen=True, slots=True)
class Identity:
    """This node, as its peers know it.

    Args:
        cluster_id: its cluster.
        node_id: its id.
        signer: its identity key in force; asked anew for each statement, since it may be rotated.
    """

    cluster_id: str
    node_id: str
    signer: Callable[[], Signer]


@dataclass(frozen=True, slots=True)
class RouteParts:
    """See the module.

    Args:
        listen: "host:port" for probes; empty for none.
        endpoints: where peers reach it; empty: at `listen`.
        peer_endpoints: where this node calls some peers, by node id, whatever the snapshot says of them.
        authority_required: False takes what nobody signed.
        snapshot_path: file of the snapshot in force.
        leaf_path: file of the listener's certificate and key.
        identity: this node.
        trust: the bundle in force.
        server_time: leases and deadlines are in it.
        audit: told of what is refused and applied.
    """

    listen: str
    endpoints: tuple[str, ...]
    peer_endpoints: Mapping[str, str]
    authority_required: bool
    snapshot_path: Path
    leaf_path: Path
    identity: Identity
    trust: TrustPort
    clock: Clock
    server_time: ServerTime
    metrics: RouteMetrics
    audit: KeyAuditPort
