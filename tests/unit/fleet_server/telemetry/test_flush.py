"""Frames become chunks, acks follow the commit, and nothing is stored twice or acknowledged in vain."""

import asyncio
import math
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import rules, store, stream
from tests.unit.fleet_server.telemetry.room import TelemetryRoom, batch


async def test_frames_of_one_flush_become_one_chunk_and_the_ack_follows(room: TelemetryRoom) -> None:
    node = await room.add_node("n1")
    opened, now = room.open_stream(node), room.clock.now_ms()
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0), (1, 5, 2.0)], ["cpu", "mem"]))
    opened.ingest_nowait(batch(2, now - 10, [(0, 0, 3.0)]))
    assert room.acks[node] == []
    await room.telemetry.flush()
    assert room.acks[node] == [2]
    assert len(await room.neighbours.query("SELECT position FROM telemetry_chunks")) == 1
    assert await room.values() == {("n1", "cpu"): 3.0, ("n1", "mem"): 2.0}
    assert await room.history("n1") == {"cpu": [(now - 20, 1.0), (now - 10, 3.0)], "mem": [(now - 15, 2.0)]}


async def test_what_comes_in_beside_a_flush_waits_for_the_next_one(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    write, beside = room.neighbours.database.write, iter(range(2, 6))

    async def busy(work: Any) -> Any:
        opened.ingest_nowait(batch(next(beside), now - 10, [(0, 0, 3.0)]))
        return await write(work)

    with monkeypatch.context() as patch:
        patch.setattr(room.neighbours.database, "write", busy)
        await room.telemetry.flush()
    assert room.acks[node] == [1]
    await room.telemetry.flush()
    assert room.acks[node] == [1, 2]


async def test_much_that_waits_is_stored_without_waiting_for_the_second(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()
    monkeypatch.setattr(stream, "URGENT_BYTES", 2 * len(batch(2, now, [(0, 0, 1.0)])))
    running = asyncio.ensure_future(room.telemetry.run_flush())
    for number in (2, 4, 6):  # no time passes
        opened.ingest_nowait(batch(number, now - 20 + number, [(0, 0, 1.0)]))
        opened.ingest_nowait(batch(number + 1, now - 19 + number, [(0, 0, 1.0)]))
        async with asyncio.timeout(10):
            while room.acks[node][-1] != number + 1:
                await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])


async def test_the_ack_covers_what_the_node_declares_dropped(room: TelemetryRoom) -> None:
    node = await room.add_node("n1")
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(3, room.clock.now_ms(), [], dropped_through=9, dropped_total=7))
    await room.telemetry.flush()
    assert room.acks[node] == [9]


