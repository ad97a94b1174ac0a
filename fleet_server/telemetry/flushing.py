"""From frames to rows: one transaction a second for all nodes, one chunk for each stream that sent something.

Mental model
    The loop takes frames (stream.py). A flush hands everything that waits to one worker thread, which sorts out
    replays, numbers series, keeps newest values and compresses; then one write stores it all, and the acks follow its
    commit. One flush at a time, and none goes on with what came in beside it, for something always does: chunks would
    shrink to a few frames, at a commit each. What was prepared is written until it is stored: while the database is
    away frames gather behind it, bounded, and past the bound they are left to the nodes' spools.
    Only what came on a node's newest stream is stored: the transaction looks, with one read for all nodes of the flush.
    A node may have changed its replica since its series were read: then the flush is prepared once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Database, IntegrityError
from fleet_server.database.writer import Transaction
from fleet_server.observability.metrics import TelemetryMetrics
from fleet_server.telemetry import chunks, rules, store
from fleet_server.telemetry.directory import NodesPort, SeriesDirectory
from fleet_server.telemetry.rules import Series
from fleet_server.telemetry.series import DROPPED, NodeSeries, encode_labels
from fleet_server.telemetry.store import ChunkRow, LatestRow, SeriesRow
from fleet_server.telemetry.stream import Frame, Intake, TelemetryStream

log = get_logger(__name__)

LONGEST_CHUNK_MS = 3600 * 1000
EXPIRY_EVERY_MS = 3600 * 1000
_SMALL_PAYLOAD_BYTES = 16 * 1024
_LARGE_PAYLOAD_EVERY_MS = 10_000

Taken = list[tuple[TelemetryStream, list[Frame]]]


@dataclass(slots=True)
class Prepared:
    """Rows of one flush, and what follows once they are stored."""

    now_ms: int
    expired: list[tuple[str, int]] = field(default_factory=list)
    series: list[SeriesRow] = field(default_factory=list)
    chunks: list[ChunkRow] = field(default_factory=list)
    latest: list[LatestRow] = field(default_factory=list)
    progress: list[tuple[int, str]] = field(default_factory=list)
    stored: list[tuple[TelemetryStream, int, int]] = field(default_factory=list)
    capped_streams: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    """Of the stream that each node's rows come from."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write, only to acknowledge."""
        return not (self.expired or self.series or self.chunks or self.latest or self.progress)

    def without(self, node_ids: set[str]) -> Prepared:
        """The rows of all other nodes."""
        return Prepared(
            self.now_ms,
            expired=[row for row in self.expired if row[0] not in node_ids],
            series=[row for row in self.series if row.node_id not in node_ids],
            chunks=[row for row in self.chunks if row.node_id not in node_ids],
            latest=[row for row in self.latest if row.node_id not in node_ids],
            progress=[row for row in self.progress if row[1] not in node_ids],
        )


