"""Each replica ends what only time ends; who comes second to a row passes it over instead of waiting."""

import asyncio

import pytest

from fleet.v1 import command_pb2 as wire
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order


async def test_a_sweep_passes_over_what_another_one_is_at(
    room: Room, clock: MockClock, request: pytest.FixtureRequest
) -> None:
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    node, other = await room.add_node("n1"), await room.add_node("n2")
    for name in ("n1", "n2"):
        await room.commands.issue("alice", order(name, ttl_s=5))
    await clock.advance(6)
    with room.database.writer._engine.connect() as holding:
        held = "SELECT 1 FROM commands WHERE node_id = %s FOR UPDATE"
        holding.exec_driver_sql(held, (node.node_id,)).all()
        await room.commands.sweep()
        assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_QUEUED
        assert await room.state(other.node_id, 1) == wire.COMMAND_STATE_EXPIRED
    await room.commands.sweep()
    assert await room.state(node.node_id, 1) == wire.COMMAND_STATE_EXPIRED


async def test_rows_that_somebody_holds_among_the_first_keep_up_none_of_those_behind_them(
    room: Room, clock: MockClock, request: pytest.FixtureRequest
) -> None:
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    for name in ("n1", "n2"):
        await room.add_node(name)
    await room.commands.issue("alice", order("*", count=600, ttl_s=5))
    await clock.advance(6)
    with room.database.writer._engine.connect() as holding:
        holding.exec_driver_sql("SELECT 1 FROM commands WHERE seq = 1 FOR UPDATE").all()
        await room.commands.sweep()
        left = await room.query("SELECT seq FROM commands WHERE state < 5")
        assert left == [(1,), (1,)]


async def test_two_that_sweep_at_once_end_each_command_once(room: Room, clock: MockClock) -> None:
    for number in range(5):
        await room.add_node(f"n{number}")
    issued = await room.commands.issue("alice", order("*", count=20, ttl_s=5))
    await clock.advance(6)
    replicas = (room.commands, room.another_replica())
    await asyncio.gather(*(each.sweep() for each in replicas))
    assert {view.state for view in await room.views(issued.issue_id)} == {wire.COMMAND_STATE_EXPIRED}
    told = [seq for row in await room.audited("command.expired") for seqs in row["seqs"].values() for seq in seqs]
    assert len(told) == 100
