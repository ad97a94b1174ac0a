"""What probes ask of the rest of the node: its own part of the configuration, its key and the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fleet.envelope import Signer
from fleet.v1 import route_pb2


class RouteView(Protocol):
    """The snapshot in force, as whoever calls and whoever answers probes sees it. Nothing here waits."""

    @property
    def cluster_id(self) -> str:
        """Cluster of this node."""
        ...

    @property
    def node_id(self) -> str:
        """This node."""
        ...

    @property
    def signer(self) -> Signer:
        """The node's identity key in force."""
        ...

    def server_now_ms(self) -> int:
        """Server time, Unix milliseconds: deadlines of probes are in it, for nodes' own clocks are wrong."""
        ...

    def peer(self, node_id: str) -> route_pb2.Peer | None:
        """A peer of the snapshot; None when it names no such node."""
        ...

    def former_key(self, node_id: str) -> bytes:
        """Identity key (raw) that a peer had until it was replaced, while that still counts; empty otherwise."""
        ...

    def whose(self, certificate: bytes) -> str:
        """The node, this one included, whose probe listener shows this certificate (DER); empty when none is known."""
        ...

    def configs_of(self, route_id: str) -> Sequence[route_pb2.RouteConfig]:
        """A route as this node knows it: the config in force first, then the one before while its grace lasts, for
        configs of two nodes change at different moments. Empty when the snapshot has no such route."""
        ...

    def holds_lease(self, route_id: str) -> bool:
        """Whether this node holds a lease to relay that route which has not expired by server time."""
        ...
