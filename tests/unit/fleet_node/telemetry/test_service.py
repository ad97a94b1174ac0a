"""From samples to a stream and back: order, replay, acknowledgements, drops."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fleet.metrics import Registry
from fleet.v1 import telemetry_pb2
from fleet_node.drivers.api import Sample
from fleet_node.observability.metrics import TelemetryMetrics
from fleet_node.telemetry.service import MAX_UNACKNOWLEDGED, TelemetryService
from fleet_node.telemetry.spool_store import Spool
from tests.fakes.clock import MockClock
from tests.unit.fleet_node.commands.node import RecordingUplink


class TelemetryNode:
    def __init__(self, folder: Path, clock: MockClock, max_bytes: int = 1 << 20) -> None:
        self.clock = clock
        self.spool = Spool(folder / "spool.db", max_bytes=max_bytes, now_ms=clock.now_ms())
        self.metrics = TelemetryMetrics(Registry())
        self.service = TelemetryService(spool=self.spool, clock=clock, metrics=self.metrics)

    def open_stream(self, max_batch_bytes: int = 65536) -> None:
        self.uplink = RecordingUplink()
        self.stream = self.service.opened(max_batch_bytes, self.uplink)

    async def put(self, value: float) -> None:
        await self.service.put([Sample("s", (), "gauge", "1", value)], self.clock.now_ms())

    async def take(self, count: int) -> list[telemetry_pb2.TelemetryBatch]:
        taken: list[telemetry_pb2.TelemetryBatch] = []
        while len(taken) < count:
            if (data := self.stream.next_batch()) is None:
                await self.uplink.wait_news()
            else:
                taken.append(telemetry_pb2.TelemetryBatch.FromString(data))
        return taken


def values(batches: list[telemetry_pb2.TelemetryBatch]) -> list[float]:
    return [value for batch in batches for value in batch.values]


@pytest_asyncio.fixture
async def node(tmp_path: Path, clock: MockClock) -> AsyncIterator[TelemetryNode]:
    node = TelemetryNode(tmp_path, clock)
    yield node
    await node.service.close()


async def test_what_was_collected_offline_is_replayed_in_order_and_news_follow(node: TelemetryNode) -> None:
    for number in range(3):
        await node.put(number)

    node.open_stream()
    batches = await node.take(3)
    await node.put(3)
    batches += await node.take(1)

    assert values(batches) == [0, 1, 2, 3]
    assert [len(batch.definitions) for batch in batches] == [1, 0, 0, 0]
    assert batches[-1].batch_seq == node.service.last_batch_seq


async def test_each_stream_starts_at_the_first_that_is_not_acknowledged_and_defines_anew(node: TelemetryNode) -> None:
    node.open_stream()
    for number in range(4):
        await node.put(number)
    batches = await node.take(4)
    node.service.acked(batches[1].batch_seq)

    older = node.stream
    node.open_stream()
    again = await node.take(2)

    assert values(again) == [2, 3]
    assert len(again[0].definitions) == 1
    assert older.next_batch() is None


async def test_acknowledged_batches_leave_the_disk(node: TelemetryNode, tmp_path: Path) -> None:
    node.open_stream()
    for number in range(4):
        await node.put(number)
    batches = await node.take(4)

    node.service.acked(batches[2].batch_seq)
    node.service.acked(10**18)
    await node.service.close()

    reopened = Spool(tmp_path / "spool.db", max_bytes=1 << 20, now_ms=0)
    assert reopened.counters.batches == 0
    assert reopened.counters.last_batch_seq == batches[3].batch_seq


async def test_a_stream_has_no_more_out_than_the_limit(node: TelemetryNode) -> None:
    for number in range(MAX_UNACKNOWLEDGED + 5):
        await node.put(number)
    node.open_stream()

    batches = await node.take(MAX_UNACKNOWLEDGED)
    assert node.stream.next_batch() is None
    node.service.acked(batches[9].batch_seq)

    assert values(await node.take(5)) == [float(MAX_UNACKNOWLEDGED + n) for n in range(5)]


async def test_drops_are_told_to_the_server(tmp_path: Path, clock: MockClock) -> None:
    node = TelemetryNode(tmp_path, clock, max_bytes=300)
    for number in range(30):
        await node.put(number)
    node.open_stream()

    (first,) = await node.take(1)

    assert first.dropped_through == first.batch_seq - 1
    assert first.dropped_total == 30 - node.spool.counters.batches
    assert node.metrics.spool_dropped.value == first.dropped_total
    await node.service.close()


async def test_a_full_disk_drops_and_counts_and_heals(node: TelemetryNode) -> None:
    node.spool._connection.execute("PRAGMA query_only = ON")
    await node.put(1)
    await node.put(2)
    assert node.metrics.spool_dropped.value == 2

    node.spool._connection.execute("PRAGMA query_only = OFF")
    await node.put(3)
    node.open_stream()

    (batch,) = await node.take(1)
    assert (list(batch.values), batch.dropped_total) == ([3], 2)


async def test_an_idle_stream_rests(node: TelemetryNode) -> None:
    node.open_stream()
    await node.uplink.wait_news()
    assert node.stream.next_batch() is None
    await asyncio.gather(*node.service._tasks)

    assert node.stream.next_batch() is None
    assert not node.service._tasks
    assert not node.uplink.woken.is_set()


async def test_the_spool_is_closed_only_after_a_write_whose_caller_has_left(
    node: TelemetryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads in one SQLite connection: a stop during a write ended the process with SIGSEGV."""
    writing, go_on = asyncio.Event(), threading.Event()
    loop, append, close, said = asyncio.get_running_loop(), node.spool.append, node.spool.close, []

    def slow_append(batches: Any) -> None:
        loop.call_soon_threadsafe(writing.set)
        go_on.wait()
        append(batches)
        said.append("written")

    monkeypatch.setattr(node.spool, "append", slow_append)
    monkeypatch.setattr(node.spool, "close", lambda: (said.append("closed"), close()))
    putting = asyncio.create_task(node.put(1))
    await writing.wait()
    putting.cancel()
    closing = asyncio.create_task(node.service.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing

    assert said == ["written", "closed"]
    assert putting.cancelled()


async def test_series_that_come_and_go_get_a_new_stream_before_its_dictionary_is_full(
    clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_node.telemetry.encoder._CROWDED", 3)
    node = TelemetryNode(tmp_path, clock)
    node.open_stream()
    for number in range(5):
        await node.service.put([Sample(f"process.{number}", (), "gauge", "1", 1.0)], clock.now_ms())
        await node.take(1)
        assert node.uplink.renewals == (0 if number < 2 else 1)
    node.open_stream()
    await node.take(1)
    assert node.uplink.renewals == 0
    await node.service.close()
