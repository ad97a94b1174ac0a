"""A registry and its streams, in memory."""

from types import SimpleNamespace
from typing import Any

from fleet.errors import Refusal
from fleet.metrics import Registry
from fleet.v1 import gateway_pb2
from fleet_server.database.wakeup import Wakeup
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.streams.registry import StreamRegistry
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import FakeRoutes, Wire


class World:
    """A registry and the streams in it."""

    def __init__(self, clock: MockClock, *, max_streams: int = 100) -> None:
        self.clock = clock
        self.wakeup = Wakeup()
        self.metrics = StreamMetrics(Registry())
        sessions: Any = SimpleNamespace(reauth_challenge=lambda node, stream: b"challenge")
        self.registry = StreamRegistry(
            clock=clock,
            wakeup=self.wakeup,
            sessions=sessions,
            metrics=self.metrics,
            heartbeat_ms=1_000,
            session_ttl_ms=900_000,
            max_streams=max_streams,
        )

    async def open(
        self,
        node_id: str = "n",
        epoch: int = 1,
        takeover_of: str = "",
        *refusals: Refusal,
        routes: FakeRoutes | None = None,
    ) -> Wire:
        wire = Wire(
            self.clock, node_id=node_id, epoch=epoch, takeover_of=takeover_of, unreconciled=refusals, routes=routes
        )
        self.registry.add(wire.stream)
        wire.running.add_done_callback(lambda _: self.registry.remove(wire.stream))
        await wire.settle()
        wire.heard()
        return wire

    async def beats(self, wire: Wire, count: int, *, answer: bool) -> list[gateway_pb2.ServerControl]:
        heard = []
        for _ in range(count):
            await self.clock.advance(1.0)
            self.registry.beat()
            await wire.settle()
            for control in wire.heard():
                heard.append(control)
                if answer and control.WhichOneof("body") == "ping":
                    await wire.say(pong=gateway_pb2.Pong(number=control.ping.number))
        return heard
