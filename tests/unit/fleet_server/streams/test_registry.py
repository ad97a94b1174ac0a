"""All live streams: who is newest, who is dead, who leaves."""

import asyncio
from collections.abc import Sequence

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.link.rules import other_endpoints
from fleet_server.streams.report_lane import MAX_WAITING_BYTES
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.many import World
from tests.unit.fleet_server.streams.wire import Wire


@pytest.fixture
def world(clock: MockClock) -> World:
    return World(clock)


async def test_a_node_that_answers_lives_and_one_that_does_not_is_ended(world: World) -> None:
    alive, dead = await world.open("alive"), await world.open("dead")
    for _ in range(6):
        await world.beats(alive, 1, answer=True)
    assert not alive.running.done()
    assert (await dead.wait_refusal()).reason is Reason.HEARTBEAT_LOST


async def _talk(world: World, wire: Wire, beats: int) -> list[int]:
    """Numbers of the pings of so many beats, while telemetry comes and is acknowledged, and pings stay unanswered."""
    numbers = []
    for _ in range(beats):
        await wire.raw(gateway_pb2.NodeFrame(telemetry=b"batch"))
        wire.telemetry.ack(1)
        for control in await world.beats(wire, 1, answer=False):
            numbers += [control.ping.number] if control.WhichOneof("body") == "ping" else []
    return numbers


async def test_a_stream_that_speaks_both_ways_is_pinged_every_sixth_beat(world: World) -> None:
    wire = await world.open()
    pings = []
    for _ in range(12):
        if numbers := await _talk(world, wire, 1):
            pings += numbers
            await wire.say(pong=gateway_pb2.Pong(number=numbers[0]))
        else:
            pings.append(0)
    assert pings == [1, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]  # the second tells the round trip that the first one took
    assert wire.nodes.alive  # beats that ping nobody are signs of life too


async def test_one_that_only_sends_is_pinged_at_each_beat(world: World) -> None:
    wire = await world.open()
    await world.beats(wire, 1, answer=True)
    for number in (2, 3, 4):
        await wire.raw(gateway_pb2.NodeFrame(telemetry=b"batch"))
        assert [control.ping.number for control in await world.beats(wire, 1, answer=True)] == [number]


async def test_a_node_that_sends_telemetry_but_answers_no_ping_is_ended(world: World) -> None:
    wire = await world.open()
    await world.beats(wire, 1, answer=True)
    assert await _talk(world, wire, 4) == [2, 3, 4, 5]
    await _talk(world, wire, 1)
    assert (await wire.wait_refusal()).reason is Reason.HEARTBEAT_LOST


async def test_a_stream_that_is_held_back_by_the_database_is_not_taken_for_dead(world: World) -> None:
    wire = await world.open()
    away = Refusal(Reason.UNAVAILABLE, "away")
    wire.commands.away = [away] * 8
    report = command_pb2.Report(report_no=1, monotonic_seq=1, command_id=bytes(16), output=bytes(MAX_WAITING_BYTES))
    await wire.say(reports=command_pb2.ReportList(reports=[report]))
    assert wire.stream.held_back
    await world.beats(wire, 6, answer=True)  # the node answers, and nobody reads it
    assert not wire.stream.ended
    await world.beats(wire, 12, answer=True)
    assert not wire.stream.held_back
    assert wire.commands.recorded
    assert not wire.stream.ended


async def test_a_session_is_renewed_in_time_or_ends(world: World, clock: MockClock) -> None:
    wire = await world.open()
    await clock.advance(601)
    world.registry.beat()
    await wire.settle()
    assert [c.WhichOneof("body") for c in wire.heard()] == ["ping", "reauth"]
    await wire.say(pong=gateway_pb2.Pong(number=1))
    await clock.advance(300)
    world.registry.beat()
    assert (await wire.wait_refusal()).reason is Reason.SESSION_EXPIRED