class Flusher:
    """Stores what streams took in.

    Args:
        retention_ms: how long chunks are kept, and series after their last sample a little longer.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        metrics: TelemetryMetrics,
        intake: Intake,
        directory: SeriesDirectory,
        nodes: NodesPort,
        retention_ms: int,
    ) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._intake = intake
        self._directory = directory
        self._nodes = nodes
        self._retention_ms = retention_ms
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="telemetry")
        self._packer = chunks.Packer()
        self._one_at_a_time = asyncio.Lock()
        self._taken: Taken = []
        self._prepared: Prepared | None = None

    async def flush(self) -> None:
        """Store what waits now.

        Raises:
            Refusal: UNAVAILABLE while the database is away; everything is kept for the next flush.
        """
        async with self._one_at_a_time:
            if self._prepared is not None or self._taken:
                await self._step()  # what an earlier flush could not store
            if self._intake.waiting:
                await self._step()

    def close(self) -> None:
        """End the worker thread."""
        self._worker.shutdown(wait=True)

    async def _step(self) -> None:
        if self._prepared is None:
            self._prepared = await self._prepare_taken()
        prepared = self._prepared
        try:
            try:
                stale = await self._write(prepared)
            except IntegrityError:
                for node_id in prepared.epochs:  # another replica numbered a node's series since they were read
                    self._directory.forget(node_id)
                prepared = self._prepared = await self._prepare_taken()
                stale = await self._write(prepared)
        except Refusal as refusal:
            if refusal.reason not in (Reason.UNAVAILABLE, Reason.OVERLOADED):
                self._give_up(prepared)
            raise
        except Exception:
            self._give_up(prepared)  # the rows are of no use: keep nothing of it
            log.exception("telemetry_flush_failed", streams=len(prepared.stored))
            return
        self._prepared, self._taken = None, []
        self._finish(prepared, stale)

    async def _prepare_taken(self) -> Prepared:
        """Rows for what was taken, and kept until they are stored."""
        self._taken = self._of_newest(self._taken or self._intake.take())
        nodes = await self._directory.load({stream.node_id for stream, _ in self._taken})
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._prepare, nodes, self._taken)

    def _of_newest(self, taken: Taken) -> Taken:
        """Without the streams that others of the same node here have overtaken."""
        kept: Taken = []
        for stream, frames in taken:
            if self._directory.is_overtaken(stream.node_id, stream.epoch):
                stream.overtaken(_size(frames))
            else:
                kept.append((stream, frames))
        return kept

    async def _write(self, prepared: Prepared) -> set[str]:
        """Store it, without the nodes that have a newer stream elsewhere, which are answered."""
        if prepared.empty:
            return set()
        return await self._database.write(lambda tx: _save(tx, prepared, self._nodes))

    def _finish(self, prepared: Prepared, stale: set[str]) -> None:
        for node_id in stale:
            self._directory.forget(node_id)
        for stream, batch_seq, held_bytes in prepared.stored:
            if stream.node_id in stale:
                stream.overtaken(held_bytes)
            else:
                stream.stored(batch_seq, held_bytes)
        self._metrics.chunks.inc(sum(len(row.payload) for row in prepared.chunks))
        if prepared.capped_streams:
            self._metrics.dropped.labels("series_cap").inc(prepared.capped_streams)

    def _give_up(self, prepared: Prepared) -> None:
        self._prepared, self._taken = None, []
        for stream, _, held_bytes in prepared.stored:
            self._directory.forget(stream.node_id)
            stream.lost(held_bytes)

    def _prepare(self, nodes: dict[str, NodeSeries], taken: Taken) -> Prepared:
        """On the worker thread: rows for what was taken."""
        now_ms = self._clock.now_ms()
        prepared = Prepared(now_ms)
        touched: dict[str, NodeSeries] = {}
        for stream, frames in taken:
            node = nodes.get(stream.node_id)
            held_bytes = _size(frames)
            acked = max(max(frame.batch_seq, frame.dropped_through) for frame in frames)
            prepared.stored.append((stream, acked, held_bytes))
            if node is None:
                continue  # the node is gone; so is what it told
            fresh = _fresh(node, frames)
            if fresh:
                self._add_stream(prepared, stream, node, fresh, now_ms)
                touched[stream.node_id] = node
                prepared.epochs[stream.node_id] = stream.epoch
        for node_id, node in touched.items():
            _add_node(prepared, node_id, node, now_ms)
        return prepared

    def _add_stream(
        self, prepared: Prepared, stream: TelemetryStream, node: NodeSeries, frames: Sequence[Frame], now_ms: int
    ) -> None:
        self._expire(prepared, stream.node_id, node, now_ms)
        _number(stream, node, frames)
        if not node.note((frame.batch for frame in reversed(frames)), stream.numbers, now_ms):
            prepared.capped_streams += 1
        for group in _groups(frames):
            payload = self._packer.pack(stream.numbers, [frame.raw for frame in group])
            prepared.chunks.append(_chunk(stream.node_id, group, payload, now_ms))

    def _expire(self, prepared: Prepared, node_id: str, node: NodeSeries, now_ms: int) -> None:
        if now_ms - node.expired_at_ms < EXPIRY_EVERY_MS:
            return
        node.expired_at_ms = now_ms
        # Longer than any chunk lives that holds a sample of it: a number that is given to another series would name
        # that one there.
        expired = node.expire(now_ms - self._retention_ms - 2 * LONGEST_CHUNK_MS)
        if expired:
            node.saved_at_ms = 0  # its newest samples stand by number, too
            prepared.expired.extend((node_id, number) for number in expired)


def _number(stream: TelemetryStream, node: NodeSeries, frames: Sequence[Frame]) -> None:
    """Give the series that these frames use their numbers in the database."""
    numbers, dictionary = stream.numbers, stream.dictionary
    if stream.generation != node.generation:
        stream.generation = node.generation
        numbers[:] = [node.find(series) for series in dictionary[: len(numbers)]]
        stream.unplaced = DROPPED in numbers
    if stream.unplaced:  # they had expired, or there was no room
        for series in {series for frame in frames for series in frame.batch.series if series < len(numbers)}:
            if numbers[series] == DROPPED:
                numbers[series] = node.number(dictionary[series])
        stream.unplaced = DROPPED in numbers
    if len(dictionary) > len(numbers):
        added = [node.number(series) for series in dictionary[len(numbers) :]]
        numbers += added
        stream.unplaced |= DROPPED in added


def _fresh(node: NodeSeries, frames: Iterable[Frame]) -> list[Frame]:
    """Frames that are not stored yet; the node's progress moves on."""
    fresh: list[Frame] = []
    for frame in frames:
        newest = frame.newest_ms
        if rules.is_replay(frame.batch_seq, newest, node.last_batch_seq, node.newest_ms):
            continue
        node.last_batch_seq = frame.batch_seq
        node.newest_ms = max(node.newest_ms, newest)
        if frame.samples:
            fresh.append(frame)
    return fresh


