"""A light node judges what it is sent as a whole node does, runs it once, and goes on telling until it is heard."""

from types import SimpleNamespace
from typing import cast

import pytest

from fleet.clock import ServerTime, SystemClock
from fleet.envelope import Signer
from fleet.sequence import StreamContext
from fleet.v1 import command_pb2, gateway_pb2
from fleet_node.drivers.registry import DriverRegistry
from tests.load.micro_node_commands import _BINDING, Wakes, statements
from tests.load.product.idle_links import Member
from tests.load.product.leaks import slope
from tests.load.product.light_commands import LightCommands, Tally, _Stream
from tests.load.product.postgres import Work, per_command
from tests.unit.fleet_node.commands.node import CLUSTER, NODE, FixedTrust


class _Light:
    """A room of one node, and the server's side of its streams."""

    def __init__(self) -> None:
        clock = SystemClock()
        server_time = ServerTime(clock)
        server_time.observe(clock.now_ms())
        self.signer, self.tally = Signer.generate(), Tally()
        member = SimpleNamespace(
            server_time=server_time,
            trust=FixedTrust(self.signer, Signer.generate(), clock.now_ms()),
            membership=SimpleNamespace(site=""),
        )
        drivers = DriverRegistry.load(("simulated",), {})
        self.room = LightCommands(cast(Member, member), drivers, self.tally)

    def open(self) -> _Stream:
        return self.room.opened(StreamContext(CLUSTER, NODE, _BINDING), gateway_pb2.Welcome(), Wakes())


def told(stream: _Stream) -> list[tuple[int, int]]:
    reports = map(command_pb2.Report.FromString, stream.next_reports())
    return [(report.report_no, report.monotonic_seq) for report in reports]


@pytest.fixture
def light() -> _Light:
    return _Light()


async def test_commands_run_once_and_are_told_until_they_are_acknowledged(light: _Light) -> None:
    frames, first = statements(light.signer, 4, 2), light.open()
    for frame in (*frames, frames[0]):  # the last one is sent again
        await first.command_frame(frame)
    assert told(first) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 2)]
    assert told(first) == []
    light.room.acked(3)
    second = light.open()
    assert light.room.hello().last_accepted_seq == 4
    assert told(first) == []
    assert told(second) == [(4, 4), (5, 1), (6, 2)]
    assert (light.tally.ran, light.tally.ran_twice, light.tally.acknowledged) == (4, 0, 3)


async def test_what_others_signed_or_an_older_stream_brings_does_not_run(light: _Light) -> None:
    older, newer = light.open(), light.open()
    await newer.command_frame(statements(Signer.generate(), 1, 1)[0])
    await older.command_frame(statements(light.signer, 1, 1)[0])
    assert light.tally.ran == 0
    assert sum(light.tally.refused.values()) == 1


def test_what_a_database_did_is_told_for_each_command() -> None:
    before, after = Work(0, 0, 0, 0, 0, 0, 0), Work(10, 100, 200, 4000, 100, 25, 0.5)
    figures = per_command(before, after, 100)
    assert figures["commits_per_command"] == 0.1
    assert figures["wal_bytes_per_command"] == 40
    assert figures["hot_update_share"] == 0.25


def test_a_slope_is_told_where_there_is_one() -> None:
    assert slope([1, 2, 3], [10, 20, 30]) == pytest.approx(10)
    assert slope([1, 1], [10, 20]) == 0
