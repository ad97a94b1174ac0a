"""Golden signals: event-loop lag on a clock the test moves, collections, and figures of this very process."""

from __future__ import annotations

import asyncio
import gc
import os

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fleet.clock import SystemClock
from fleet.metrics import Registry
from fleet.process_metrics import ProcessMetrics
from tests.fakes.clock import MockClock


def figures(registry: Registry) -> dict[str, float]:
    """`name` or `name{first label value}` to value."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        s.name + (f"{{{','.join(s.labels.values())}}}" if s.labels else ""): s.value
        for family in families
        for s in family.samples
    }


async def test_lag_is_how_late_the_loop_came_back() -> None:
    registry, clock = Registry(), MockClock()
    measuring = asyncio.create_task(ProcessMetrics(registry, clock, component="c", version="1").run(interval_s=1.0))
    await clock.wait_sleepers(1)
    clock.advance_nowait(1.0)  # on time
    await asyncio.sleep(0)
    await clock.wait_sleepers(1)
    clock.advance_nowait(1.75)  # the loop was held up: due after 1 s, it runs after 1.75 s
    await asyncio.sleep(0)
    await clock.wait_sleepers(1)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    read = figures(registry)
    assert read["fleet_event_loop_lag_seconds_count"] == 2
    assert read["fleet_event_loop_lag_seconds_sum"] == 0.75
    assert read["fleet_event_loop_lag_seconds_bucket{0.001}"] == 1
    assert read["fleet_event_loop_lag_seconds_bucket{0.5}"] == 1
    assert read["fleet_event_loop_lag_seconds_bucket{1.0}"] == 2


def test_the_process_reports_itself() -> None:
    registry = Registry()
    ProcessMetrics(registry, SystemClock(), component="fleet-server", version="1.2.3")
    before = figures(registry)
    with open(os.devnull):
        during = figures(registry)
    assert before["process_cpu_seconds_total"] > 0
    assert before["process_resident_memory_bytes"] > 1 << 20
    assert before["process_threads"] >= 1
    assert before["process_start_time_seconds"] > 1_000_000_000
    assert during["process_open_fds"] > before["process_open_fds"]
    assert [name for name in before if name.startswith("fleet_build_info{fleet-server,") or "1.2.3" in name]


def test_collections_are_counted_while_installed_and_no_longer() -> None:
    registry, clock = Registry(), MockClock()
    process = ProcessMetrics(registry, clock, component="c", version="1")
    callbacks = list(gc.callbacks)
    process.install()
    try:
        gc.collect()
        counted = figures(registry)
    finally:
        process.close()
        process.close()  # twice is harmless
    gc.collect()
    assert gc.callbacks == callbacks
    assert counted["python_gc_collections_total{2}"] == 1
    assert counted["python_gc_pause_seconds_count{2}"] == 1
    assert figures(registry)["python_gc_collections_total{2}"] == 1


def test_a_collection_lasts_from_its_start_to_its_stop() -> None:
    registry, clock = Registry(), MockClock()
    process = ProcessMetrics(registry, clock, component="c", version="1")

    def slow(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            clock.advance_nowait(0.25)

    process.install()
    gc.callbacks.append(slow)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(slow)
        process.close()
    assert figures(registry)["python_gc_pause_seconds_sum{2}"] == 0.25
