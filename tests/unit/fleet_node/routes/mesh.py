"""Nodes with real probe listeners on loopback, and the snapshots that they would hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import grpc

from fleet import status
from fleet.clock import SystemClock
from fleet.envelope import Signer
from fleet.errors import Refusal
from fleet.tls import der_to_pem
from fleet.v1 import route_pb2
from fleet_node.routes.intake import ProbeLimits
from fleet_node.routes.listener import ProbeListener
from fleet_node.routes.peer_channels import CERTIFICATE_NAME
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.probe_rules import Probe

CLUSTER = "cl_test"
ROUTE = "rt_one"
GENERATION = 7
TIMEOUT_S = 5.0
NONCE = bytes(range(16))


def config(*paths: Sequence[str], route_id: str = ROUTE, generation: int = GENERATION) -> route_pb2.RouteConfig:
    """A route whose effective path is the first one; the others are candidates."""
    candidates = [route_pb2.CandidatePath(path=path) for path in paths[1:]]
    return route_pb2.RouteConfig(route_id=route_id, generation=generation, path=paths[0], candidates=candidates)


class View:
    """What one node knows."""

    def __init__(self, node_id: str) -> None:
        self.cluster_id, self.node_id = CLUSTER, node_id
        self.signer = Signer.generate()
        self.peers: dict[str, route_pb2.Peer] = {}
        self.former_keys: dict[str, bytes] = {}
        self.configs: dict[str, list[route_pb2.RouteConfig]] = {}
        self.leases: set[str] = set()
        self.ahead_ms = 0

    def server_now_ms(self) -> int:
        return SystemClock().now_ms() + self.ahead_ms

    def peer(self, node_id: str) -> route_pb2.Peer | None:
        return self.peers.get(node_id)

    def former_key(self, node_id: str) -> bytes:
        return self.former_keys.get(node_id, b"")

    def whose(self, certificate: bytes) -> str:
        return next((peer.node_id for peer in self.peers.values() if peer.probe_certificate == certificate), "")

    def configs_of(self, route_id: str) -> Sequence[route_pb2.RouteConfig]:
        return self.configs.get(route_id, [])

    def holds_lease(self, route_id: str) -> bool:
        return route_id in self.leases


class MeshNode:
    """One node: its view, its caller and its listener."""

    def __init__(self, node_id: str, folder: Path, limits: ProbeLimits | None = None) -> None:
        self.view = View(node_id)
        self.caller = ProbeCaller(self.view, SystemClock())
        self.listener = ProbeListener(
            "127.0.0.1:0", folder / f"{node_id}.pem", self.view, self.caller, SystemClock(), limits
        )

    @property
    def node_id(self) -> str:
        return self.view.node_id

    @property
    def endpoint(self) -> str:
        return self.listener.bound

    def as_peer(self) -> route_pb2.Peer:
        return route_pb2.Peer(
            node_id=self.node_id,
            identity_key=self.view.signer.public_key,
            probe_endpoints=[self.endpoint],
            probe_certificate=self.listener.certificate,
        )

    async def close(self) -> None:
        await self.caller.close()
        await self.listener.close()


class Mesh:
    """Nodes that all know each other and the same routes."""

    def __init__(self, folder: Path, limits: ProbeLimits | None = None) -> None:
        self._folder, self._limits = folder, limits
        self.nodes: dict[str, MeshNode] = {}

    async def start(self, *node_ids: str) -> Self:
        for node_id in node_ids:
            self.nodes[node_id] = node = MeshNode(node_id, self._folder, self._limits)
            await node.listener.start()
        for node in self.nodes.values():
            node.view.peers = {other.node_id: other.as_peer() for other in self.nodes.values() if other is not node}
        return self

    def __getitem__(self, node_id: str) -> MeshNode:
        return self.nodes[node_id]

    def route(self, *paths: Sequence[str], leased: bool = True) -> None:
        """Give every node that route, and every relay of its effective path a lease."""
        for node in self.nodes.values():
            node.view.configs[ROUTE] = [config(*paths)]
            node.view.leases = {ROUTE} if leased and node.node_id in paths[0][1:-1] else set()

    def redirect(self, node_id: str, *endpoints: str) -> None:
        """Let everybody find a node somewhere else."""
        for node in self.nodes.values():
            if node_id in node.view.peers:
                del node.view.peers[node_id].probe_endpoints[:]
                node.view.peers[node_id].probe_endpoints.extend(endpoints)

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.close()


@asynccontextmanager
async def mesh(folder: Path, node_ids: str, limits: ProbeLimits | None = None) -> AsyncIterator[Mesh]:
    """Nodes of one-letter names."""
    made = Mesh(folder, limits)
    try:
        yield await made.start(*node_ids)
    finally:
        await made.close()


@asynccontextmanager
async def deaf_port() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """An endpoint that takes connections and says nothing, and who came."""
    came: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: came.append(writer), "127.0.0.1")
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", came
    finally:
        server.close()


def probe(path: Sequence[str], *, ahead_ms: int = 3000, nonce: bytes = NONCE, route_id: str = ROUTE) -> Probe:
    return Probe(CLUSTER, route_id, GENERATION, tuple(path), nonce, SystemClock().now_ms() + ahead_ms)


async def call_raw(node: MeshNode, raw: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
    """Send bytes to a listener, as any stranger can.

    Raises:
        Refusal: as the listener says.
    """
    credentials = grpc.ssl_channel_credentials(der_to_pem(node.listener.certificate))
    options = [("grpc.ssl_target_name_override", CERTIFICATE_NAME), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(node.endpoint, credentials, options=options) as channel:
        try:
            answer: bytes = await channel.unary_unary("/fleet.v1.Probe/Walk")(raw, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            assert status.is_refusal(error), error
            raise status.decode(error) from None
        return answer


async def refusal_of(node: MeshNode, raw: bytes) -> Refusal:
    """Why a listener does not take these bytes."""
    try:
        await call_raw(node, raw)
    except Refusal as refusal:
        return refusal
    raise AssertionError("it was taken")
