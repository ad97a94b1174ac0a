"""Collecting: each source on its own beat, whatever the others do."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from structlog.testing import capture_logs

from fleet.metrics import Registry
from fleet_node.drivers.api import Sample
from fleet_node.observability.metrics import TelemetryMetrics
from fleet_node.telemetry.collector import STALLED_S, Collector, OwnProcess, Sink, Source
from tests.fakes.clock import MockClock

WATCH = 1  # sleeper of the watch over all sources


def sample(name: str, value: float = 1) -> Sample:
    return Sample(name, (), "gauge", "1", value)


@asynccontextmanager
async def collecting(
    sources: Mapping[str, Source], sink: Sink, clock: MockClock, metrics: TelemetryMetrics | None = None
) -> AsyncIterator[None]:
    collector = Collector(
        sources=sources, sink=sink, clock=clock, metrics=metrics or TelemetryMetrics(Registry()), interval_s=10
    )
    task = asyncio.ensure_future(collector.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_the_collector_keeps_the_beat_and_skips_what_it_missed(clock: MockClock) -> None:
    taken: list[int] = []

    async def sink(samples: object, at_ms: int) -> None:
        taken.append(at_ms - start_ms)
        if len(taken) == 2:
            await clock.sleep(25)

    start_ms = clock.now_ms()
    async with collecting({"s": lambda: [sample("s")]}, sink, clock):
        for step_s in (10, 25, 5, 10):
            await clock.wait_sleepers(WATCH + 1)
            await clock.advance(step_s)
        await clock.wait_sleepers(WATCH + 1)

    assert taken == [0, 10_000, 40_000, 50_000]


async def test_a_source_that_fails_silences_neither_the_others_nor_the_next_beat(clock: MockClock) -> None:
    taken: list[tuple[str, int]] = []
    failures = [OSError(24, "Too many open files")]
    start_ms = clock.now_ms()

    def own() -> list[Sample]:
        if failures:
            raise failures.pop()
        return [sample("own")]

    async def sink(samples: Any, at_ms: int) -> None:
        taken.extend((one.name, at_ms - start_ms) for one in samples)

    async with collecting({"own": own, "s": lambda: [sample("s")]}, sink, clock):
        await clock.wait_sleepers(WATCH + 2)
        await clock.advance(10)
        await clock.wait_sleepers(WATCH + 2)

    assert sorted(taken) == [("own", 10_000), ("s", 0), ("s", 10_000)]


async def test_a_source_that_hangs_is_told_once_and_silences_itself_alone(clock: MockClock) -> None:
    taken: list[str] = []
    hanging, returned = threading.Event(), threading.Event()
    metrics = TelemetryMetrics(Registry())

    def stuck() -> list[Sample]:
        hanging.set()
        returned.wait(30)
        return [sample("stuck")]

    async def sink(samples: Any, _: int) -> None:
        taken.extend(one.name for one in samples)

    try:
        with capture_logs() as logs:
            async with collecting({"arm": stuck, "host": lambda: [sample("host")]}, sink, clock, metrics):
                for _ in range(2 * int(STALLED_S) // 10):
                    await clock.wait_sleepers(WATCH + 1)
                    await clock.advance(10)
                await clock.wait_sleepers(WATCH + 1)
                assert taken == ["host"] * 7
                assert metrics.stalled.value == 1
                returned.set()
                await clock.wait_sleepers(WATCH + 2)
                assert taken[-1] == "stuck"
                assert metrics.stalled.value == 0
                await clock.advance(10)
                await clock.wait_sleepers(WATCH + 2)
    finally:
        returned.set()

    assert sorted(taken[-2:]) == ["host", "stuck"]
    assert [(one["event"], one["log_level"], one["driver"], one["waited_s"]) for one in logs] == [
        ("samples_stalled", "warning", "arm", STALLED_S),
        ("samples_resumed", "info", "arm", 2 * STALLED_S),
    ]


def test_the_node_can_measure_itself() -> None:
    names = {sample.name: sample.value for sample in OwnProcess()()}

    assert names["node.process.memory.rss"] > 1_000_000
    assert set(names) == {
        "node.process.cpu", "node.process.memory.rss", "node.process.open_files", "node.process.threads",
    }  # fmt: skip
