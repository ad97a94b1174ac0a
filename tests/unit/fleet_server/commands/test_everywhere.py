"""Who watches every command, and what other replicas record meanwhile."""

import asyncio
from typing import Any
from unittest.mock import MagicMock

from fleet_server.commands import history_store, rules
from fleet_server.commands.everywhere import Everywhere, _Found
from fleet_server.commands.feed import ChangeFeed
from fleet_server.commands.history_store import FoundRow
from tests.fakes.clock import MockClock


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
    sent_since = _Found([FoundRow("n1", 1, rules.SENT, history_store.mark(rules.SENT, ""))], {}, [])
    reads[0].set_result(_Found([], {}, []))
    reads[1].set_result(sent_since)
    await asyncio.gather(*both)
    looking = asyncio.ensure_future(everywhere.look(rooms, feed))
    await asyncio.sleep(0)
    reads[2].set_result(sent_since)
    await looking
    assert watcher.take() == ({("n1", 1): None}, False)
