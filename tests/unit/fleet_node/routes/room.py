"""The routes room of one node, its clock and its peers as a test tells them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fleet.clock import ServerTime
from fleet.envelope import Signer
from fleet.metrics import Registry
from fleet.node_audit import JSON, NodeAuditKind
from fleet.v1 import gateway_pb2, route_pb2, trust_pb2
from fleet_node.link.ports import TrustPort
from fleet_node.observability.metrics import RouteMetrics
from fleet_node.routes.parts import Identity, RouteParts
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.service import RouteService
from fleet_node.routes.walk_rules import WalkResult, WalkState
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.routes.snapshots import AUTHORITY, CLUSTER, NODE, route, signed, statement

INTERVAL_S = 10.0


class FakeCaller:
    """Answers walks as a test says; unless told, every path answers within a millisecond."""

    def __init__(self) -> None:
        self.walked: list[tuple[str, ...]] = []
        self.broken: dict[tuple[str, ...], WalkState] = {}
        self.pruned = 0
        self.closed = False

    async def walk(self, route_id: str, generation: int, path: Sequence[str], timeout_s: float) -> WalkResult:
        way = tuple(path)
        self.walked.append(way)
        state = self.broken.get(way)
        if state is None:
            return WalkResult(way, way, 1000, 500, WalkState.ANSWERED)
        met = (*way[:-1], "nd_q") if state is WalkState.DRIFT else way[:1]
        failure = {WalkState.DRIFT: "WRONG_NODE", WalkState.UNREACHABLE: "TIMED_OUT"}.get(state, "UNKNOWN_ROUTE")
        return WalkResult(way, met, 0, 0, state, failure, 1, "nd_q" if state is WalkState.DRIFT else "")

    async def prune(self) -> None:
        self.pruned += 1

    async def close(self) -> None:
        self.closed = True


class FakeAudit:
    """Implements `KeyAuditPort`."""

    def __init__(self) -> None:
        self.rows: list[tuple[NodeAuditKind, dict[str, JSON]]] = []

    def tell(self, kind: NodeAuditKind, **detail: JSON) -> None:
        self.rows.append((kind, detail))

    def refuse(self, kind: NodeAuditKind, reason: str, **detail: JSON) -> None:
        self.rows.append((kind, {"reason": reason, **detail}))

    def kinds(self) -> list[str]:
        return [str(kind) for kind, _ in self.rows]


class FakeUplink:
    """Implements `Uplink`."""

    def __init__(self) -> None:
        self.sent: list[gateway_pb2.NodeControl] = []
        self.woken = 0

    def send_control(self, control: gateway_pb2.NodeControl) -> None:
        self.sent.append(control)

    def wake(self) -> None:
        self.woken += 1

    def renew(self) -> None:
        raise AssertionError("routes need no other stream")


class Room:
    """See the module. It keeps its file over a `restarted` one."""

    def __init__(
        self,
        folder: Path,
        *,
        required: bool = True,
        clock: MockClock | None = None,
        peer_endpoints: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.clock = clock or MockClock()
        self.caller, self.audit, self.uplink = FakeCaller(), FakeAudit(), FakeUplink()
        self.authority = SimpleNamespace(authority_key=AUTHORITY.public_key, generation=1)
        self.metrics = RouteMetrics(Registry())
        self.server_time = ServerTime(self.clock)
        self.parts = RouteParts(
            listen="",
            endpoints=(),
            peer_endpoints=peer_endpoints or {},
            authority_required=required,
            snapshot_path=folder / "routes.bin",
            leaf_path=folder / "probe.pem",
            identity=Identity(CLUSTER, NODE, lambda: AUTHORITY),
            trust=cast(TrustPort, SimpleNamespace(state=self.authority)),
            clock=self.clock,
            server_time=self.server_time,
            metrics=self.metrics,
            audit=self.audit,
        )
        self.service = self.build(self.parts)

    def build(self, parts: RouteParts) -> RouteService:
        return RouteService(parts, chance=lambda: 0.5, caller_of=lambda view, clock: cast(ProbeCaller, self.caller))

    def restarted(self, *, required: bool = True) -> "Room":
        return Room(self.folder, required=required, clock=self.clock)

    def rotate(self, successor: Signer) -> None:
        """A bundle of the next generation is in force."""
        self.authority.authority_key, self.authority.generation = successor.public_key, 2

    async def give(
        self, *routes: route_pb2.RouteConfig, version: int = 1, signer: Signer = AUTHORITY, **said: Any
    ) -> route_pb2.ConfigApplied:
        return await self.service.take_config(signed(statement(*routes, version=version, **said), signer))

    async def take(self, offered: trust_pb2.Signed) -> route_pb2.ConfigApplied:
        return await self.service.take_config(offered)

    def told(self) -> list[route_pb2.RouteHealth]:
        """Every frame that goes out now."""
        frames: list[route_pb2.RouteHealth] = []
        while (raw := self.service.next_health()) is not None:
            frames.append(gateway_pb2.NodeControl.FromString(raw).route_health)
        return frames

    def findings(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Type, state and path of what goes out now."""
        return [
            (
                route_pb2.ObservationType.Name(each.observation_type).removeprefix("OBSERVATION_TYPE_"),
                route_pb2.RouteState.Name(each.state).removeprefix("ROUTE_STATE_"),
                tuple(each.expected_hops),
            )
            for frame in self.told()
            for each in frame.observations
        ]


def direct(**changed: Any) -> route_pb2.RouteConfig:
    """Straight to nd_b, with a way over nd_r beside it."""
    return route(DIRECT, RELAYED, **changed)


def relayed(**changed: Any) -> route_pb2.RouteConfig:
    """Over nd_r, with the direct way beside it."""
    return route(RELAYED, DIRECT, **changed)


DIRECT = (NODE, "nd_b")
RELAYED = (NODE, "nd_r", "nd_b")
