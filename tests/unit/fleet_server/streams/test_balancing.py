"""A replica that hands on streams: whom it asks, where to, and what it makes of what they do."""

import asyncio
import random
from dataclasses import replace

import pytest

from fleet.v1 import gateway_pb2
from fleet_server.replicas.rules import ReplicaRecord, ReplicaState
from fleet_server.streams.balancing import Balancing
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World
from tests.unit.fleet_server.streams.wire import Wire

NODES = 60
STEP = 6


def replica(name: str, streams: int, *endpoints: str) -> ReplicaRecord:
    return ReplicaRecord(
        name, "1", ReplicaState.READY, streams, 200.0, 0, 0, None, max_streams=1_000, endpoints=endpoints
    )


class Giver:
    """A replica that holds 60 streams, beside one that holds none."""

    def __init__(self, world: World, *, enabled: bool = True) -> None:
        self.world = world
        self.rows = [replica("a", NODES, "a:7443"), replica("b", 0, "b:7443")]
        self.wires: list[Wire] = []
        self.balancing = Balancing(
            registry=world.registry,
            replicas=lambda: self.rows,
            own_id="a",
            clock=world.clock,
            metrics=world.metrics,
            enabled=enabled,
            chance=random.Random(1),
        )

    async def fill(self) -> None:
        for number in range(NODES):
            self.wires.append(await self.world.open(f"n{number}"))

    async def asked(self) -> dict[str, gateway_pb2.ControlGoaway]:
        """Who was asked to go since the last call."""
        found = {}
        for wire in self.wires:
            await wire.settle()
            for said in wire.heard():
                if said.HasField("goaway"):
                    found[wire.stream.node_id] = said.goaway
        return found

    async def leave(self, nodes: dict[str, gateway_pb2.ControlGoaway]) -> None:
        for wire in self.wires[:NODES]:
            if wire.stream.node_id in nodes:
                await wire.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))


@pytest.fixture
async def giver(clock: MockClock) -> Giver:
    made = Giver(World(clock))
    await made.fill()
    return made


async def test_a_step_asks_a_few_and_the_next_waits_until_they_have_gone(giver: Giver) -> None:
    giver.balancing.round()
    first = await giver.asked()
    assert len(first) == STEP
    assert {tuple(goaway.endpoints) for goaway in first.values()} == {("b:7443",)}
    assert {goaway.reason for goaway in first.values()} == {gateway_pb2.GOAWAY_REASON_REBALANCE}
    assert sorted(goaway.reconnect_after_ms for goaway in first.values()) == [0, 20, 40, 60, 80, 100]
    giver.balancing.round()
    assert not await giver.asked()
    await giver.leave(first)
    giver.balancing.round()
    assert not await giver.asked(), "heartbeats have to show it first"
    giver.balancing.round()
    second = await giver.asked()
    assert len(second) == STEP
    assert not second.keys() & first.keys()


async def test_nodes_that_wait_for_nothing_are_asked_first(giver: Giver) -> None:
    for wire in giver.wires[: NODES - 2]:
        wire.commands.open_count = lambda node_id: 1  # type: ignore[method-assign]
    giver.balancing.round()
    assert {"n58", "n59"} <= (await giver.asked()).keys()


async def test_behind_one_address_no_endpoint_is_named(giver: Giver) -> None:
    giver.rows = [replace(row, endpoints=("fleet.example:443",)) for row in giver.rows]
    giver.balancing.round()
    assert {tuple(goaway.endpoints) for goaway in (await giver.asked()).values()} == {()}


async def test_nodes_that_come_back_are_left_alone(giver: Giver) -> None:
    giver.balancing.round()
    asked = await giver.asked()
    for node_id in asked:
        giver.wires.append(await giver.world.open(node_id, 2, f"{node_id}-1"))
    await giver.leave(asked)
    for _ in range(20):
        giver.balancing.round()
        await giver.world.clock.advance(5)
    assert not await giver.asked()
    assert giver.world.metrics.balance_moves.value == giver.world.metrics.balance_stayed.value == STEP


async def test_nodes_that_do_not_go_are_waited_for_a_while_and_then_left_alone(giver: Giver) -> None:
    giver.balancing.round()
    assert await giver.asked()
    for _ in range(20):
        await giver.world.clock.advance(5)
        giver.balancing.round()
    assert not await giver.asked()
    assert giver.world.metrics.balance_stayed.value == STEP


async def test_it_can_be_switched_off(clock: MockClock) -> None:
    giver = Giver(World(clock), enabled=False)
    await giver.fill()
    task = asyncio.create_task(giver.balancing.run())
    await clock.advance(60)
    task.cancel()
    assert not await giver.asked()