async def test_a_replay_on_a_new_stream_is_acknowledged_and_not_stored_again(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    frame = batch(1, now - 20, [(0, 0, 1.0)], ["cpu"])
    room.open_stream(node).ingest_nowait(frame)
    await room.telemetry.flush()
    room.restart()
    again = room.open_stream(node)
    again.ingest_nowait(frame)
    again.ingest_nowait(batch(2, now - 10, [(0, 0, 2.0)]))
    await room.telemetry.flush()
    assert room.acks[node] == [1, 2]
    assert await room.history("n1") == {"cpu": [(now - 20, 1.0), (now - 10, 2.0)]}


async def test_a_node_that_lost_its_spool_counts_from_one_again_and_is_heard(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    room.open_stream(node).ingest_nowait(batch(500, now - 20, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()
    room.open_stream(node).ingest_nowait(batch(1, now - 5, [(0, 0, 7.0)], ["cpu"]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "cpu"): 7.0}


async def test_a_new_stream_may_number_its_series_otherwise(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    room.open_stream(node).ingest_nowait(batch(1, now - 20, [(0, 0, 1.0), (1, 0, 2.0)], ["cpu", "mem"]))
    await room.telemetry.flush()
    room.open_stream(node).ingest_nowait(
        batch(2, now - 10, [(0, 0, 20.0), (1, 0, 5.0), (2, 0, 10.0)], ["mem", "disk", "cpu"])
    )
    await room.telemetry.flush()
    assert await room.values() == {("n1", "cpu"): 10.0, ("n1", "mem"): 20.0, ("n1", "disk"): 5.0}
    numbers = await room.neighbours.query("SELECT name, series_no FROM telemetry_series ORDER BY series_no")
    assert numbers == [("cpu", 0), ("mem", 1), ("disk", 2)]


async def test_while_the_database_is_away_frames_are_held_and_not_acknowledged(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))

    async def away(*_: object) -> None:
        raise Refusal(Reason.UNAVAILABLE, "away")

    with monkeypatch.context() as patch:
        patch.setattr(room.neighbours.database, "write", away)
        for number in range(2, 5):
            with pytest.raises(Refusal):
                await room.telemetry.flush()
            opened.ingest_nowait(batch(number, now - 20 + number, [(0, 0, float(number))]))
        assert room.acks[node] == []
    await room.telemetry.flush()
    assert room.acks[node][-1] == 4
    assert [value for _, value in (await room.history("n1"))["cpu"]] == [1.0, 2.0, 3.0, 4.0]


async def test_past_the_bound_frames_stay_in_the_nodes_spool_and_no_ack_covers_the_gap(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    first = batch(1, now - 20, [(0, 0, 1.0)], ["cpu"])
    monkeypatch.setattr(stream, "MAX_HELD_BYTES_PER_STREAM", len(first) + 1)
    opened = room.open_stream(node)
    opened.ingest_nowait(first)
    opened.ingest_nowait(batch(2, now - 10, [(0, 0, 2.0)]))
    opened.ingest_nowait(batch(3, now - 9, [(0, 0, 3.0)]))
    await room.telemetry.flush()
    assert room.acks[node] == [1]
    with pytest.raises(Refusal) as refused:
        opened.ingest_nowait(batch(4, now - 8, [(0, 0, 4.0)]))
    assert refused.value.reason == Reason.OVERLOADED
    again = room.open_stream(node)
    again.ingest_nowait(batch(2, now - 10, [(0, 0, 2.0)], ["cpu"]))
    await room.telemetry.flush()
    assert room.acks[node] == [1, 2]


async def test_rows_that_cannot_be_stored_end_in_a_new_stream_not_in_a_loop(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()

    def unfit(*_: object) -> None:
        raise ValueError("no such row")

    with monkeypatch.context() as patched:
        patched.setattr(store, "insert_chunks", unfit)
        opened.ingest_nowait(batch(2, now - 10, [(1, 0, 2.0)], ["mem"], first=1))
        await room.telemetry.flush()
    assert room.acks[node] == [1]
    with pytest.raises(Refusal):
        opened.ingest_nowait(batch(3, now - 9, [(1, 0, 3.0)]))
    again = room.open_stream(node)
    again.ingest_nowait(batch(2, now - 10, [(1, 0, 2.0)], ["cpu", "mem"]))
    await room.telemetry.flush()
    assert await room.values("mem") == {("n1", "mem"): 2.0}


async def test_series_past_the_cap_of_a_node_are_left_out_and_counted(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_SERIES_PER_NODE", 2)
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0), (1, 0, 2.0), (2, 0, 3.0)], ["a", "b", "c"]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "a"): 1.0, ("n1", "b"): 2.0}
    assert await room.history("n1") == {"a": [(now - 20, 1.0)], "b": [(now - 20, 2.0)]}
    assert room.acks[node] == [1]


async def test_series_that_were_not_seen_for_long_make_room_for_others(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_SERIES_PER_NODE", 3)
    node = await room.add_node("n1")
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, room.clock.now_ms(), [(0, 0, 1.0), (1, 0, 2.0), (2, 0, 3.0)], ["cpu", "p1", "p2"]))
    await room.telemetry.flush()
    seq, number = 1, 3
    for hour in range(1, 7):  # a process comes and goes each hour; cpu goes on; p1 comes back after four hours
        await room.clock.advance(3600)
        samples = [(0, 0, float(hour)), (number, 0, float(number)), *([(1, 0, 20.0)] if hour >= 4 else [])]
        opened.ingest_nowait(batch(seq + 1, room.clock.now_ms(), samples, [f"q{hour}"], first=number))
        await room.telemetry.flush()
        await room.telemetry.sweep()
        seq, number = seq + 1, number + 1
    now = room.clock.now_ms()
    assert await room.values() == {("n1", "cpu"): 6.0, ("n1", "p1"): 20.0, ("n1", "q4"): 6.0}
    told = await room.history("n1", from_ms=now - 10 * 3600 * 1000)
    assert told["p1"] == [(now - 2 * 3600 * 1000 + n * 3600 * 1000, 20.0) for n in (1, 2)]
    rows = await room.neighbours.query("SELECT name FROM telemetry_series ORDER BY name")
    assert rows == [("cpu",), ("p1",), ("q4",)]

    before = (await room.values(), await room.history("n1"))
    room.restart()
    assert (await room.values(), await room.history("n1")) == before
    again = room.open_stream(node)
    again.ingest_nowait(batch(seq + 1, now, [(0, 0, 7.0), (1, 0, 8.0)], ["q4", "cpu"]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "cpu"): 8.0, ("n1", "p1"): 20.0, ("n1", "q4"): 7.0}


async def test_values_that_are_no_measurement_are_shown_nowhere(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.0), (0, 1, math.nan), (0, 2, math.inf)], ["cpu"]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "cpu"): 1.0}
    assert await room.history("n1") == {"cpu": [(now - 20, 1.0)]}


