"""Telemetry of a node that changes its replica: what comes on a stream that is not its newest is not stored."""

from fleet_server.telemetry import stream
from tests.unit.fleet_server.telemetry.room import TelemetryRoom, batch, service


async def test_what_an_overtaken_stream_brings_is_not_stored_and_harms_nobody_else(room: TelemetryRoom) -> None:
    moved, stays, now = await room.add_node("moved"), await room.add_node("stays"), room.clock.now_ms()
    older = room.open_stream(moved, await room.neighbours.open_stream(moved))
    other = room.open_stream(stays)
    older.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()
    await room.neighbours.open_stream(moved)  # at another replica
    older.ingest_nowait(batch(2, now - 10, [(0, 0, 2.0), (1, 0, 2.0)], ["mem"], first=1))
    other.ingest_nowait(batch(1, now - 10, [(0, 0, 7.0)], ["cpu"]))
    await room.telemetry.flush()
    assert room.acks == {moved: [1], stays: [1]}
    assert await room.values() == {("moved", "cpu"): 1.0, ("stays", "cpu"): 7.0}
    assert await room.history("moved") == {"cpu": [(now - 20, 1.0)]}
    older.ingest_nowait(batch(3, now - 5, [(0, 0, 3.0)]))  # nor is anything taken any more
    await room.telemetry.flush()
    assert room.acks[moved] == [1]


async def test_what_it_brought_holds_no_memory(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    older = room.open_stream(node, await room.neighbours.open_stream(node))
    await room.neighbours.open_stream(node)
    frame = batch(1, now - 20, [(0, 0, 1.0)], ["cpu"])
    older.ingest_nowait(frame)
    await room.telemetry.flush()
    newer = room.open_stream(node, 2)
    room_left = stream.MAX_HELD_BYTES - room.telemetry._intake.held_bytes
    assert room_left == stream.MAX_HELD_BYTES
    newer.ingest_nowait(frame)
    await room.telemetry.flush()
    assert room.acks[node] == [1]


async def test_of_two_streams_at_one_replica_the_newer_one_counts(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    older = room.open_stream(node, await room.neighbours.open_stream(node))
    newer = room.open_stream(node, await room.neighbours.open_stream(node))
    older.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    newer.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["mem"]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "mem"): 1.0}


async def test_a_node_that_comes_back_is_read_again_for_another_replica_wrote_meanwhile(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    elsewhere = service(room.neighbours)
    for epoch, at, seen in ((1, room.telemetry, "cpu"), (2, elsewhere, "mem"), (3, room.telemetry, "disk")):
        assert await room.neighbours.open_stream(node) == epoch
        opened = at.open_stream(node, epoch, lambda _: None)
        opened.ingest_nowait(batch(epoch, now - 30 + epoch, [(0, 0, float(epoch))], [seen]))
        await at.flush()
    elsewhere.close()
    assert await room.values() == {("n1", "cpu"): 1.0, ("n1", "mem"): 2.0, ("n1", "disk"): 3.0}
    assert set(await room.history("n1")) == {"cpu", "mem", "disk"}
    assert await room.neighbours.database.read(_last_batch) == 3


async def test_series_that_another_replica_numbered_since_they_were_read_are_numbered_anew(
    room: TelemetryRoom,
) -> None:
    """What it wrote was under way when the node opened its stream here."""
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()
    await room.neighbours.tamper(
        "INSERT INTO telemetry_series (node_id, series_no, name, labels, kind, unit)"
        " VALUES (?, 1, 'other', '{}', 1, '')",
        node,
    )
    opened.ingest_nowait(batch(2, now - 10, [(1, 0, 2.0)], ["mem"], first=1))
    await room.telemetry.flush()
    assert room.acks[node] == [1, 2]
    assert await room.values() == {("n1", "cpu"): 1.0, ("n1", "mem"): 2.0}
    assert (await room.history("n1"))["mem"] == [(now - 10, 2.0)]


def _last_batch(conn: object) -> int:
    found = conn.exec_driver_sql("SELECT last_batch_seq FROM telemetry_latest").first()  # type: ignore[attr-defined]
    return int(found[0])
