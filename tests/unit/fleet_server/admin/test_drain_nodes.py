"""A drain of nodes as an operator follows it."""

import asyncio
from unittest.mock import AsyncMock, MagicMock

import pytest

from fleet.v1 import admin_pb2
from fleet_server.admin import nodes as nodes_api
from fleet_server.admin.access import Caller
from fleet_server.admin.nodes import NodesApi
from fleet_server.admin.rules import Role
from fleet_server.database.engine import Database
from fleet_server.nodes import selectors
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.nodes.test_service import make
from tests.unit.fleet_server.sessions.world import World


async def test_more_nodes_than_a_selector_may_name_are_followed_to_the_end(
    database: Database, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await World(database, clock).start()
    ids = [(await make(world, f"n-{number}")).node_id for number in range(5)]
    monkeypatch.setattr(selectors, "MAX_PATTERNS", 2)
    monkeypatch.setattr(nodes_api, "_WATCH_PAGE", 2)
    api = NodesApi(world.nodes, MagicMock(), MagicMock(), world.wakeup, clock, AsyncMock())
    request = admin_pb2.DrainNodesRequest(selector=admin_pb2.Selector(patterns=["*"]))
    draining = api.drain(Caller("alice", Role.OPERATOR), request)
    first = await anext(draining)
    assert (len(first.nodes), first.nodes_left, first.done) == (5, 5, False)
    for node_id in ids:
        await world.nodes.mark_drained(node_id, 0)
    rest = asyncio.ensure_future(anext(draining))
    await clock.wait_sleepers(1)
    await clock.advance(2.0)
    last = await asyncio.wait_for(rest, 10)
    assert (len(last.nodes), last.nodes_left, last.done) == (5, 0, True)
