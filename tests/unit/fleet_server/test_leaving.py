"""The order in which a server leaves, and what a second wish does to it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2
from fleet_server.leaving import Leaving
from fleet_server.replicas.pacing import Pace
from fleet_server.replicas.rules import DrainRequest, ReplicaState
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World


class Server:
    """Everything around a drain; `told` is what was done to it, in order."""

    def __init__(self, clock: MockClock, *, delay_s: float = 0.0, per_s: float = 100.0) -> None:
        self.told: list[str] = []
        self.clock = clock
        self.world = World(clock)
        self.per_s = per_s
        self.requests: asyncio.Queue[DrainRequest] = asyncio.Queue()
        self.again: list[Any] = []
        self.stopping: Any = SimpleNamespace(
            deadline_s=None,
            reason=gateway_pb2.GOAWAY_REASON_UNSPECIFIED,
            again=self.again.append,
            also=frozenset(),
        )
        gateway: Any = SimpleNamespace(stop_admitting=lambda: self.told.append("admits nobody"))
        replicas: Any = SimpleNamespace(
            set_state=self._set_state, pace=self._pace, wait_drain_requested=self.requests.get, also_leaving=()
        )
        health: Any = SimpleNamespace(set_draining=self._set_draining)
        self.leaving = Leaving(
            gateway=gateway,
            streams=self.world.registry,
            replicas=replicas,
            own_admission_per_s=lambda: 100.0,
            health=health,
            clock=clock,
            metrics=self.world.metrics,
            end_within=lambda seconds: None,
            delay_s=delay_s,
        )

    async def _set_draining(self) -> None:
        self.told.append("not ready")

    async def _set_state(self, state: ReplicaState) -> None:
        self.told.append(str(state))

    async def _pace(self, streams: int) -> Pace:
        if self.per_s < 0:
            raise Refusal(Reason.UNAVAILABLE, "the database is away")
        return Pace(self.per_s, None)

    async def stop(self, grace_s: float) -> None:
        if "listener closed" not in self.told:
            self.told.append("listener closed")

    def start(self, deadline_s: float = 30.0) -> "asyncio.Task[None]":
        """Begin to leave."""
        server: Any = self
        return asyncio.create_task(self.leaving.drain(server, self.stopping, deadline_s))


async def test_nodes_are_let_in_until_balancers_have_noticed(clock: MockClock) -> None:
    server = Server(clock, delay_s=10.0)
    wire = await server.world.open()
    leaving = server.start()
    await clock.advance(9.5)
    assert server.told == ["not ready", "DRAINING"]
    assert not wire.heard()
    await clock.advance(1.0)
    assert server.told == ["not ready", "DRAINING", "admits nobody", "listener closed"]
    assert [said.goaway.reason for said in wire.heard()] == [gateway_pb2.GOAWAY_REASON_DRAIN]
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
    await clock.advance(1.0)
    await asyncio.wait_for(leaving, 5)


@pytest.mark.parametrize("by", ["a second signal", "a request"])
async def test_a_second_wish_ends_the_delay_and_shortens_the_drain(clock: MockClock, by: str) -> None:
    server = Server(clock, delay_s=60.0)
    wire = await server.world.open()
    leaving = server.start()
    await clock.advance(1.0)
    if by == "a request":
        server.requests.put_nowait(DrainRequest(7, 7 + 2_000, gateway_pb2.GOAWAY_REASON_UNSPECIFIED))
    else:
        server.again[0]()
    await clock.advance(0.5)
    assert [said.goaway.deadline_ms for said in wire.heard()] == [2000]
    await clock.advance(2.0)
    assert (await wire.wait_refusal()).reason is Reason.DRAINING
    await asyncio.wait_for(leaving, 5)


async def test_replicas_that_stop_together_send_their_nodes_to_none_of_them(clock: MockClock) -> None:
    """The other one is still READY at first sight, and says a moment later that it stops too."""
    server = Server(clock)
    wire = await server.world.open()
    leaving = server.start()
    await clock.advance(0.2)
    server.per_s = 0.0
    await clock.advance(0.5)
    assert [said.goaway.reason for said in wire.heard()] == [gateway_pb2.GOAWAY_REASON_RESTART]
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="GOAWAY"))
    await clock.advance(0.5)
    await asyncio.wait_for(leaving, 5)


async def test_a_server_whose_database_is_away_leaves_like_one_that_is_alone(clock: MockClock) -> None:
    server = Server(clock, per_s=-1.0)
    wire = await server.world.open()
    leaving = server.start()
    await clock.advance(0.1)
    assert [said.goaway.reason for said in wire.heard()] == [gateway_pb2.GOAWAY_REASON_RESTART]
    await wire.say(goodbye=gateway_pb2.Goodbye(reason="GOAWAY"))
    await clock.advance(0.5)
    await asyncio.wait_for(leaving, 5)
