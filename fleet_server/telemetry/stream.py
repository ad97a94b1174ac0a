"""Telemetry of one open stream: checked as it comes, kept until the next flush.

Nothing here waits. What is taken is bounded in bytes; past the bound frames are left unacknowledged, so the node keeps
them in its spool, and once there is room again the stream is asked to start over, for an ack is cumulative and must not
cover a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from fleet.errors import Reason, Refusal
from fleet.v1 import telemetry_pb2
from fleet_server.observability.metrics import TelemetryMetrics
from fleet_server.telemetry import rules
from fleet_server.telemetry.rules import Series
from fleet_server.telemetry.series import intern_series

MAX_HELD_BYTES = 128 * 1024 * 1024
MAX_HELD_BYTES_PER_STREAM = 8 * 1024 * 1024
URGENT_BYTES = 4 * 1024 * 1024
_PARSED_AGAIN_BYTES = 4 * 1024

Ack = Callable[[int], None]


class Frame(NamedTuple):
    """A frame as it came, and what has to be known of it at once.

    Args:
        parsed: the batch, of a large frame. Of a small one it takes ten times the frame's memory: a second's outgrow a
            processor's caches, and to parse them again costs less.
        base_ms: its base time, Unix milliseconds.
        newest_ms: time of its newest sample.
        samples: how many it holds.
    """

    raw: bytes
    parsed: telemetry_pb2.TelemetryBatch | None
    batch_seq: int
    dropped_through: int
    base_ms: int
    newest_ms: int
    samples: int

    @property
    def batch(self) -> telemetry_pb2.TelemetryBatch:
        """The batch, which was checked when it came in."""
        return self.parsed or telemetry_pb2.TelemetryBatch.FromString(self.raw)


@dataclass(slots=True)
class Intake:
    """Frames of all streams that wait for a flush. Belongs to the event loop."""

    metrics: TelemetryMetrics
    urgent: Callable[[], None]
    held_bytes: int = 0
    waiting: dict[TelemetryStream, None] = field(default_factory=dict)
    waiting_bytes: int = 0

    def add(self, stream: TelemetryStream, size: int) -> None:
        """A frame of `size` bytes waits at `stream`."""
        self.waiting[stream] = None
        self.held_bytes += size
        before = self.waiting_bytes
        self.waiting_bytes += size
        if before < URGENT_BYTES <= self.waiting_bytes:
            self.urgent()

    def take(self) -> list[tuple[TelemetryStream, list[Frame]]]:
        """Everything that waits, by stream. Its bytes count as held until `release`."""
        taken = [(stream, stream.take()) for stream in self.waiting]
        self.waiting.clear()
        self.waiting_bytes = 0
        return taken

    def release(self, held_bytes: int) -> None:
        """These bytes are stored, or given up."""
        self.held_bytes -= held_bytes


class TelemetryStream:
    """One stream's dictionary and frames.

    Args:
        node_id: the node.
        epoch: of the stream.
        ack: called with the highest batch_seq that is stored or declared lost, after the commit.
        intake: where frames wait.
        on_close: called once, when the stream ends.
    """

    def __init__(
        self, node_id: str, epoch: int, ack: Ack, intake: Intake, on_close: Callable[[TelemetryStream], None]
    ) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self.dictionary: list[Series] = []
        self.numbers: list[int] = []
        """Number in the database of each series of the dictionary; this and what follows is changed by the flush's
        worker thread only."""
        self.generation = 0
        """The node's when the numbers were found; they are found again for another one."""
        self.unplaced = False
        """Whether a series of the dictionary has no number."""
        self._ack = ack
        self._intake = intake
        self._on_close = on_close
        self._frames: list[Frame] = []
        self._held_bytes = 0
        self._dropped_total = 0
        self._gapped = False
        self._closed = False

    def ingest_nowait(self, raw: bytes) -> None:
        """Take one serialised TelemetryBatch.

        Raises:
            Refusal: FRAME_TOO_LARGE or MALFORMED, for a frame that no node of ours sends; OVERLOADED when frames had to
                be left out and there is room for them again: the node starts a new stream and sends them from its
                spool.
        """
        if self._closed:
            return
        if len(raw) > rules.MAX_FRAME_BYTES:
            raise Refusal(
                Reason.FRAME_TOO_LARGE,
                f"a telemetry frame has {len(raw)} bytes; at most {rules.MAX_FRAME_BYTES} are taken: split it",
            )
        try:
            batch = telemetry_pb2.TelemetryBatch.FromString(raw)
        except DecodeError:
            raise rules.malformed("it is no TelemetryBatch") from None
        if batch.definitions:
            self._define(batch)
        samples = rules.check_columns(batch, len(self.dictionary))
        metrics = self._intake.metrics
        metrics.batches.inc()
        metrics.samples.inc(samples)
        metrics.received.inc(len(raw))
        self._count_dropped_by_node(batch.dropped_total)
        if self._has_room(len(raw)):
            self._keep(raw, batch, samples)
        else:
            metrics.dropped.labels("database").inc()

    def take(self) -> list[Frame]:
        """Frames since the last call."""
        frames, self._frames = self._frames, []
        return frames

    def stored(self, batch_seq: int, held_bytes: int) -> None:
        """Frames of this stream up to `batch_seq` are durable."""
        self._held_bytes -= held_bytes
        self._intake.release(held_bytes)
        if not self._closed:
            self._ack(batch_seq)

    def lost(self, held_bytes: int) -> None:
        """Frames of this stream could not be stored: the node has to send them again, on a new stream."""
        self._held_bytes -= held_bytes
        self._intake.release(held_bytes)
        self._gapped = True

    def overtaken(self, held_bytes: int) -> None:
        """The node has a newer stream: these frames are not stored, nothing more is taken, and the node sends on that
        one whatever was not acknowledged here."""
        self._held_bytes -= held_bytes
        self._intake.release(held_bytes)
        self.close()

    def close(self) -> None:
        """The stream has ended. What it brought is still stored."""
        if not self._closed:
            self._closed = True
            self._on_close(self)

    def _define(self, batch: telemetry_pb2.TelemetryBatch) -> None:
        for definition in batch.definitions:
            if definition.series != len(self.dictionary):
                raise rules.malformed(
                    f"series {definition.series} is defined where {len(self.dictionary)} is due: numbers are dense"
                )
            if len(self.dictionary) >= rules.MAX_SERIES_PER_STREAM:
                raise rules.malformed(f"a stream defines at most {rules.MAX_SERIES_PER_STREAM} series")
            self.dictionary.append(intern_series(rules.read_definition(definition)))

    def _has_room(self, size: int) -> bool:
        full = self._held_bytes + size > MAX_HELD_BYTES_PER_STREAM or self._intake.held_bytes + size > MAX_HELD_BYTES
        if self._gapped and not full and not self._held_bytes:
            self._closed = True
            self._on_close(self)
            raise Refusal(
                Reason.OVERLOADED,
                "telemetry was left out while the database was away: connect again and send it from the spool",
                retry_after_s=1.0,
            )
        self._gapped = self._gapped or full
        return not self._gapped

    def _keep(self, raw: bytes, batch: telemetry_pb2.TelemetryBatch, samples: int) -> None:
        base_ms = batch.base_time_ms
        newest_ms = base_ms + max(batch.time_offset_ms, default=0)
        parsed = batch if len(raw) > _PARSED_AGAIN_BYTES else None
        self._frames.append(Frame(raw, parsed, batch.batch_seq, batch.dropped_through, base_ms, newest_ms, samples))
        self._held_bytes += len(raw)
        self._intake.add(self, len(raw))

    def _count_dropped_by_node(self, total: int) -> None:
        if total > self._dropped_total:
            # The first total of a stream may tell of drops that an earlier stream counted already.
            if self._dropped_total:
                self._intake.metrics.dropped.labels("node").inc(min(total - self._dropped_total, 2**32))
            self._dropped_total = total
