"""Asks the drivers for samples at an interval."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import psutil

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_node.drivers.api import Sample

log = get_logger(__name__)

Source = Callable[[], Iterable[Sample]]
Sink = Callable[[Sequence[Sample], int], Awaitable[None]]


class Collector:
    """Collects now and then at each interval, on the beat: a slow collection skips beats, it never piles up.

    Args:
        sources: called in a worker thread, one after the other: `DriverRegistry.samples`, and `OwnProcess` if wanted.
        sink: takes the samples and their time, Unix milliseconds on the node.
        clock: for the beat.
        interval_s: seconds between collections.
    """

    def __init__(self, *, sources: Sequence[Source], sink: Sink, clock: Clock, interval_s: float) -> None:
        self._sources = sources
        self._sink = sink
        self._clock = clock
        self._interval_s = interval_s
        self._failing: set[Source] = set()

    async def run(self) -> None:
        """Collect until cancelled."""
        due_s = self._clock.monotonic()
        while True:
            at_ms = self._clock.now_ms()
            samples = await asyncio.to_thread(self._collect)
            if samples:
                await self._sink(samples, at_ms)
            missed = (self._clock.monotonic() - due_s) // self._interval_s
            due_s += (missed + 1) * self._interval_s
            await self._clock.sleep(due_s - self._clock.monotonic())

    def _collect(self) -> list[Sample]:
        samples: list[Sample] = []
        for source in self._sources:
            try:
                samples.extend(source())
            except Exception:  # a figure that cannot be read (no descriptor is left) must not end the node
                if source not in self._failing:  # once, not at every beat
                    log.exception("samples_not_collected", source=type(source).__name__)
                self._failing.add(source)
            else:
                self._failing.discard(source)
        return samples


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
