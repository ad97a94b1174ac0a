"""A replica whose clock is wrong ends nothing, and forgets nothing, that is not past by the database's clock."""

from fleet.v1 import command_pb2 as wire
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order, pruned, report


async def test_one_that_is_an_hour_ahead_expires_nobodys_commands(room: Room, clock: MockClock) -> None:
    room.database.clock.note(clock.now_ms(), clock.monotonic(), clock)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1", ttl_s=10))
    await room.commands.issue("alice", order("n1", ttl_s=60))
    clock.step_wall(3600)
    await room.commands.sweep()
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_QUEUED
    assert [each.seq for each in await room.claim(node.node_id, limit=1)] == [1], "nor does it when it is to send them"
    await clock.advance(61)
    await room.commands.sweep()
    assert await room.state(node.node_id, 2) == wire.COMMAND_STATE_EXPIRED


async def test_one_that_is_a_month_ahead_forgets_nothing(room: Room, clock: MockClock) -> None:
    room.database.clock.note(clock.now_ms(), clock.monotonic(), clock)
    node = await room.add_node("n1")
    await room.open_stream(node.node_id)
    await room.commands.issue("alice", order("n1"))
    claimed = await room.claim(node.node_id)
    await room.commands.record_reports(node.node_id, [report(claimed[0], wire.COMMAND_STATE_SUCCEEDED)])
    clock.step_wall(400 * 86_400)
    assert await pruned(room, clock) == 0
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_SUCCEEDED
