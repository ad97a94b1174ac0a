"""SQL of the export: chunks by position, and how far each export is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fleet_server.database.engine import Connection, sql

__all__ = ["Connection"]

_MARKS_AT_ONCE = 256
_PLACES = "SELECT position, end_ms, length(payload) FROM telemetry_chunks"
_LOOKED_AT = 10_000


class Place(NamedTuple):
    """Where a chunk stands, until when it goes in Unix milliseconds, and how many bytes it has."""

    position: int
    end_ms: int
    size: int


class StoredChunk(NamedTuple):
    """One chunk. `end_ms`: no sample of it is later, Unix milliseconds."""

    position: int
    node_id: str
    end_ms: int
    payload: bytes


class ExportRow(NamedTuple):
    """How far an export is, and who runs it: `beat` changes with each of the holder's signs of life."""

    position: int
    holder: str
    beat: int


def places_after(conn: Connection, position: int, limit: int) -> list[Place]:
    """Where chunks above a position stand, by position."""
    text = f"{_PLACES} WHERE position > ? ORDER BY position LIMIT ?"
    return [Place(*row) for row in conn.exec_driver_sql(sql(conn, text), (position, limit))]


def places_between(conn: Connection, above: int, up_to: int) -> list[Place]:
    """Where the chunks of a range of positions stand, by position."""
    text = f"{_PLACES} WHERE position > ? AND position <= ? ORDER BY position"
    return [Place(*row) for row in conn.exec_driver_sql(sql(conn, text), (above, up_to))]


def chunks_at(conn: Connection, positions: Sequence[int]) -> list[StoredChunk]:
    """Chunks by position; those that are gone are missing."""
    found: list[StoredChunk] = []
    for start in range(0, len(positions), _MARKS_AT_ONCE):
        some = tuple(positions[start : start + _MARKS_AT_ONCE])
        marks = ", ".join("?" * len(some))
        text = f"SELECT position, node_id, end_ms, payload FROM telemetry_chunks WHERE position IN ({marks})"  # noqa: S608
        found += [_chunk(tuple(row)) for row in conn.exec_driver_sql(sql(conn, text), some)]
    return sorted(found)


def newest_position(conn: Connection) -> int:
    """Highest position; 0 when there is no chunk."""
    row = conn.exec_driver_sql("SELECT max(position) FROM telemetry_chunks").first()
    return int(row[0] or 0) if row is not None else 0


def position_before(conn: Connection, end_ms: int) -> int:
    """A position below the chunks that ended at a time or later; the newest when there is none.

    Of the first of these, by time: those that follow them were stored later. The lowest of all PostgreSQL would look
    for along the positions, from the oldest chunk on, past a week of them.
    """
    text = (
        "SELECT min(position) FROM"
        " (SELECT position FROM telemetry_chunks WHERE end_ms >= ? ORDER BY end_ms LIMIT ?) AS first"
    )
    row = conn.exec_driver_sql(sql(conn, text), (end_ms, _LOOKED_AT)).first()
    return newest_position(conn) if row is None or row[0] is None else int(row[0]) - 1


def expiries(conn: Connection, node_ids: Sequence[str]) -> dict[str, int]:
    """When each node last gave numbers of its series away, Unix milliseconds; 0 for never."""
    found: dict[str, int] = {}
    for start in range(0, len(node_ids), _MARKS_AT_ONCE):
        some = tuple(node_ids[start : start + _MARKS_AT_ONCE])
        marks = ", ".join("?" * len(some))
        text = f"SELECT node_id, expired_at_ms FROM telemetry_latest WHERE node_id IN ({marks})"  # noqa: S608
        found.update((row[0], row[1]) for row in conn.exec_driver_sql(sql(conn, text), some))
    return found


def load(conn: Connection, name: str) -> ExportRow | None:
    """How far an export is; None when it never ran."""
    text = "SELECT position, holder, beat FROM telemetry_exports WHERE name = ?"
    row = conn.exec_driver_sql(sql(conn, text), (name,)).first()
    return None if row is None else ExportRow(row[0], row[1], row[2])


def create(conn: Connection, name: str, row: ExportRow) -> bool:
    """Begin an export; False when somebody else just did."""
    text = "INSERT INTO telemetry_exports (name, position, holder, beat) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
    return conn.exec_driver_sql(sql(conn, text), (name, *row)).rowcount == 1


def take_over(conn: Connection, name: str, seen: ExportRow, holder: str) -> bool:
    """Be the holder from now on; False when the one before gave a sign of life since it was seen."""
    text = "UPDATE telemetry_exports SET holder = ?, beat = beat + 1 WHERE name = ? AND holder = ? AND beat = ?"
    return conn.exec_driver_sql(sql(conn, text), (holder, name, seen.holder, seen.beat)).rowcount == 1


def save(conn: Connection, name: str, holder: str, position: int) -> bool:
    """Note how far it is, which is a sign of life; False when it is somebody else's by now."""
    text = "UPDATE telemetry_exports SET position = ?, beat = beat + 1 WHERE name = ? AND holder = ?"
    return conn.exec_driver_sql(sql(conn, text), (position, name, holder)).rowcount == 1


def release(conn: Connection, name: str, holder: str, position: int) -> None:
    """Let whoever waits have it at once."""
    text = "UPDATE telemetry_exports SET position = ?, holder = '', beat = beat + 1 WHERE name = ? AND holder = ?"
    conn.exec_driver_sql(sql(conn, text), (position, name, holder))


def _chunk(row: tuple[int, str, int, bytes]) -> StoredChunk:
    return StoredChunk(row[0], row[1], row[2], bytes(row[3]))
