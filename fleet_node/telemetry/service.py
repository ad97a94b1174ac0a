"""The telemetry room: what was collected goes into the spool, and from there to the newest stream, in order, until it
is acknowledged.

Mental model
    The spool is the only queue. A stream has a cursor into it and a small window that is read ahead; a batch is on disk
    before a stream can see it, so its number is never given to another batch.
    Whatever the spool does runs in a worker thread, one call at a time. When it fails, telemetry is dropped and
    counted; commands have their own file and do not notice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TypeVar

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1 import telemetry_pb2
from fleet_node.drivers.api import Sample
from fleet_node.link.ports import Uplink
from fleet_node.observability.metrics import TelemetryMetrics
from fleet_node.telemetry.encoder import MAX_SERIES_PER_STREAM, StreamDictionary, split
from fleet_node.telemetry.spool_store import Spool, SpoolUnavailableError

log = get_logger(__name__)

T = TypeVar("T")

READ_AHEAD_BYTES = 256 * 1024
MAX_UNACKNOWLEDGED = 256
"""Batches that a stream may have out: a replay of hours waits in the spool, not in both ends' memory."""

RETRY_S = 5.0


class TelemetryService:
    """Implements `TelemetryPort`.

    Args:
        spool: open; the service closes it.
        clock: for retries.
    """

    def __init__(self, *, spool: Spool, clock: Clock, metrics: TelemetryMetrics) -> None:
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._stream: _Stream | None = None
        self._acked_seq = 0
        self._trimmed_seq = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._trimming = False
        self._failing = False
        self._closing = False
        self._show()

    @property
    def last_batch_seq(self) -> int:
        """See `TelemetryPort`."""
        return self._spool.counters.last_batch_seq

    def opened(self, max_batch_bytes: int, uplink: Uplink) -> _Stream:
        """See `TelemetryPort`."""
        self._stream = _Stream(self, max_batch_bytes, uplink, after_seq=self._acked_seq)
        uplink.wake()
        return self._stream

    def acked(self, batch_seq: int) -> None:
        """See `TelemetryPort`."""
        batch_seq = min(batch_seq, self._spool.counters.last_batch_seq)
        if batch_seq <= self._acked_seq:
            return
        self._acked_seq = batch_seq
        if self._stream is not None:
            self._stream.acked(batch_seq)
        if not self._trimming and not self._closing:
            self._trimming = True
            self._spawn(self._trim())

    async def put(self, samples: Sequence[Sample], at_ms: int) -> None:
        """Spool the samples of one moment. What the spool cannot take is dropped and counted.

        Args:
            samples: as collected.
            at_ms: Unix milliseconds on the node.
        """
        self._metrics.samples.inc(len(samples))
        batches = list(split(samples, at_ms))
        try:
            await self._in_thread(lambda: self._spool.append(batches))
        except SpoolUnavailableError as error:
            if not self._failing:  # once, not at every interval of a full disk
                log.error("telemetry_dropped", error=str(error))
            self._failing = True
            self._show()
            return
        self._failing = False
        self._show()
        if self._stream is not None:
            self._stream.uplink.wake()

    async def close(self) -> None:
        """Trim what is acknowledged and close the spool."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._acked_seq > self._trimmed_seq:
            try:
                await self._in_thread(lambda: self._spool.trim(self._acked_seq))
            except SpoolUnavailableError:
                log.info("spool_not_trimmed")
        await self._in_thread(self._spool.close)

    def read_ahead(self, stream: _Stream) -> None:
        """Fill the window of `stream` and wake it."""
        if not self._closing:
            self._spawn(self._fill(stream))

    def encode(self, stream: _Stream, stored: telemetry_pb2.TelemetryBatch, max_bytes: int) -> bytes | None:
        """Write a batch for `stream`; None when it does not fit."""
        counters = self._spool.counters
        through = counters.dropped_through
        was_full = stream.dictionary.overflowed
        encoded = stream.dictionary.encode(
            stored,
            self._spool.catalog,
            dropped_through=through if through > self._acked_seq else 0,
            dropped_total=counters.dropped_total,
            max_bytes=max_bytes,
        )
        if encoded is None:
            log.error("telemetry_batch_too_large", batch_seq=stored.batch_seq, max_bytes=max_bytes)
        else:
            self._metrics.batches.inc()
        if stream.dictionary.crowded and not stream.renewed:
            stream.renewed = True
            log.info("telemetry_dictionary_crowded", max_series=MAX_SERIES_PER_STREAM)
            stream.uplink.renew()
        if stream.dictionary.overflowed and not was_full:
            log.error("telemetry_series_left_out", max_series=MAX_SERIES_PER_STREAM, until="the next stream")
        return encoded

    def newest(self, stream: _Stream) -> bool:
        """Whether no other stream took over."""
        return stream is self._stream

    def closed(self, stream: _Stream) -> None:
        """A stream has ended."""
        if stream is self._stream:
            self._stream = None

    async def _fill(self, stream: _Stream) -> None:
        def read() -> tuple[list[telemetry_pb2.TelemetryBatch], int]:
            found = self._spool.read(stream.read_seq, READ_AHEAD_BYTES)
            return found, found[-1].batch_seq if found else self._spool.counters.last_batch_seq

        try:
            found, read_seq = await self._in_thread(read)
        except SpoolUnavailableError as error:
            log.error("spool_not_read", error=str(error))
            await self._clock.sleep(RETRY_S)
            found, read_seq = [], stream.read_seq
        stream.filled(found, read_seq)
        if found or stream.behind(self.last_batch_seq):
            stream.uplink.wake()

    async def _trim(self) -> None:
        try:
            while self._trimmed_seq < self._acked_seq:
                target = self._acked_seq
                try:
                    await self._in_thread(partial(self._spool.trim, target))
                except SpoolUnavailableError:
                    return  # the next acknowledgement tries again; the server takes a batch twice without harm
                self._trimmed_seq = target
                self._show()
        finally:
            self._trimming = False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in a worker thread. A cancelled caller leaves at once, and the next one still waits until `work`
        has ended: two threads in one SQLite connection end the process."""
        await self._lock.acquire()
        working = asyncio.get_running_loop().run_in_executor(None, work)
        working.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(working)

    def _show(self) -> None:
        counters = self._spool.counters
        self._metrics.spool_batches.set(counters.batches)
        self._metrics.spool_size.set(counters.size_bytes)
        self._metrics.spool_dropped.mirror(self._spool.dropped_total)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Stream:
    """Implements `TelemetryStream`: a cursor into the spool, a window, and a dictionary."""

    def __init__(self, service: TelemetryService, max_batch_bytes: int, uplink: Uplink, *, after_seq: int) -> None:
        self._service = service
        self._max_batch_bytes = max_batch_bytes
        self._window: deque[telemetry_pb2.TelemetryBatch] = deque()
        self._out: deque[int] = deque()
        self._reading = False
        self.uplink = uplink
        self.dictionary = StreamDictionary()
        self.renewed = False
        self.read_seq = after_seq

    def next_batch(self) -> bytes | None:
        """See `TelemetryStream`."""
        if not self._service.newest(self) or len(self._out) >= MAX_UNACKNOWLEDGED:
            return None
        while self._window:
            stored = self._window.popleft()
            encoded = self._service.encode(self, stored, self._max_batch_bytes)
            if encoded is not None:
                self._out.append(stored.batch_seq)
                return encoded
        if not self._reading and self.behind(self._service.last_batch_seq):
            self._reading = True
            self._service.read_ahead(self)
        return None

    def close(self) -> None:
        """See `TelemetryStream`."""
        self._service.closed(self)

    def acked(self, batch_seq: int) -> None:
        """The server has everything up to `batch_seq`: room for more."""
        was_full = len(self._out) >= MAX_UNACKNOWLEDGED
        while self._out and self._out[0] <= batch_seq:
            self._out.popleft()
        if was_full and len(self._out) < MAX_UNACKNOWLEDGED:
            self.uplink.wake()

    def behind(self, last_batch_seq: int) -> bool:
        """Whether the spool holds more than was read."""
        return self.read_seq < last_batch_seq

    def filled(self, found: Sequence[telemetry_pb2.TelemetryBatch], read_seq: int) -> None:
        """Take what was read, up to and including `read_seq`."""
        self._reading = False
        self._window.extend(found)
        self.read_seq = read_seq
