"""Decisions that another replica makes reach the streams that live here, over both databases."""

import asyncio

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.nodes.test_service import make, open_stream
from tests.unit.fleet_server.sessions.world import World


async def another(world: World) -> tuple[World, list[str]]:
    """A second replica on the same database, and the nodes that its streams are woken for."""
    other = World(world.database, world.clock, replica_id="r2")
    await other.trust.load()
    woken: list[str] = []
    other.wakeup.subscribe_kind("node-state", woken.append)
    await other.nodes._poll.poll()
    woken.clear()
    return other, woken


async def test_a_decision_made_elsewhere_is_found_once(world: World) -> None:
    node, _ = await make(world, "press-1"), await make(world, "press-2")
    other, woken = await another(world)

    await world.nodes.set_state("ada", ["press-1"], "SUSPENDED", "odd readings")
    before = other.nodes.decisions
    await other.nodes._poll.poll()
    assert woken == [node.node_id]
    assert other.nodes.decisions > before

    await other.nodes._poll.poll()
    assert woken == [node.node_id]


async def test_two_decisions_in_one_millisecond_are_two(world: World) -> None:
    node = await make(world, "press-1")
    other, woken = await another(world)
    for state in ("SUSPENDED", "ACTIVE", "SUSPENDED"):
        await world.nodes.set_state("ada", ["press-1"], state, "back and forth")
        await other.nodes._poll.poll()
    assert woken == [node.node_id] * 3


async def test_drains_and_labels_are_decisions_and_what_streams_do_is_none(world: World) -> None:
    node = await make(world, "press-1")
    other, woken = await another(world)
    await open_stream(world, node.node_id)
    await world.nodes.close_stream(node.node_id, 1)
    await other.nodes._poll.poll()
    assert woken == []
    await world.nodes.request_drain("ada", ["press-1"], 0, "maintenance")
    await other.nodes._poll.poll()
    await world.nodes.label("ada", ["press-1"], {"rack": "4"}, [])
    await other.nodes._poll.poll()
    assert woken == [node.node_id] * 2


async def test_a_replica_whose_clock_is_behind_is_heard(world: World, clock: MockClock, database: Database) -> None:
    node, quiet = await make(world, "press-1"), await make(world, "press-2")
    other, woken = await another(world)
    await world.nodes.set_state("ada", ["press-2"], "SUSPENDED", "first")
    await other.nodes._poll.poll()
    behind = World(database, MockClock(clock.now_ms() - 20_000), replica_id="r3")
    await behind.trust.load()
    await behind.nodes.set_state("ada", ["press-1"], "SUSPENDED", "second")
    await other.nodes._poll.poll()
    assert woken == [quiet.node_id, node.node_id]


async def test_it_goes_on_by_itself(world: World, clock: MockClock) -> None:
    node = await make(world, "press-1")
    other, woken = await another(world)
    polling = asyncio.create_task(other.nodes.run_decisions())
    await world.nodes.set_state("ada", ["press-1"], "REVOKED", "stolen")
    while not woken:
        await clock.advance(0.5)
        await asyncio.sleep(0)
    assert woken == [node.node_id]
    polling.cancel()
