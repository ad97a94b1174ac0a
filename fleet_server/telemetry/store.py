"""SQL over `telemetry_series`, `telemetry_chunks` and `telemetry_latest`."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from fleet_server.database.bulk import EachUpdate, bounded, insert_many
from fleet_server.database.engine import for_update_of_free, sql
from fleet_server.database.statements import execute_many

__all__ = ["Connection"]

_CHUNK = 256


class SeriesRow(NamedTuple):
    """One series of a node."""

    node_id: str
    series_no: int
    name: str
    labels: str
    kind: int
    unit: str


class ChunkRow(NamedTuple):
    """Frames of one node, compressed. Times in Unix milliseconds."""

    node_id: str
    start_ms: int
    end_ms: int
    samples: int
    payload: bytes


class LatestRow(NamedTuple):
    """Newest samples of a node, and how far its batches are stored."""

    node_id: str
    last_batch_seq: int
    payload: bytes


_SERIES = ", ".join(SeriesRow._fields)
_SERIES_KINDS = dict(zip(SeriesRow._fields, ("text", "integer", "text", "text", "integer", "text"), strict=True))
_CHUNK_KINDS = dict(zip(ChunkRow._fields, ("text", "bigint", "bigint", "integer", "bytea"), strict=True))
_CHUNK_PAYLOAD = ChunkRow._fields.index("payload")
_LATEST_KINDS = dict(zip(LatestRow._fields, ("text", "bigint", "bytea"), strict=True))
_LATEST_PAYLOAD = LatestRow._fields.index("payload")
_OF_NODE = "t.node_id = v.node_id"
_EXPIRED = EachUpdate("telemetry_latest", {"at_ms": "bigint", "node_id": "text"}, "expired_at_ms = v.at_ms", _OF_NODE)
_PROGRESS = EachUpdate(
    "telemetry_latest", {"batch_seq": "bigint", "node_id": "text"}, "last_batch_seq = v.batch_seq", _OF_NODE
)
_LATEST = ", ".join(LatestRow._fields)


def insert_series(conn: Connection, rows: Sequence[SeriesRow]) -> None:
    """Add series."""
    insert_many(conn, "telemetry_series", _SERIES_KINDS, rows)


def delete_series(conn: Connection, rows: Sequence[tuple[str, int]]) -> None:
    """Delete series: (node_id, series_no)."""
    execute_many(conn, "DELETE FROM telemetry_series WHERE node_id = ? AND series_no = ?", rows)


def note_expiry(conn: Connection, node_ids: Sequence[str], at_ms: int) -> None:
    """Note that numbers of these nodes' series may name others from now on."""
    _EXPIRED.run(conn, [(at_ms, node_id) for node_id in node_ids])


def insert_chunks(conn: Connection, rows: Sequence[ChunkRow]) -> None:
    """Add chunks."""
    for some in bounded(rows, _CHUNK_PAYLOAD):
        insert_many(conn, "telemetry_chunks", _CHUNK_KINDS, some)


def save_latest(conn: Connection, rows: Sequence[LatestRow]) -> None:
    """Write newest samples and how far batches are stored."""
    replaced = (
        " ON CONFLICT (node_id) DO UPDATE SET last_batch_seq = excluded.last_batch_seq, payload = excluded.payload"
    )
    for some in bounded(rows, _LATEST_PAYLOAD):
        insert_many(conn, "telemetry_latest", _LATEST_KINDS, some, replaced)


def save_progress(conn: Connection, rows: Sequence[tuple[int, str]]) -> None:
    """Write how far batches are stored: (last_batch_seq, node_id)."""
    _PROGRESS.run(conn, rows)


def load_series(conn: Connection, node_ids: Sequence[str]) -> Iterator[SeriesRow]:
    """Series of nodes, by node and number."""
    for chunk in _chunks(node_ids):
        text = f"SELECT {_SERIES} FROM telemetry_series WHERE node_id IN ({_marks(chunk)}) ORDER BY node_id, series_no"
        for row in conn.exec_driver_sql(sql(conn, text), tuple(chunk)):
            yield SeriesRow._make(row)


def load_latest(conn: Connection, node_ids: Sequence[str]) -> Iterator[LatestRow]:
    """Newest samples of nodes."""
    for chunk in _chunks(node_ids):
        text = f"SELECT {_LATEST} FROM telemetry_latest WHERE node_id IN ({_marks(chunk)})"
        for row in conn.exec_driver_sql(sql(conn, text), tuple(chunk)):
            yield LatestRow._make(row)


def chunk_positions(conn: Connection, node_id: str, from_ms: int, to_ms: int, longest_ms: int) -> list[int]:
    """Positions of a node's chunks that overlap a window, in time order. `longest_ms`: no chunk spans more."""
    text = (
        "SELECT position FROM telemetry_chunks WHERE node_id = ? AND start_ms >= ? AND start_ms <= ? AND end_ms >= ?"
        " ORDER BY start_ms, position"
    )
    fields = (node_id, from_ms - longest_ms, to_ms, from_ms)
    return [row[0] for row in conn.exec_driver_sql(sql(conn, text), fields)]


def load_payloads(conn: Connection, positions: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(end_ms, payload) of chunks."""
    for chunk in _chunks(positions):
        text = f"SELECT end_ms, payload FROM telemetry_chunks WHERE position IN ({_marks(chunk)})"
        for row in conn.exec_driver_sql(sql(conn, text), tuple(chunk)):
            yield row[0], bytes(row[1])


def delete_old_chunks(conn: Connection, before_ms: int, limit: int) -> int:
    """Delete chunks that ended before a time, without those that another replica is at; how many."""
    text = (
        "DELETE FROM telemetry_chunks WHERE position IN"
        f" (SELECT position FROM telemetry_chunks WHERE end_ms < ? ORDER BY end_ms LIMIT ?{for_update_of_free(conn)})"
    )
    return conn.exec_driver_sql(sql(conn, text), (before_ms, limit)).rowcount


def _chunks(items: Sequence[str] | Sequence[int]) -> Iterator[Sequence[str | int]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _marks(items: Sequence[object]) -> str:
    return ", ".join("?" * len(items))
