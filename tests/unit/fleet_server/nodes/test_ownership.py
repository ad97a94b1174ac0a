"""Two replicas that both take a node for theirs: the one with the newest stream does."""

import pytest

from tests.unit.fleet_server.nodes.test_service import make, open_stream
from tests.unit.fleet_server.sessions.world import World


async def test_signs_of_life_on_an_overtaken_stream_change_nothing_and_have_it_look(world: World) -> None:
    """A replica that stood still, and wakes: the node has long been elsewhere, and may have left there again."""
    moved, stays = await make(world, "moved"), await make(world, "stays")
    for node in (moved, stays):
        await open_stream(world, node.node_id)
        world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=7, clock_offset_ms=7, accepted_seq=7)
    await open_stream(world, moved.node_id, replica_id="r2")
    woken: list[str] = []
    world.wakeup.subscribe_kind("node-state", woken.append)
    assert (await world.node("moved")).rtt_us == 0, "nor does it show them"
    await world.nodes.flush()
    there, here = await world.node("moved"), await world.node("stays")
    assert (there.replica_id, there.online, there.rtt_us, there.last_accepted_seq) == ("r2", True, 0, 0)
    assert (here.replica_id, here.online, here.rtt_us, here.last_accepted_seq) == ("r1", True, 7, 7)
    assert woken == [moved.node_id], "its stream here is told to read the node's row"

    await world.nodes.close_stream(moved.node_id, 2)
    world.nodes.note_alive_nowait(moved.node_id, epoch=1, rtt_us=7, clock_offset_ms=7)
    await world.nodes.flush()
    assert not (await world.node("moved")).online


async def test_of_two_streams_here_the_newer_one_tells(world: World) -> None:
    node = await make(world, "web-1")
    for _ in range(2):
        await open_stream(world, node.node_id)
    world.nodes.note_alive_nowait(node.node_id, epoch=2, rtt_us=2, clock_offset_ms=0)
    world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=1, clock_offset_ms=0)
    assert not await world.nodes.close_stream(node.node_id, 1)
    await world.nodes.flush()
    assert (await world.node("web-1")).rtt_us == 2


async def test_signs_of_life_wait_for_no_row_that_somebody_holds_and_those_come_with_the_next_flush(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Another replica gives an order to a whole fleet: the nodes of this one go on being shown alive."""
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    held, moved, free = [await make(world, name) for name in ("held", "moved", "free")]
    world.nodes.note_alive_nowait("unknown", epoch=1, rtt_us=7, clock_offset_ms=7)
    for node in (held, moved, free):
        await open_stream(world, node.node_id)
        world.nodes.note_alive_nowait(node.node_id, epoch=1, rtt_us=7, clock_offset_ms=7, accepted_seq=7)
    await open_stream(world, moved.node_id, replica_id="r2")
    woken: list[str] = []
    world.wakeup.subscribe_kind("node-state", woken.append)
    with world.database.writer._engine.connect() as issuing:
        world.nodes.take_seqs(issuing, dict.fromkeys([held.node_id, moved.node_id], 1))
        await world.nodes.flush()
        written = [await world.value(f"SELECT rtt_us FROM nodes WHERE name = '{name}'") for name in ("held", "free")]
        assert written == [0, 7]
        assert woken == [moved.node_id], "what is held is not taken for overtaken, and what is overtaken is told"
        world.nodes.note_alive_nowait(held.node_id, epoch=1, rtt_us=8, clock_offset_ms=8)
        await world.nodes.flush()
        assert (await world.node("held")).rtt_us == 8, "the newest sign is kept, and shown here"
    await world.nodes.flush()
    assert await world.value("SELECT rtt_us FROM nodes WHERE name = 'held'") == 8
    assert world.nodes._liveness.take() == {}, "nothing is kept of a node that moved, or that is not there"


async def test_an_issue_to_many_and_a_claim_at_another_replica_do_not_wait_for_each_other(
    world: World, request: pytest.FixtureRequest
) -> None:
    if "sqlite" in request.node.name:
        pytest.skip("SQLite has one writer")
    ids = [(await make(world, f"n-{number}")).node_id for number in range(3)]
    with world.database.writer._engine.connect() as issuing, world.database.writer._engine.connect() as claiming:
        assert world.nodes.take_seqs(issuing, dict.fromkeys(ids, 1))[ids[0]].first == 1
        assert world.nodes.current_epoch(claiming, ids[0], hold=True) == 0
