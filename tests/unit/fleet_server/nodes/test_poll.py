"""Decisions that another replica makes reach the streams that live here, over both databases."""

import asyncio

import pytest

from fleet_server.database.engine import Connection, Database
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


@pytest.mark.parametrize("behind_s", [-3600, 3600], ids=["ahead", "behind"])
async def test_the_clocks_of_replicas_do_not_matter(
    world: World, clock: MockClock, database: Database, behind_s: int
) -> None:
    """An hour apart, from the first decision on, and after each of the two has decided."""
    nodes = [await make(world, f"press-{number}") for number in range(3)]
    far = World(database, MockClock(clock.now_ms() - behind_s * 1000), replica_id="r3")
    await far.trust.load()
    heard: dict[str, list[str]] = {}
    for at in (world, far):
        heard[at.nodes._replica_id] = woken = []
        await at.nodes._poll.poll()
        at.wakeup.subscribe_kind("node-state", woken.append)
    for decides, hears, node in ((far, world, nodes[0]), (world, far, nodes[1]), (far, world, nodes[2])):
        await hears.nodes._poll.poll()  # of its own
        heard[hears.nodes._replica_id].clear()
        await decides.nodes.set_state("ada", [node.name], "SUSPENDED", "odd readings")
        await hears.nodes._poll.poll()
        assert heard[hears.nodes._replica_id] == [node.node_id]


async def test_what_was_decided_about_many_is_not_read_for_ever(world: World, clock: MockClock) -> None:
    for number in range(20):
        await make(world, f"press-{number}")
    other, woken = await another(world)
    await world.nodes.set_state("ada", ["*"], "SUSPENDED", "all of them")
    read: list[int] = []
    store, decided_since = other.nodes._store, other.nodes._store.decided_since

    def counted(conn: Connection, since_ms: int) -> list[tuple[str, int]]:
        found = decided_since(conn, since_ms)
        read.append(len(found))
        return found

    store.decided_since = counted  # type: ignore[method-assign]
    for _ in range(200):
        await other.nodes._poll.poll()
        await clock.advance(0.5)
    assert (read[0], read[-1], len(woken)) == (20, 0, 20)


async def test_one_that_began_before_and_was_committed_later_is_heard(world: World, clock: MockClock) -> None:
    """Its number is below one that was seen already: a transaction took long, as at most half a minute."""
    first, second = await make(world, "press-1"), await make(world, "press-2")
    other, woken = await another(world)
    await clock.advance(100)
    await other.nodes._poll.poll()
    began_ms = clock.now_ms()
    await clock.advance(25)
    await world.nodes.set_state("ada", ["press-1"], "SUSPENDED", "quick")
    for _ in range(8):
        await other.nodes._poll.poll()
        await clock.advance(0.5)
    await world.database.write(lambda tx: world.nodes._store.note_decided(tx.conn, [second.node_id], began_ms))
    await world.execute("UPDATE nodes SET decided_at_ms = ? WHERE node_id = ?", began_ms, second.node_id)
    await other.nodes._poll.poll()
    assert woken == [first.node_id, second.node_id]
