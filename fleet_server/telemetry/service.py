"""The telemetry room: takes in frames of streams, answers operators and Prometheus (docs/protocol.md, "Telemetry")."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client.core import Metric

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet.v1 import admin_pb2, telemetry_pb2
from fleet_server.database.engine import Database
from fleet_server.observability.metrics import TelemetryMetrics
from fleet_server.telemetry import federation, rules, store
from fleet_server.telemetry.directory import NodesPort, SeriesDirectory
from fleet_server.telemetry.flushing import Flusher
from fleet_server.telemetry.history import read_history
from fleet_server.telemetry.stream import Ack, Intake, TelemetryStream

log = get_logger(__name__)

__all__ = ["TelemetryService", "TelemetryStream"]

FLUSH_INTERVAL_S = 1.0
RETENTION_INTERVAL_S = 60.0
MAX_LATEST = 20_000
_DELETED_AT_ONCE = 200
_PAUSE_S = 0.05


class TelemetryService:
    """Everything that the rest of the server does with telemetry.

    Args:
        retention_s: seconds that samples are kept.
    """

    def __init__(
        self, *, database: Database, clock: Clock, nodes: NodesPort, metrics: TelemetryMetrics, retention_s: float
    ) -> None:
        self._database = database
        self._clock = clock
        self._nodes = nodes
        self._metrics = metrics
        self._retention_ms = int(retention_s * 1000)
        self._urgent = asyncio.Event()
        self._intake = Intake(metrics, self._urgent.set)
        self._directory = SeriesDirectory(database, nodes)
        self._flusher = Flusher(
            database=database,
            clock=clock,
            metrics=metrics,
            intake=self._intake,
            directory=self._directory,
            nodes=nodes,
            retention_ms=self._retention_ms,
        )

    def open_stream(self, node_id: str, epoch: int, ack: Ack) -> TelemetryStream:
        """Telemetry of a new stream; it is stored as long as that is the newest of its node.

        Args:
            ack: called on the loop with the highest batch_seq that is stored or was declared lost, after the commit.
        """
        self._directory.stream_opened(node_id, epoch)
        ended = self._directory.stream_closed
        return TelemetryStream(node_id, epoch, ack, self._intake, lambda stream: ended(stream.node_id))

    async def run_flush(self) -> None:
        """Store what came in once a second, sooner when much waits, until cancelled."""
        while True:
            await self._wait_due()
            try:
                await self.flush()
            except Refusal as refusal:
                log.warning("telemetry_flush_put_off", reason=refusal.reason, held_bytes=self._intake.held_bytes)

    async def flush(self) -> None:
        """Store what has come in.

        Raises:
            Refusal: UNAVAILABLE while the database is away; everything is kept, bounded, and not acknowledged.
        """
        await self._flusher.flush()
        self._directory.trim()

    async def run_retention(self) -> None:
        """Delete what is older than the retention, in small batches, until cancelled."""
        while True:
            await self._clock.sleep(RETENTION_INTERVAL_S)
            try:
                await self.sweep()
            except Refusal as refusal:
                log.warning("telemetry_retention_put_off", reason=refusal.reason)

    async def sweep(self) -> None:
        """Delete all that is too old now; between batches other writes have their turn."""
        before_ms = self._database.clock.past_ms(self._clock) - self._retention_ms
        while (
            await self._database.write(lambda tx: store.delete_old_chunks(tx.conn, before_ms, _DELETED_AT_ONCE))
            == _DELETED_AT_ONCE
        ):
            await self._clock.sleep(_PAUSE_S)

    async def latest(self, request: admin_pb2.LatestTelemetryRequest) -> admin_pb2.LatestTelemetryResponse:
        """Newest value of each series that fits, by node, name and labels; at most 20,000.

        Raises:
            Refusal: INVALID_ARGUMENT, NO_TARGETS.
        """
        fits = rules.glob_matcher(request.series_glob)
        answer = admin_pb2.LatestTelemetryResponse()
        for node_id, node in await self._directory.select(list(request.selector.patterns)):
            for latest in sorted(each for each in node.latest() if fits(each.series.name)):
                if len(answer.values) >= MAX_LATEST:
                    answer.truncated = True
                    return answer
                series = latest.series
                answer.values.add(
                    node_id=node_id,
                    node_name=node.name,
                    name=series.name,
                    labels=dict(series.labels),
                    kind=telemetry_pb2.SeriesKind.ValueType(series.kind),
                    unit=series.unit,
                    at_ms=latest.at_ms,
                    value=latest.value,
                )
        return answer

    async def history(self, request: admin_pb2.TelemetryHistoryRequest) -> admin_pb2.TelemetryHistoryResponse:
        """Samples of a node's series over a window of time, thinned evenly.

        Raises:
            Refusal: NOT_FOUND for the node; INVALID_ARGUMENT for the window or the glob.
        """
        node = await self._nodes.get(request.node)
        view = rules.window(request.from_ms, request.to_ms, request.max_samples, self._clock.now_ms())
        return await self._database.read(lambda conn: read_history(conn, node.node_id, request.series_glob, view))

    def federate(self) -> Iterable[Metric]:
        """Newest values of the nodes that stream now, for /federate: returns at once, iterated on another thread."""
        return federation.families(self._directory.live(), self._metrics.federation_dropped)

    def close(self) -> None:
        """End the worker thread; flush before."""
        self._flusher.close()

    async def _wait_due(self) -> None:
        due = asyncio.ensure_future(self._clock.sleep(FLUSH_INTERVAL_S))
        urgent = asyncio.ensure_future(self._urgent.wait())
        try:
            await asyncio.wait((due, urgent), return_when=asyncio.FIRST_COMPLETED)
        finally:
            due.cancel()
            urgent.cancel()
        self._urgent.clear()
