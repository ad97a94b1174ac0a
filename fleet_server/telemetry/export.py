"""Telemetry on its way out, into a system of the user's own.

Mental model
    Servers store chunks and know nothing of this: a process of its own reads what was committed, by position, and
    sends it. So a receiver that is slow or away costs servers nothing, and what it missed goes out later, as long as
    the retention keeps it. Each chunk goes out at least once, in about the order it was stored; after a restart what
    went out in the last minute does so again. One process exports. A second one waits until the first gives no sign of
    life; both judge that by beats that they see change, on their own clocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Database
from fleet_server.observability.metrics import ExportMetrics
from fleet_server.telemetry import chunks, export_rules, export_store, store
from fleet_server.telemetry.chunks import ChunkError
from fleet_server.telemetry.export_rules import Cursor
from fleet_server.telemetry.export_sending import Sender
from fleet_server.telemetry.export_store import Connection, ExportRow, StoredChunk
from fleet_server.telemetry.otlp import ExportMetricsServiceRequest, Origin, RequestBuilder
from fleet_server.telemetry.otlp_sinks import Sink
from fleet_server.telemetry.rules import Series
from fleet_server.telemetry.series import decode_series

log = get_logger(__name__)

NAME = "otlp"
LOOK_S = 1.0
BEAT_S = 3.0
SILENT_S = 15.0
STRAGGLERS_S = 5.0
CHUNKS_AT_ONCE = 256
BYTES_AT_ONCE = 16 * 1024 * 1024
"""Of chunks as they are stored: a node that was away for a day comes back with chunks of megabytes. Opened they take
several times as much, so that is done one at a time."""
_NODES_AT_ONCE = 16
MAX_CACHED_NODES = 20_000

Describe = Callable[[Connection, Sequence[str]], Mapping[str, Origin]]
"""Nodes by id, as people know them; on a reader thread."""


@dataclass(slots=True)
class Gathered:
    """Chunks, those of them that can be read, and what has to be known to read them."""

    chunks: Sequence[StoredChunk]
    readable: list[StoredChunk] = field(default_factory=list)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    series: dict[str, Mapping[int, Series]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _KnownSeries:
    expired_at_ms: int
    by_number: Mapping[int, Series]


class Exporter:
    """One export.

    Args:
        holder: name of this process, unlike every other one's.
        cluster: name of the cluster.
        backfill_ms: where an export that never ran begins: so far back, or with what is stored from now on.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        sink: Sink,
        metrics: ExportMetrics,
        describe: Describe,
        holder: str,
        cluster: str,
        backfill_ms: int = 0,
    ) -> None:
        self._database = database
        self._clock = clock
        self._sender = Sender(sink=sink, clock=clock, metrics=metrics, cluster=cluster)
        self._metrics = metrics
        self._describe = describe
        self._holder = holder
        self._backfill_ms = backfill_ms
        self._builder = RequestBuilder(cluster)
        self._known: dict[str, _KnownSeries] = {}
        self._cursor: Cursor | None = None
        self._oldest_ms = 0
        self._doing = "starting"

    @property
    def doing(self) -> str:
        """For people: what it does now, or what it waits for."""
        return self._sender.trouble or self._doing

    def lag_s(self) -> float:
        """Age of the oldest samples that go out now, in seconds; 0 when everything has."""
        return max(0.0, (self._clock.now_ms() - self._oldest_ms) / 1000) if self._oldest_ms else 0.0

    async def run(self) -> None:
        """Export until cancelled.

        Raises:
            Refusal: CONFLICT when another process exports instead of this one.
        """
        position = await self._become_holder()
        cursor = self._cursor = Cursor(position)
        self._metrics.active.set(1)
        log.info("telemetry_export_began", position=position)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._keep(cursor))
            both.create_task(self._export(cursor))

    async def release(self) -> None:
        """Let whoever waits go on at once. Once `run` has ended."""
        if self._cursor is not None:
            position = self._cursor.settled
            await self._database.write(lambda tx: export_store.release(tx.conn, NAME, self._holder, position))

    async def _become_holder(self) -> int:
        """Wait until nobody else exports; the position that is settled."""
        seen: ExportRow | None = None
        since_s = self._clock.monotonic()
        while True:
            try:
                row = await self._database.read(lambda conn: export_store.load(conn, NAME)) or await self._create()
                if row != seen:
                    seen, since_s = row, self._clock.monotonic()
                silent = self._clock.monotonic() - since_s >= SILENT_S
                if row is not None and (silent or not row.holder) and await self._take_over(row):
                    return row.position
                self._doing = "another process exports: waiting for it to end"
            except Refusal as refusal:
                self._put_off(refusal)
            await self._clock.sleep(LOOK_S)

    async def _take_over(self, row: ExportRow) -> bool:
        return await self._database.write(lambda tx: export_store.take_over(tx.conn, NAME, row, self._holder))

    def _put_off(self, refusal: Refusal) -> None:
        self._doing = f"waiting for the database: {refusal.detail}"
        log.warning("telemetry_export_put_off", reason=str(refusal.reason))

    async def _create(self) -> ExportRow | None:
        since_ms = self._clock.now_ms() - self._backfill_ms
        backfill = self._backfill_ms > 0

        def first(conn: Connection) -> int:
            return export_store.position_before(conn, since_ms) if backfill else export_store.newest_position(conn)

        position = await self._database.read(first)
        row = ExportRow(position, "", 0)
        made = await self._database.write(lambda tx: export_store.create(tx.conn, NAME, row))
        return row if made else None

    async def _keep(self, cursor: Cursor) -> None:
        """Give signs of life, and note how far it is."""
        while True:
            await self._clock.sleep(BEAT_S)
            try:
                mine = await self._database.write(
                    lambda tx: export_store.save(tx.conn, NAME, self._holder, cursor.settled)
                )
            except Refusal as refusal:
                log.warning("telemetry_export_not_noted", reason=str(refusal.reason))
                continue
            if not mine:
                self._cursor = None
                raise Refusal(
                    Reason.CONFLICT,
                    "another process took over the export of telemetry, for this one gave no sign of life:"
                    " start it again, and it waits for its turn",
                )

    async def _export(self, cursor: Cursor) -> None:
        looked_s = float("-inf")
        while True:
            try:
                everything = await self._step(cursor)
                now_s = self._clock.monotonic()
                if now_s - looked_s >= STRAGGLERS_S:
                    await self._look_behind(cursor)
                    looked_s = now_s
            except Refusal as refusal:
                self._put_off(refusal)
                await self._clock.sleep(LOOK_S)
                continue
            self._doing = "exporting"
            if everything:
                self._oldest_ms = 0
                await self._clock.sleep(LOOK_S)

    async def _step(self, cursor: Cursor) -> bool:
        """Export what comes next; whether that is everything."""
        newest = cursor.newest

        def query(conn: Connection) -> tuple[Gathered, int, bool]:
            places = export_store.places_after(conn, newest, CHUNKS_AT_ONCE)
            some = places[: export_rules.so_many([place.size for place in places], BYTES_AT_ONCE)]
            gathered = self._gather(conn, export_store.chunks_at(conn, [place.position for place in some]))
            highest = newest if places else export_store.newest_position(conn)
            return gathered, highest, len(some) == len(places) < CHUNKS_AT_ONCE

        gathered, highest, everything = await self._database.read(query)
        if highest < cursor.settled:
            # Positions began anew: the database was restored, or SQLite had no chunk left to count on from.
            log.warning("telemetry_export_restarts", position=highest, settled=cursor.settled)
            cursor.restart(highest)
        await self._send_all(cursor, gathered)
        return everything

    async def _look_behind(self, cursor: Cursor) -> None:
        """Export what appeared behind what went out already."""
        began_s = self._clock.monotonic()
        above, up_to = cursor.settled, cursor.newest
        if up_to > above:
            places = await self._database.read(lambda conn: export_store.places_between(conn, above, up_to))
            sizes = {place.position: place.size for place in places}
            missing = cursor.missing(place[:2] for place in places)
            while missing:
                count = export_rules.so_many([sizes[each] for each in missing[:CHUNKS_AT_ONCE]], BYTES_AT_ONCE)
                some, missing = missing[:count], missing[count:]

                def query(conn: Connection, some: Sequence[int] = some) -> Gathered:
                    return self._gather(conn, export_store.chunks_at(conn, some))

                await self._send_all(cursor, await self._database.read(query))
        cursor.settle(began_s)

    def _gather(self, conn: Connection, found: Sequence[StoredChunk]) -> Gathered:
        """On a reader thread, one at a time: what these chunks need, of the same snapshot."""
        gathered = Gathered(found)
        named: dict[str, set[int]] = {}
        for chunk in found:
            try:
                numbers, _ = chunks.unpack(chunk.payload)
            except ChunkError as error:
                self._unreadable(chunk.node_id, error)
                continue
            gathered.readable.append(chunk)
            named.setdefault(chunk.node_id, set()).update(number for number in numbers if number >= 0)
        node_ids = sorted(named)
        if not node_ids:
            return gathered
        gathered.origins = self._describe(conn, node_ids)
        expired = export_store.expiries(conn, node_ids)
        if len(self._known) > MAX_CACHED_NODES:
            self._known.clear()
        self._load(conn, [each for each in node_ids if not self._is_current(each, expired.get(each, 0))], expired)
        self._load(conn, [each for each in node_ids if not named[each] <= self._known[each].by_number.keys()], expired)
        gathered.series = {node_id: self._known[node_id].by_number for node_id in node_ids}
        return gathered

    def _is_current(self, node_id: str, expired_at_ms: int) -> bool:
        known = self._known.get(node_id)
        return known is not None and known.expired_at_ms == expired_at_ms

    def _load(self, conn: Connection, node_ids: Sequence[str], expired: Mapping[str, int]) -> None:
        # A few nodes at a time, and kept: 256 with 10,000 series each would take longer than a read may.
        for start in range(0, len(node_ids), _NODES_AT_ONCE):
            found: dict[str, dict[int, Series]] = {node_id: {} for node_id in node_ids[start : start + _NODES_AT_ONCE]}
            for row in store.load_series(conn, list(found)):
                found[row.node_id][row.series_no] = decode_series(row.name, row.labels, row.kind, row.unit)
            for node_id, by_number in found.items():
                self._known[node_id] = _KnownSeries(expired.get(node_id, 0), by_number)

    async def _send_all(self, cursor: Cursor, gathered: Gathered) -> None:
        if not gathered.chunks:
            return
        self._oldest_ms = min(chunk.end_ms for chunk in gathered.chunks)
        requests = self._requests(gathered)
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            await self._sender.send(request)
        cursor.exported((chunk.position, chunk.end_ms) for chunk in gathered.chunks)

    def _requests(self, gathered: Gathered) -> Iterator[ExportMetricsServiceRequest]:
        """On a worker thread, one step at a time."""
        for chunk in gathered.readable:
            origin = gathered.origins.get(chunk.node_id) or Origin(chunk.node_id, chunk.node_id)
            series = gathered.series[chunk.node_id]
            try:
                yield from self._builder.add(origin, series, *chunks.unpack(chunk.payload), chunk.end_ms)
            except ChunkError as error:
                self._unreadable(chunk.node_id, error)
        yield from self._builder.rest()

    def _unreadable(self, node_id: str, error: ChunkError) -> None:
        self._metrics.unreadable.inc()
        log.error("telemetry_chunk_unreadable", node_id=node_id, detail=str(error))
