"""Who watches every command, and what other replicas record meanwhile."""

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from fleet_server.commands import everywhere as everywhere_module
from fleet_server.commands import history_store, rules
from fleet_server.commands.everywhere import Everywhere, _Found
from fleet_server.commands.feed import ChangeFeed
from fleet_server.commands.history_store import FoundRow
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, order


async def test_of_two_that_begin_at_once_the_second_takes_nothing_from_the_first(clock: MockClock) -> None:
    everywhere, feed = Everywhere(), ChangeFeed()
    watcher = feed.subscribe("")
    reads: list[asyncio.Future[Any]] = []

    def read(_: object) -> asyncio.Future[Any]:
        reads.append(asyncio.get_running_loop().create_future())
        return reads[-1]

    rooms = MagicMock(clock=clock)
    rooms.database.read = read
    both = [asyncio.ensure_future(everywhere.begin(rooms)) for _ in range(2)]
    await asyncio.sleep(0)
    sent_since = _Found([FoundRow("n1", 1, rules.SENT, history_store.mark(rules.SENT, ""), 1)], {}, [])
    reads[0].set_result(_Found([], {}, []))
    reads[1].set_result(sent_since)
    await asyncio.gather(*both)
    looking = asyncio.ensure_future(everywhere.look(rooms, feed))
    await asyncio.sleep(0)
    reads[2].set_result(sent_since)
    await looking
    assert watcher.take() == ({("n1", 1): None}, False)


async def test_past_the_bound_an_end_is_told_of_what_was_followed_and_nothing_is_kept_of_the_rest(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of many are read is always the same, or each round would tell of others that had not moved."""
    monkeypatch.setattr(everywhere_module, "_MAX_OPEN", 3)
    everywhere, feed = Everywhere(), ChangeFeed()
    watcher = feed.subscribe("")
    rows = [FoundRow(f"n{no}", 1, rules.SENT, history_store.mark(rules.SENT, ""), 10 * no) for no in range(1, 6)]
    found: list[FoundRow] = []

    async def read(_: object) -> _Found:
        return _Found(list(found), {}, [])

    async def look(*open_rows: FoundRow) -> list[str]:
        found[:] = open_rows
        await everywhere.look(rooms, feed)
        return sorted(node_id for node_id, _ in watcher.take()[0])

    rooms = MagicMock(clock=clock)
    rooms.database.read = read
    found[:] = rows[:3]
    await everywhere.begin(rooms)
    everywhere.note(("n9", 1), rules.SENT)
    assert await look(*rows[:3]) == []
    assert await look(rows[0], rows[2], rows[3]) == ["n2", "n4"], "one has ended, and one that is open is followed now"
    before = rows[0]._replace(node_id="n0", not_after_ms=1)
    assert await look(before, rows[0], rows[2]) == ["n0"], "another one is not followed any more, and has not ended"
    everywhere.note(("n3", 1), rules.ACCEPTED)
    assert everywhere._told is not None
    assert everywhere._told.keys() == {("n0", 1), ("n1", 1), ("n3", 1)}
    assert await look(rows[0]) == ["n0", "n3"], "below the bound whatever is not there has ended"
    assert everywhere._told.keys() == {("n1", 1)}


async def test_of_many_open_commands_those_are_read_whose_time_passes_first(room: Room) -> None:
    for name in ("n2", "n1"):
        await room.add_node(name)
    for ttl_s in (300, 100, 200):
        await room.commands.issue("alice", order("*", ttl_s=ttl_s))
    found = await room.database.read(lambda conn: history_store.found_open(conn, 3))
    nodes = sorted(node_id for (node_id,) in await room.query("SELECT node_id FROM nodes"))
    assert [(row.node_id, row.seq) for row in found] == [(nodes[0], 2), (nodes[1], 2), (nodes[0], 3)]
