"""Samples of one node over time, thinned evenly. Runs on a reader thread, bounded in chunks and in samples."""

from __future__ import annotations

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import admin_pb2, telemetry_pb2
from fleet_server.telemetry import chunks, rules, store
from fleet_server.telemetry.chunks import ChunkError
from fleet_server.telemetry.flushing import LONGEST_CHUNK_MS
from fleet_server.telemetry.rules import Series, Window
from fleet_server.telemetry.series import decode_series
from fleet_server.telemetry.store import Connection

log = get_logger(__name__)

MAX_CHUNKS = 5000
_MAX_GATHERED = 4

Samples = dict[int, list[tuple[int, float]]]


def read_history(conn: Connection, node_id: str, series_glob: str, view: Window) -> admin_pb2.TelemetryHistoryResponse:
    """Samples of the series whose names fit.

    Raises:
        Refusal: INVALID_ARGUMENT for the glob, or for so many series that each would have next to no sample.
    """
    fits = rules.glob_matcher(series_glob)
    wanted = {
        row.series_no: decode_series(row.name, row.labels, row.kind, row.unit)
        for row in store.load_series(conn, [node_id])
        if fits(row.name)
    }
    if not wanted:
        return admin_pb2.TelemetryHistoryResponse()
    if len(wanted) > rules.MAX_SAMPLES_IN_ALL // 10:
        raise Refusal(
            Reason.INVALID_ARGUMENT, f"{len(wanted)} series match: narrow the glob to those that you want to see"
        )
    view = view._replace(samples=min(view.samples, rules.MAX_SAMPLES_IN_ALL // len(wanted)))
    positions = store.chunk_positions(conn, node_id, view.from_ms, view.to_ms, LONGEST_CHUNK_MS)
    samples: Samples = {number: [] for number in wanted}
    for end_ms, payload in store.load_payloads(conn, rules.spread(positions, MAX_CHUNKS)):
        try:
            _gather(samples, payload, end_ms, view)
        except ChunkError as error:
            log.error("telemetry_chunk_unreadable", node_id=node_id, detail=str(error))
    ordered = sorted(wanted.items(), key=lambda item: item[1])
    histories = (_history(series, rules.thin(samples[number], view)) for number, series in ordered)
    return admin_pb2.TelemetryHistoryResponse(series=[each for each in histories if each.at_ms])


def _gather(samples: Samples, payload: bytes, end_ms: int, view: Window) -> None:
    numbers, batches = chunks.unpack(payload)
    columns = [samples.get(number) for number in numbers]
    if not any(column is not None for column in columns):
        return
    for batch in batches:
        base_ms = batch.base_time_ms
        for stream_number, offset_ms, value in zip(batch.series, batch.time_offset_ms, batch.values, strict=False):
            column = columns[stream_number] if stream_number < len(columns) else None
            if column is None or not rules.is_measurement(value):
                continue
            at_ms = min(base_ms + offset_ms, end_ms)
            if view.from_ms <= at_ms <= view.to_ms:
                column.append((at_ms, value))
                if len(column) > _MAX_GATHERED * rules.MAX_SAMPLES:
                    column[:] = rules.thin(column, view)


def _history(series: Series, samples: list[tuple[int, float]]) -> admin_pb2.SeriesHistory:
    return admin_pb2.SeriesHistory(
        name=series.name,
        labels=dict(series.labels),
        kind=telemetry_pb2.SeriesKind.ValueType(series.kind),
        unit=series.unit,
        at_ms=[at_ms for at_ms, _ in samples],
        values=[value for _, value in samples],
    )
