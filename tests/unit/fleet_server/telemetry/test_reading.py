"""History, federation and retention."""

import asyncio
from itertools import pairwise

import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from fleet.errors import Reason, Refusal
from fleet.v1 import telemetry_pb2
from fleet_server.telemetry import chunks, federation
from tests.unit.fleet_server.telemetry.room import RETENTION_S, TelemetryRoom, batch


async def test_history_is_thinned_evenly_and_keeps_both_ends(room: TelemetryRoom) -> None:
    node, now = await room.add_node("n1"), room.clock.now_ms()
    opened = room.open_stream(node)
    opened.ingest_nowait(batch(1, now - 1000, [(0, offset, float(offset)) for offset in range(1000)], ["cpu"]))
    await room.telemetry.flush()
    samples = (await room.history("n1", from_ms=now - 1000, to_ms=now, max_samples=10))["cpu"]
    assert len(samples) == 10
    gaps = {after - before for (before, _), (after, _) in pairwise(samples)}
    assert max(gaps) - min(gaps) <= 1
    assert samples[-1] == (now - 1, 999.0)


async def test_history_picks_series_by_glob_and_nodes_by_name(room: TelemetryRoom) -> None:
    now = room.clock.now_ms()
    for name in ("n1", "n2"):
        opened = room.open_stream(await room.add_node(name))
        opened.ingest_nowait(batch(1, now - 5, [(0, 0, 1.0), (1, 0, 2.0)], ["host.cpu", "host.mem"]))
    await room.telemetry.flush()
    assert set(await room.history("n1", "host.c*")) == {"host.cpu"}
    assert await room.values("*mem", "n2") == {("n2", "host.mem"): 2.0}
    with pytest.raises(Refusal) as refused:
        await room.history("nobody")
    assert refused.value.reason == Reason.NOT_FOUND
    with pytest.raises(Refusal) as refused:
        await room.history("n1", from_ms=now, to_ms=now - 1)
    assert refused.value.reason == Reason.INVALID_ARGUMENT


async def test_a_damaged_chunk_costs_its_own_samples_only(room: TelemetryRoom) -> None:
    now = room.clock.now_ms()
    opened = room.open_stream(await room.add_node("n1"))
    for number in (1, 2):
        opened.ingest_nowait(batch(number, now - 10 + number, [(0, 0, float(number))], ["cpu"] if number == 1 else []))
        await room.telemetry.flush()
    await room.neighbours.tamper("UPDATE telemetry_chunks SET payload = ? WHERE start_ms = ?", b"\x01junk", now - 9)
    assert await room.history("n1") == {"cpu": [(now - 8, 2.0)]}


async def test_old_chunks_go_in_small_batches(room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_server.telemetry.service._DELETED_AT_ONCE", 2)
    opened = room.open_stream(await room.add_node("n1"))
    for number in range(1, 6):
        frame = batch(number, room.clock.now_ms(), [(0, 0, 1.0)], ["cpu"] if number == 1 else [])
        opened.ingest_nowait(frame)
        await room.telemetry.flush()
    await room.clock.advance(RETENTION_S + 1)
    opened.ingest_nowait(batch(6, room.clock.now_ms(), [(0, 0, 6.0)]))
    await room.telemetry.flush()
    sweeping = asyncio.ensure_future(room.telemetry.sweep())
    while not sweeping.done():
        await room.clock.advance(1)
        await asyncio.sleep(0)
    assert [value for _, value in (await room.history("n1", from_ms=1))["cpu"]] == [6.0]


class _Shown:
    def __init__(self, room: TelemetryRoom) -> None:
        self._room = room

    def collect(self) -> object:
        return self._room.telemetry.federate()


def _exposed(room: TelemetryRoom) -> str:
    registry = CollectorRegistry()
    registry.register(_Shown(room))  # type: ignore[arg-type]
    return generate_latest(registry).decode()


async def test_federation_shows_nodes_that_stream_under_fit_names(room: TelemetryRoom) -> None:
    now = room.clock.now_ms()
    opened = room.open_stream(await room.add_node("n1"))
    definition = telemetry_pb2.SeriesDefinition(
        series=0, name="host.net-bytes", kind=telemetry_pb2.SERIES_KIND_COUNTER, unit="bytes", labels={"node": 'x"\n'}
    )
    frame = telemetry_pb2.TelemetryBatch(
        batch_seq=1, base_time_ms=now, definitions=[definition], series=[0], time_offset_ms=[0], values=[5.0]
    )
    opened.ingest_nowait(frame.SerializeToString())
    await room.telemetry.flush()
    text = _exposed(room)
    assert 'fleet_node_host_net_bytes_total{label_node="x\\"\\n",node="n1"} 5.0' in text
    opened.close()
    await room.telemetry.flush()
    room.open_stream(await room.add_node("n2")).ingest_nowait(batch(1, now, []))
    await room.telemetry.flush()
    assert "n1" not in _exposed(room)


async def test_federation_is_capped_and_counts_what_it_leaves_out(
    room: TelemetryRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federation, "MAX_SERIES", 3)
    for name in ("n1", "n2"):
        opened = room.open_stream(await room.add_node(name))
        opened.ingest_nowait(batch(1, room.clock.now_ms(), [(0, 0, 1.0), (1, 0, 2.0)], ["a", "b"]))
    await room.telemetry.flush()
    lines = [line for line in _exposed(room).splitlines() if line.startswith("fleet_node_")]
    assert len(lines) == 3
    assert room.neighbours.metrics.telemetry.federation_dropped.value == 1


@pytest.mark.parametrize("payload", [b"", b"\x02", b"\x01", b"\x01junk", chunks.Packer().pack([1], [b"x"])[:-1]])
def test_what_is_no_chunk_is_refused(payload: bytes) -> None:
    with pytest.raises(chunks.ChunkError):
        _, batches = chunks.unpack(payload)
        list(batches)