async def test_a_takeover_lets_the_older_stream_say_goodbye(world: World) -> None:
    older = await world.open(epoch=1)
    newer = await world.open(epoch=2, takeover_of="n-1")
    assert not older.stream.ended
    await older.say(goodbye=gateway_pb2.Goodbye(reason="TAKEOVER"))
    await asyncio.wait_for(older.running, 5)
    assert not newer.stream.ended
    assert len(world.registry) == 1


async def test_a_journal_is_compared_by_the_first_stream_that_can(world: World) -> None:
    """The first stream of a restored node was overtaken before the database answered it."""
    away = Refusal(Reason.UNAVAILABLE, "the database does not answer")
    first = await world.open("n", 1, "", away, away)
    second = await world.open("n", 2, "n-1", away)
    third = await world.open("n", 3, "n-1")  # the second one's welcome never arrived
    assert (first.commands.reconciled, second.commands.reconciled) == ([], [])
    assert third.commands.reconciled == [False]
    fourth = await world.open("n", 4, "n-3")
    assert fourth.commands.reconciled == [True]
    again = await world.open("n", 5)
    assert again.commands.reconciled == [False]


async def test_a_takeover_from_another_replica_is_trusted(world: World) -> None:
    newer = await world.open("n", 2, "elsewhere")
    assert newer.commands.reconciled == [True]


async def test_a_half_open_stream_is_ended_when_the_node_comes_back(world: World) -> None:
    older = await world.open(epoch=1)
    newer = await world.open(epoch=2)
    assert (await older.wait_refusal()).reason is Reason.SUPERSEDED
    assert older.heard()[0].goaway.reason == gateway_pb2.GOAWAY_REASON_SUPERSEDED
    assert not newer.stream.ended


async def test_the_end_of_an_older_stream_does_not_deafen_the_newest(world: World) -> None:
    await world.open(epoch=1)
    newer = await world.open(epoch=2)
    woken: list[int] = []
    newer.stream.commands.wake = lambda: woken.append(1)  # type: ignore[method-assign]
    await newer.settle()
    newer.nodes.row.state = "REVOKED"
    world.wakeup.wake_nowait(["node-state:n"])
    assert (await newer.wait_refusal()).reason is Reason.REVOKED
    assert len(world.registry) == 0
    assert world.registry.lane("n") is None


async def test_what_an_operator_decides_reaches_an_overtaken_stream_too(world: World) -> None:
    older = await world.open(epoch=1)
    newer = await world.open(epoch=2, takeover_of="n-1")
    for wire in (older, newer):
        wire.nodes.row.state = "SUSPENDED"
    world.wakeup.wake_nowait(["node-state:n"])
    for wire in (older, newer):
        assert (await wire.wait_refusal()).reason is Reason.SUSPENDED


async def test_a_full_replica_sends_nodes_to_another_one(clock: MockClock) -> None:
    world = World(clock, max_streams=2)
    await world.open()
    world.registry.check_room()
    with pytest.raises(Refusal) as caught:
        world.registry.check_room(expected=1)
    endpoints = ("here:7443", "there:7443")
    assert other_endpoints(caught.value, endpoints, "here:7443") == ("there:7443",)
    await world.open("m")
    with pytest.raises(Refusal):
        world.registry.check_room()


async def test_after_an_absence_the_streams_whose_nodes_went_elsewhere_end(world: World) -> None:
    gone, stays = await world.open("gone", 1), await world.open("stays", 4)
    gone.nodes.row.stream_epoch, gone.nodes.row.stream_id = 2, "elsewhere"

    async def newest(node_ids: Sequence[str]) -> dict[str, int]:
        assert sorted(node_ids) == ["gone", "stays"]
        return {"gone": 2, "stays": 4}

    await world.registry.leave_overtaken(newest)
    assert (await gone.wait_refusal()).reason is Reason.SUPERSEDED
    assert not stays.running.done()
