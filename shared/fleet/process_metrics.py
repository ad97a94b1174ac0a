"""Golden signals of the process: CPU, memory, open files, threads, garbage collection, event-loop lag, build.

One of these per process, installed by the process's own `__main__` or app. Simulated nodes that share a
process go without: they would report the same figures many times over, and each would hook the garbage
collector.
"""

from __future__ import annotations

import gc
import platform
from typing import Any

import psutil

from fleet.clock import Clock
from fleet.metrics import Registry

_GC_GENERATIONS = ("0", "1", "2")
_GC_PAUSE_BUCKETS_S = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

LAG_INTERVAL_S = 1.0
"""How often lag is measured: a wake-up costs microseconds, and a stall of that length cannot hide."""


class ProcessMetrics:
    """Declares and keeps the golden signals.

    Args:
        registry: registry of this process's app.
        clock: monotonic time and sleep for lag and pauses.
        component: `fleet-server` or `fleet-node`.
        version: version of the software.
    """

    def __init__(self, registry: Registry, clock: Clock, *, component: str, version: str) -> None:
        self._clock = clock
        self._process = psutil.Process()
        self._gc_started = 0.0
        self._cpu = registry.counter(
            "process_cpu_seconds_total",
            "CPU time the process used, user and system together.",
            unit="seconds",
        )
        self._resident = registry.gauge("process_resident_memory_bytes", "Resident memory (RSS).", unit="bytes")
        self._open_files = registry.gauge("process_open_fds", "Open file descriptors, sockets among them.")
        self._threads = registry.gauge("process_threads", "Threads of the process.")
        started = registry.gauge(
            "process_start_time_seconds", "Unix time at which the process started.", unit="seconds"
        )
        started.set(self._process.create_time())
        collections = registry.counters(
            "python_gc_collections_total",
            "Garbage collections.",
            labels=("generation",),
            values=_GC_GENERATIONS,
        )
        pauses = registry.histograms(
            "python_gc_pause_seconds",
            "Time the process stood still for one garbage collection.",
            labels=("generation",),
            values=_GC_GENERATIONS,
            buckets=_GC_PAUSE_BUCKETS_S,
            unit="seconds",
        )
        self._gc = [(collections.labels(generation), pauses.labels(generation)) for generation in _GC_GENERATIONS]
        self._lag = registry.histogram(
            "fleet_event_loop_lag_seconds",
            "How late the event loop ran a task that was due.",
            buckets=_LAG_BUCKETS_S,
            unit="seconds",
        )
        build = registry.gauges(
            "fleet_build_info",
            "Always 1; the labels say what runs.",
            labels=("component", "version", "python"),
        )
        build.labels(component, version, platform.python_version()).set(1)
        registry.before_collect(self._sample)

    def install(self) -> None:
        """Start timing garbage collections. Undo with `close`."""
        gc.callbacks.append(self._on_gc)

    def close(self) -> None:
        """Stop timing garbage collections."""
        if self._on_gc in gc.callbacks:
            gc.callbacks.remove(self._on_gc)

    async def run(self, interval_s: float = LAG_INTERVAL_S) -> None:
        """Measure event-loop lag until cancelled: sleep, and see how much later than due it ended."""
        while True:
            due = self._clock.monotonic() + interval_s
            await self._clock.sleep(interval_s)
            self._lag.observe(max(0.0, self._clock.monotonic() - due))

    def _sample(self) -> None:
        with self._process.oneshot():
            times = self._process.cpu_times()
            self._cpu.mirror(times.user + times.system)
            self._resident.set(self._process.memory_info().rss)
            self._threads.set(self._process.num_threads())
        self._open_files.set(self._process.num_fds())

    def _on_gc(self, phase: str, info: dict[str, Any]) -> None:
        # Runs inside the collector on whatever thread set it off: allocate next to nothing, never raise.
        # Collections do not nest.
        if phase == "start":
            self._gc_started = self._clock.monotonic()
            return
        collections, pauses = self._gc[info["generation"]]
        collections.inc()
        pauses.observe(self._clock.monotonic() - self._gc_started)
