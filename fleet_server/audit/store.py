"""SQL of the audit: rows, heads, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection

from fleet_server.audit.node_rules import NodeStanding
from fleet_server.audit.rules import AuditRow, Head
from fleet_server.database.engine import sql
from fleet_server.database.statements import execute, execute_many, fetch

LAST_POSITION = 2**63 - 1  # and largest number: a column holds no more

_HEAD = "SELECT writer, number, hash FROM audit_heads"
_COLUMNS = "writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash"
_INSERT_ROW = f"INSERT INTO audit_rows ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only
_ROWS = f"SELECT position, {_COLUMNS} FROM audit_rows"  # noqa: S608 - constants only
# DISTINCT would read the whole index; this takes one step of it per writer.
_WRITERS = (
    "WITH RECURSIVE found (writer) AS (SELECT MIN(writer) FROM audit_rows UNION ALL"
    " SELECT (SELECT MIN(writer) FROM audit_rows AS r WHERE r.writer > found.writer) FROM found"
    " WHERE found.writer IS NOT NULL)"
)
_stored = attrgetter(*_COLUMNS.split(", "))
_NUMBERS_UP_TO = (
    f"{_WRITERS} SELECT writer, (SELECT number FROM audit_rows AS r WHERE r.writer = found.writer AND r.position <= ?"  # noqa: S608
    " ORDER BY number DESC LIMIT 1) FROM found WHERE writer IS NOT NULL"
)
_GROWN = (
    "SELECT h.writer, h.number FROM audit_heads AS h LEFT JOIN audit_signed AS s ON s.writer = h.writer"
    " WHERE s.number IS NULL OR s.number <> h.number"
)
_SET_SIGNED = (
    "INSERT INTO audit_signed (writer, number) VALUES (?, ?)"
    " ON CONFLICT (writer) DO UPDATE SET number = excluded.number"
)
_STANDING = "chain, last_at_ms, day, day_rows, day_bytes, paused_day, finding, finding_at_ms"
_REPLACED = ", ".join(f"{column} = excluded.{column}" for column in _STANDING.split(", "))
_SET_STANDING = (
    f"INSERT INTO node_audits (node_id, {_STANDING}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only
    f" ON CONFLICT (node_id) DO UPDATE SET {_REPLACED}"
)
_SET_HEAD = (
    "INSERT INTO audit_heads (writer, number, hash) VALUES (?, ?, ?)"
    " ON CONFLICT (writer) DO UPDATE SET number = excluded.number, hash = excluded.hash"
)


def head(conn: Connection, writer: str) -> Head:
    """Head of one writer's chain."""
    found = fetch(conn, _HEAD + " WHERE writer = ?", (writer,))
    return Head(*found[0]) if found else Head.start(writer)


def heads(conn: Connection) -> list[Head]:
    """Heads of all chains."""
    return [Head(row[0], row[1], bytes(row[2])) for row in conn.exec_driver_sql(_HEAD)]


def insert(conn: Connection, rows: Sequence[AuditRow], new_head: Head) -> None:
    """Store rows of one chain and its new head. A number that exists already fails: two processes use one writer
    name."""
    execute_many(conn, _INSERT_ROW, list(map(_stored, rows)))
    execute(conn, _SET_HEAD, (new_head.writer, new_head.number, new_head.hash))


def signed_numbers(conn: Connection) -> dict[str, int]:
    """Newest number of each chain that a checkpoint named."""
    return dict(fetch(conn, "SELECT writer, number FROM audit_signed"))


def any_grown(conn: Connection) -> bool:
    """Whether a chain has a row that no checkpoint covers."""
    return bool(fetch(conn, _GROWN + " LIMIT 1"))


def grown(conn: Connection) -> list[tuple[str, int]]:
    """Writer and newest number of each chain that has a row that no checkpoint covers."""
    return [(writer, number) for writer, number in fetch(conn, _GROWN)]


def note_signed(conn: Connection, numbers: Sequence[tuple[str, int]]) -> None:
    """A checkpoint named these writers at these numbers. Call it behind `insert_checkpoint`, which lets one in."""
    execute_many(conn, _SET_SIGNED, numbers)