async def test_a_clock_far_ahead_neither_outlives_retention_nor_hides_what_follows(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now + 10**9, [(0, 0, 1.0)], ["cpu"]))
    await room.telemetry.flush()
    opened.ingest_nowait(batch(2, now, [(0, 0, 2.0)]))
    await room.telemetry.flush()
    assert await room.values() == {("n1", "cpu"): 2.0}
    assert await room.neighbours.query("SELECT MAX(end_ms) FROM telemetry_chunks") == [(now,)]


async def test_a_backlog_of_days_is_found_by_its_times(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    hour = 3600 * 1000
    opened = room.open_stream(node)
    for number in range(5):
        names = ["cpu"] if number == 0 else []
        opened.ingest_nowait(batch(number + 1, now - (40 - 10 * number) * hour, [(0, 0, float(number))], names))
    await room.telemetry.flush()
    assert await room.history("n1", from_ms=now - 31 * hour, to_ms=now - 9 * hour) == {
        "cpu": [(now - 30 * hour, 1.0), (now - 20 * hour, 2.0), (now - 10 * hour, 3.0)]
    }


async def test_latest_values_survive_a_restart_and_a_closed_stream(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 20, [(0, 0, 1.5)], ["cpu"]))
    opened.close()
    await room.telemetry.flush()
    assert room.acks[node] == []
    room.restart()
    assert await room.values() == {("n1", "cpu"): 1.5}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff\xff\xff", Reason.MALFORMED),
        (bytes(rules.MAX_FRAME_BYTES + 1), Reason.FRAME_TOO_LARGE),
        (batch(1, 1, [(0, 0, 1.0)]), Reason.MALFORMED),  # never defined
        (batch(0, 1, []), Reason.MALFORMED),
        (batch(1, -1, []), Reason.MALFORMED),
        (batch(1, 2**60, []), Reason.MALFORMED),
        (batch(1, 1, [], ["a"], first=1), Reason.MALFORMED),
        (batch(1, 1, [], [""]), Reason.MALFORMED),
        (batch(1, 1, [], ["x" * 201]), Reason.MALFORMED),
        (batch(1, 1, [], ["a\x00b"]), Reason.MALFORMED),
        (batch(2**64 - 1, 1, []), Reason.MALFORMED),
        (telemetry_pb2.TelemetryBatch(batch_seq=1, series=[0, 0], values=[1.0]).SerializeToString(), Reason.MALFORMED),
        (
            telemetry_pb2.TelemetryBatch(
                batch_seq=1,
                definitions=[
                    telemetry_pb2.SeriesDefinition(name="a", labels={str(each): "" for each in range(17)}),
                ],
            ).SerializeToString(),
            Reason.MALFORMED,
        ),
    ],
)
async def test_frames_that_no_node_of_ours_sends_are_refused(room: TelemetryRoom, raw: bytes, reason: Reason) -> None:
    opened = room.open_stream(await room.add_node("n1"))
    with pytest.raises(Refusal) as refused:
        opened.ingest_nowait(raw)
    assert refused.value.reason == reason
