"""Asks the drivers for samples at an interval.

Mental model
    Each source has a beat of its own and is asked in a worker thread, so one that hangs is silent alone. What hangs in
    a thread cannot be ended, only told: once, by the watch over all of them, and again when it came back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import psutil

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_node.drivers.api import Sample
from fleet_node.observability.metrics import TelemetryMetrics

log = get_logger(__name__)

Source = Callable[[], Iterable[Sample]]
Sink = Callable[[Sequence[Sample], int], Awaitable[None]]

STALLED_S = 30.0
"""A sample that takes longer is told: the driver waits for something that may never come."""

_WATCH_S = 10.0


class Collector:
    """Collects now and then at each interval, on the beat: a slow source skips beats, it never piles up.

    Args:
        sources: by the name that logs show; called in worker threads, one call at a time for each.
        sink: takes samples of one source and their time, Unix milliseconds on the node.
        clock: for the beats.
        interval_s: seconds between collections.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, Source],
        sink: Sink,
        clock: Clock,
        metrics: TelemetryMetrics,
        interval_s: float,
    ) -> None:
        self._sources = sources
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._interval_s = interval_s
        self._failing: set[str] = set()
        self._asked_s: dict[str, float] = {}  # sources that have not answered yet
        self._stalled: set[str] = set()

    async def run(self) -> None:
        """Collect until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            for name, source in self._sources.items():
                tasks.create_task(self._collect(name, source))

    async def _collect(self, name: str, source: Source) -> None:
        due_s = self._clock.monotonic()
        while True:
            at_ms = self._clock.now_ms()
            self._asked_s[name] = self._clock.monotonic()
            samples = await asyncio.to_thread(self._ask, name, source)
            self._answered(name)
            if samples:
                await self._sink(samples, at_ms)
            missed = (self._clock.monotonic() - due_s) // self._interval_s
            due_s += (missed + 1) * self._interval_s
            await self._clock.sleep(due_s - self._clock.monotonic())

    def _ask(self, name: str, source: Source) -> list[Sample]:
        try:
            samples = list(source())
        except Exception:  # a figure that cannot be read (no descriptor is left) must not end the node
            if name not in self._failing:  # once, not at every beat
                log.exception("samples_not_collected", driver=name)
            self._failing.add(name)
            return []
        self._failing.discard(name)
        return samples

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(_WATCH_S)
            now_s = self._clock.monotonic()
            for name, asked_s in self._asked_s.items():
                if name not in self._stalled and now_s - asked_s >= STALLED_S:
                    self._stalled.add(name)
                    log.warning("samples_stalled", driver=name, waited_s=round(now_s - asked_s, 1))
            self._metrics.stalled.set(len(self._stalled))

    def _answered(self, name: str) -> None:
        waited_s = self._clock.monotonic() - self._asked_s.pop(name)
        if name in self._stalled:
            self._stalled.remove(name)
            self._metrics.stalled.set(len(self._stalled))
            log.info("samples_resumed", driver=name, waited_s=round(waited_s, 1))


class OwnProcess:
    """The node daemon's own CPU time, memory, files and threads."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def __call__(self) -> list[Sample]:
        """One sample of each."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            return [
                Sample("node.process.cpu", (), "counter", "seconds", times.user + times.system),
                Sample("node.process.memory.rss", (), "gauge", "bytes", float(self._process.memory_info().rss)),
                Sample("node.process.open_files", (), "gauge", "1", float(self._process.num_fds())),
                Sample("node.process.threads", (), "gauge", "1", float(self._process.num_threads())),
            ]
