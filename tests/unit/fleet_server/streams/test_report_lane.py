"""Reports that wait for the database: bounded for each stream and over all of them, and nobody waits for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import command_pb2
from fleet_server.streams.report_lane import HeldReports, ReportLane
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import FakeCommands, Wire

KIB = 1024


@pytest.fixture
def held() -> HeldReports:
    return HeldReports(100 * KIB)


def away() -> Refusal:
    return Refusal(Reason.UNAVAILABLE, "away")


def reports(number: int, output_bytes: int = 0) -> command_pb2.ReportList:
    report = command_pb2.Report(
        report_no=number, monotonic_seq=number, command_id=bytes(16), output=bytes(output_bytes)
    )
    return command_pb2.ReportList(reports=[report])


class Lane:
    """A lane of its own node, and what became of its reports."""

    def __init__(self, clock: MockClock, held: HeldReports, *answers: Refusal) -> None:
        self.commands = FakeCommands(away=list(answers))
        self.acked: list[int] = []
        self.failures: list[Exception] = []
        self.lane = ReportLane(
            node_id="n",
            commands=self.commands,  # type: ignore[arg-type]
            clock=clock,
            held=held,
            ack=self.acked.append,
            failed=self.failures.append,
        )

    def put(self, number: int, size_bytes: int) -> None:
        self.lane.put(reports(number), size_bytes)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_past_the_bound_whoever_holds_most_waits_and_the_others_go_on(
    clock: MockClock, held: HeldReports
) -> None:
    greedy, modest = (Lane(clock, held, away()) for _ in range(2))
    greedy.put(1, 90 * KIB)
    modest.put(1, 9 * KIB)
    await settle()
    assert not greedy.lane.full
    modest.put(2, 1 * KIB)
    assert greedy.lane.full
    assert not modest.lane.full
    modest.put(3, 40 * KIB)  # its even share
    assert modest.lane.full
    newcomer = Lane(clock, held, away())
    newcomer.put(1, 1 * KIB)
    assert not newcomer.lane.full


async def test_who_waited_goes_on_once_its_own_are_recorded(clock: MockClock, held: HeldReports) -> None:
    first, second = Lane(clock, held, away()), Lane(clock, held, *[away()] * 30)
    first.put(1, 60 * KIB)
    second.put(1, 60 * KIB)
    waiting = asyncio.create_task(first.lane.wait_room())
    await settle()
    assert not waiting.done()
    await clock.advance(0.1)
    await settle()
    assert waiting.done()
    assert first.acked == [1]
    assert (held.held_bytes, held.holders) == (60 * KIB, 1)


async def test_a_lane_that_cannot_record_gives_back_what_it_held(clock: MockClock, held: HeldReports) -> None:
    lane = Lane(clock, held, Refusal(Reason.INTERNAL, "a bug"))
    lane.put(1, 200 * KIB)
    waiting = asyncio.create_task(lane.lane.wait_room())
    await settle()
    assert waiting.done()
    assert len(lane.failures) == 1
    lane.put(2, 200 * KIB)
    assert (held.held_bytes, held.holders) == (0, 0)
    assert lane.acked == []


@asynccontextmanager
async def wires(clock: MockClock, held: HeldReports, count: int) -> AsyncIterator[list[Wire]]:
    opened = [Wire(clock, node_id=f"n{number}", held_reports=held) for number in range(count)]
    for wire in opened:
        wire.commands.away = [away()]
    yield opened
    for wire in opened:
        wire.stream.end(None)
        await wire.raw(None)
        await asyncio.wait_for(wire.running, 5)


async def test_streams_that_send_while_the_database_is_away_are_read_up_to_a_bound_and_lose_nothing(
    clock: MockClock, held: HeldReports
) -> None:
    async with wires(clock, held, 10) as opened:
        for number in range(1, 21):
            for wire in opened:
                await wire.say(reports=reports(number, 8 * KIB))
        assert 100 * KIB <= held.held_bytes <= 2 * 100 * KIB + 10 * 9 * KIB
        assert all(wire.transport.incoming.qsize() > 10 for wire in opened)
        for _ in range(30):
            await clock.advance(0.1)
            for wire in opened:
                await wire.settle()
        for wire in opened:
            told = [report.report_no for batch in wire.commands.recorded for report in batch]
            assert told == list(range(1, 21))
        assert (held.held_bytes, held.holders) == (0, 0)
