"""A replica's drain: who leaves when, what a pace that changes does, and what is left at the end."""

import asyncio
import itertools
from typing import Any

import pytest

from fleet.errors import Reason
from fleet.v1 import gateway_pb2
from fleet_server.streams.drain import Drain
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World
from tests.unit.fleet_server.streams.wire import Wire


@pytest.fixture
def world(clock: MockClock) -> World:
    return World(clock)


class Draining:
    """A drain that runs over some streams, and when each of those was told to go."""

    def __init__(self, world: World, *, pace_per_s: float = 2.0, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "registry": world.registry,
            "clock": world.clock,
            "metrics": world.metrics,
            "reason": gateway_pb2.GOAWAY_REASON_DRAIN,
            "deadline_s": 10.0,
            "pace_per_s": lambda: self.pace_per_s,
            "own_admission_per_s": 100.0,
        }
        self.pace_per_s = pace_per_s
        self.world = world
        self.began_s = world.clock.monotonic()
        self.drain = Drain(**(settings | changes))
        self.running = asyncio.create_task(self.drain.run())
        self.goaways: dict[str, gateway_pb2.ControlGoaway] = {}
        self.slots_s: dict[str, float] = {}

    async def listen(self, wires: list[Wire], seconds: float = 0.0) -> None:
        """Let time pass, in the drain's steps, and take down who is told what."""
        for _ in range(max(1, round(seconds / 0.05))):
            await wires[0].settle()
            for wire in wires:
                for control in wire.heard():
                    if control.HasField("goaway"):
                        now_s = self.world.clock.monotonic() - self.began_s
                        self.goaways[wire.stream.node_id] = control.goaway
                        self.slots_s[wire.stream.node_id] = now_s + control.goaway.reconnect_after_ms / 1000
            if seconds:
                await self.world.clock.advance(0.05)

    async def ended(self) -> Any:
        return await asyncio.wait_for(self.running, 5)


async def test_every_stream_has_a_slot_of_its_own_and_the_drain_ends_when_all_left(world: World) -> None:
    wires = [await world.open(f"n{index}") for index in range(4)]
    draining = Draining(world)
    await draining.listen(wires, seconds=1.0)
    assert [round(draining.slots_s[f"n{index}"], 1) for index in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert {goaway.reason for goaway in draining.goaways.values()} == {gateway_pb2.GOAWAY_REASON_DRAIN}
    for wire in wires:
        await wire.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
    await world.clock.advance(0.1)
    progress = await draining.ended()
    assert (progress.streams_left, progress.streams_total, progress.done) == (0, 4, True)


async def test_slots_follow_what_the_others_admit_while_the_drain_runs(world: World) -> None:
    """Another replica begins to drain too, or fills up: who was not told yet is told later."""
    wires = [await world.open(f"n{index}") for index in range(8)]
    draining = Draining(world, pace_per_s=2.0, deadline_s=30.0)
    await draining.listen(wires)
    told = len(draining.goaways)
    assert told == 3, "a second ahead, no more"
    draining.pace_per_s = 0.5
    await draining.listen(wires, seconds=12.0)
    slots = sorted(draining.slots_s.values())
    steps = [after - before for before, after in zip(slots[told:], slots[told + 1 :], strict=False)]
    assert steps
    assert all(step >= 2.0 - 0.06 for step in steps)
    draining.pace_per_s = 0.0
    before = len(draining.goaways)
    await draining.listen(wires, seconds=5.0)
    assert len(draining.goaways) <= before + 1
    draining.running.cancel()


async def test_a_stream_that_opens_while_the_drain_begins_is_sent_away_too(world: World) -> None:
    wires = [await world.open("n0")]
    draining = Draining(world)
    await draining.listen(wires, seconds=0.5)
    wires.append(await world.open("late"))
    await draining.listen(wires, seconds=2.0)
    assert draining.goaways.keys() == {"n0", "late"}
    draining.running.cancel()


async def test_a_deadline_that_is_too_near_is_said_and_nobody_is_rushed(world: World) -> None:
    wires = [await world.open(f"n{index}") for index in range(12)]
    draining = Draining(world, pace_per_s=1.0, deadline_s=6.0)
    await draining.listen(wires, seconds=1.0)
    assert draining.drain.progress().short_s > 5
    await draining.listen(wires, seconds=4.0)
    slots = sorted(draining.slots_s.values())
    assert all(after - before > 0.94 for before, after in itertools.pairwise(slots))
    assert max(slots) <= 4.05, "the last one has time to move"
    await draining.listen(wires, seconds=1.2)
    left = [wire for wire in wires if wire.stream.node_id not in draining.slots_s]
    refusals = [await wire.wait_refusal() for wire in left]
    assert {refusal.reason for refusal in refusals} == {Reason.DRAINING}
    delays = sorted(refusal.retry_after_s or 0.0 for refusal in refusals)
    assert all(after - before > 0.94 for before, after in itertools.pairwise(delays)), "nor is the end a herd"
    assert (await draining.ended()).streams_left == 0


async def test_nodes_of_a_lone_replica_are_told_at_once_that_it_restarts(world: World) -> None:
    wires = [await world.open(f"n{index}") for index in range(50)]
    draining = Draining(world, pace_per_s=0.0, reason=gateway_pb2.GOAWAY_REASON_UPGRADE)
    await draining.listen(wires)
    said = {(goaway.reason, goaway.reconnect_after_ms, goaway.window_ms) for goaway in draining.goaways.values()}
    assert said == {(gateway_pb2.GOAWAY_REASON_RESTART, 0, 500)}
    assert draining.drain.progress().short_s == 0
    draining.running.cancel()


async def test_what_is_left_at_the_deadline_is_told_so(world: World) -> None:
    wire = await world.open()
    draining = Draining(world)
    await draining.listen([wire])
    await world.clock.advance(10.1)
    assert (await wire.wait_refusal()).reason is Reason.DRAINING
    await draining.ended()


async def test_a_second_request_only_brings_the_deadline_closer(world: World) -> None:
    wire = await world.open()
    draining = Draining(world)
    await draining.listen([wire])
    draining.drain.shorten(1.0)
    draining.drain.shorten(60.0)
    await world.clock.advance(1.1)
    assert (await wire.wait_refusal()).reason is Reason.DRAINING
    await draining.ended()