def _groups(frames: Sequence[Frame]) -> Iterable[list[Frame]]:
    """Runs of frames that lie close in time, so that a chunk is found by its time: a spool's backlog may span days."""
    group: list[Frame] = []
    start_ms = end_ms = 0
    for frame in frames:
        base, newest = frame.base_ms, frame.newest_ms
        if group and max(end_ms, newest) - min(start_ms, base) > LONGEST_CHUNK_MS:
            yield group
            group = []
        start_ms, end_ms = (min(start_ms, base), max(end_ms, newest)) if group else (base, newest)
        group.append(frame)
    if group:
        yield group


def _chunk(node_id: str, frames: Sequence[Frame], payload: bytes, now_ms: int) -> ChunkRow:
    # No later than now, whatever a node's clock says: retention goes by these times.
    end_ms = min(max(frame.newest_ms for frame in frames), now_ms)
    start_ms = min(end_ms, *(frame.base_ms for frame in frames))
    return ChunkRow(
        node_id=node_id,
        start_ms=max(start_ms, end_ms - LONGEST_CHUNK_MS),
        end_ms=end_ms,
        samples=sum(frame.samples for frame in frames),
        payload=payload,
    )


def _series_row(node_id: str, number: int, series: Series) -> SeriesRow:
    return SeriesRow(node_id, number, series.name, encode_labels(series), series.kind, series.unit)


def _add_node(prepared: Prepared, node_id: str, node: NodeSeries, now_ms: int) -> None:
    prepared.series.extend(_series_row(node_id, number, series) for number, series in node.take_unsaved())
    payload = node.payload()
    due = now_ms - node.saved_at_ms >= _LARGE_PAYLOAD_EVERY_MS
    if due or len(payload) <= _SMALL_PAYLOAD_BYTES:
        prepared.latest.append(LatestRow(node_id, node.last_batch_seq, payload))
        node.saved_at_ms = now_ms
    else:
        prepared.progress.append((node.last_batch_seq, node_id))


def _size(frames: Sequence[Frame]) -> int:
    return sum(len(frame.raw) for frame in frames)


def _save(tx: Transaction, prepared: Prepared, nodes: NodesPort) -> set[str]:
    """Store what came on nodes' newest streams; the nodes of the rest."""
    newest = nodes.epochs(tx.conn, sorted(prepared.epochs))
    stale = {node_id for node_id, epoch in prepared.epochs.items() if newest.get(node_id) != epoch}
    rows = prepared.without(stale) if stale else prepared
    store.delete_series(tx.conn, rows.expired)
    store.note_expiry(tx.conn, sorted({node_id for node_id, _ in rows.expired}), prepared.now_ms)
    store.insert_series(tx.conn, rows.series)
    store.insert_chunks(tx.conn, rows.chunks)
    store.save_latest(tx.conn, rows.latest)
    store.save_progress(tx.conn, rows.progress)
    return stale