def hashes(conn: Connection, writer: str, first: int, last: int) -> dict[int, bytes]:
    """Hashes of one chain's rows by number, from `first` to `last`."""
    text = "SELECT number, hash FROM audit_rows WHERE writer = ? AND number BETWEEN ? AND ?"
    return {number: bytes(digest) for number, digest in fetch(conn, text, (writer, first, last))}


def node_standing(conn: Connection, node_id: str) -> NodeStanding:
    """What is known of a node's chain, beside its rows."""
    found = fetch(conn, f"SELECT {_STANDING} FROM node_audits WHERE node_id = ?", (node_id,))  # noqa: S608 - constants
    return NodeStanding(*found[0]) if found else NodeStanding()


def set_node_standing(conn: Connection, node_id: str, standing: NodeStanding) -> None:
    """Replace it."""
    execute(conn, _SET_STANDING, (node_id, *astuple(standing)))


def rows_after(conn: Connection, position: int, limit: int) -> list[AuditRow]:
    """Rows in the order of storage, after a position."""
    return _audit_rows(fetch(conn, f"{_ROWS} WHERE position > ? ORDER BY position LIMIT ?", (position, limit)))


def rows_between(conn: Connection, writer: str, after: int, last: int, limit: int) -> list[AuditRow]:
    """Rows of one chain by number, those after `after` up to `last`."""
    text = f"{_ROWS} WHERE writer = ? AND number > ? AND number <= ? ORDER BY number LIMIT ?"
    return _audit_rows(fetch(conn, text, (writer, after, last, limit)))


def _audit_rows(found: Sequence[tuple[Any, ...]]) -> list[AuditRow]:
    return [
        AuditRow(
            position=row[0],
            writer=row[1],
            number=row[2],
            at_ms=row[3],
            kind=row[4],
            actor=row[5],
            subject=row[6],
            detail=bytes(row[7]),
            previous_hash=bytes(row[8]),
            hash=bytes(row[9]),
        )
        for row in found
    ]


def last_position(conn: Connection) -> int:
    """Position of the newest row; 0 without rows."""
    return int(conn.exec_driver_sql("SELECT COALESCE(MAX(position), 0) FROM audit_rows").scalar_one())


def numbers_up_to(conn: Connection, position: int) -> dict[str, int]:
    """Newest number of each chain among the rows up to `position`."""
    found = fetch(conn, _NUMBERS_UP_TO, (position,))
    return {writer: number for writer, number in found if number is not None}


def position_before_last(conn: Connection, count: int) -> int:
    """Position after which `count` rows stand; 0 when there are fewer."""
    text = sql(conn, "SELECT position FROM audit_rows ORDER BY position DESC LIMIT 1 OFFSET ?")
    return int(conn.exec_driver_sql(text, (count,)).scalar() or 0)


def newest_checkpoint(conn: Connection) -> tuple[int, bytes]:
    """Number and serialised `Signed` of the newest checkpoint; (0, b"") without one."""
    row = conn.exec_driver_sql("SELECT number, signed FROM audit_checkpoints ORDER BY number DESC LIMIT 1").fetchone()
    return (0, b"") if row is None else (row[0], bytes(row[1]))


def newest_checkpoint_up_to(conn: Connection, position: int) -> int:
    """Number of the newest checkpoint that covers no row after `position`; 0 without one."""
    text = sql(conn, "SELECT MAX(number) FROM audit_checkpoints WHERE position <= ?")
    return int(conn.exec_driver_sql(text, (position,)).scalar() or 0)


def insert_checkpoint(conn: Connection, number: int, position: int, at_ms: int, signed: bytes) -> None:
    """Store a checkpoint. A number that exists already fails: another replica was faster."""
    text = sql(conn, "INSERT INTO audit_checkpoints (number, position, at_ms, signed) VALUES (?, ?, ?, ?)")
    conn.exec_driver_sql(text, (number, position, at_ms, signed))


def checkpoints_after(conn: Connection, number: int, position: int, limit: int) -> list[tuple[int, bytes]]:
    """Number and serialised `Signed` of checkpoints after `number` that cover no row after `position`."""
    text = sql(
        conn,
        "SELECT number, signed FROM audit_checkpoints WHERE number > ? AND position <= ? ORDER BY number LIMIT ?",
    )
    return [(row[0], bytes(row[1])) for row in conn.exec_driver_sql(text, (number, position, limit))]
