"""SQL of the audit: rows, heads, checkpoints.

SQLite keeps any type in any column, and who edits the file chooses. What is read for others to judge comes as the type
of its column all the same, as something that no server wrote: a row that cannot be exported hides all behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from fleet_server.audit.node_rules import NodeStanding
from fleet_server.audit.rules import AuditRow, Head
from fleet_server.database.bulk import bounded, fetch_of, insert_many
from fleet_server.database.engine import for_update, octets, sql
from fleet_server.database.statements import execute, execute_many
from fleet_server.database.statements import fetch_any as fetch

LAST_POSITION = 2**63 - 1  # and largest number: a column holds no more
_ODD = 0  # no row, no checkpoint and no position has this number

_HEAD = "SELECT writer, number, hash, mac FROM audit_heads"
_HEADS = (
    "SELECT h.writer, h.number, h.hash, h.mac, s.number FROM audit_heads AS h"
    " LEFT JOIN audit_signed AS s ON s.writer = h.writer"
)
_GROWN = " WHERE s.number IS NULL OR s.number <> h.number"
_COLUMNS = "writer, number, at_ms, kind, actor, subject, detail, previous_hash, hash"
_KINDS = dict(
    zip(
        _COLUMNS.split(", "),
        ("text", "bigint", "bigint", "text", "text", "text", "bytea", "bytea", "bytea"),
        strict=True,
    )
)
_DETAIL = list(_KINDS).index("detail")
_ROWS = f"SELECT position, {_COLUMNS} FROM audit_rows"  # noqa: S608 - constants only
# DISTINCT would read the whole index; this takes one step of it per writer.
_WRITERS = (
    "WITH RECURSIVE found (writer) AS (SELECT MIN(writer) FROM audit_rows UNION ALL"
    " SELECT (SELECT MIN(writer) FROM audit_rows AS r WHERE r.writer > found.writer) FROM found"
    " WHERE found.writer IS NOT NULL)"
)
_ROW_WRITERS = f"{_WRITERS} SELECT writer FROM found WHERE writer IS NOT NULL"  # noqa: S608 - constants only
_stored = attrgetter(*_COLUMNS.split(", "))
_NUMBERS_UP_TO = (
    f"{_WRITERS} SELECT writer, (SELECT number FROM audit_rows AS r WHERE r.writer = found.writer AND r.position <= ?"  # noqa: S608
    " ORDER BY number DESC LIMIT 1) FROM found WHERE writer IS NOT NULL"
)
_SET_SIGNED = (
    "INSERT INTO audit_signed (writer, number) VALUES (?, ?)"
    " ON CONFLICT (writer) DO UPDATE SET number = excluded.number"
)
_STANDING = "chain, last_at_ms, day, day_rows, day_bytes, finding, finding_at_ms"
_REPLACED = ", ".join(f"{column} = excluded.{column}" for column in _STANDING.split(", "))
_SET_STANDING = (
    f"INSERT INTO node_audits (node_id, {_STANDING}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only
    f" ON CONFLICT (node_id) DO UPDATE SET {_REPLACED}"
)
_SET_HEAD = (
    "INSERT INTO audit_heads (writer, number, hash, mac) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (writer) DO UPDATE SET number = excluded.number, hash = excluded.hash, mac = excluded.mac"
)
_ADVANCE = "UPDATE audit_heads SET number = ?, hash = ?, mac = ? WHERE writer = ? AND number = ? AND hash = ?"
_WHOLE = "number = CAST(number AS BIGINT)"  # SQLite keeps whatever is written, numbers of other types beside these
_NEWEST = "SELECT cluster_id, number, sha256, since, mac FROM audit_newest"
_INSERT_NEWEST = "INSERT INTO audit_newest (cluster_id, number, sha256, since, mac) VALUES (?, ?, ?, ?, ?)"
_SET_NEWEST = (
    _INSERT_NEWEST + " ON CONFLICT (cluster_id)"
    " DO UPDATE SET number = excluded.number, sha256 = excluded.sha256, since = excluded.since, mac = excluded.mac"
)


class HeadRow(NamedTuple):
    """A row of `audit_heads` as it stands. Who edits a SQLite file can put any type into any column."""

    writer: str
    number: int
    hash: bytes
    mac: bytes


class NewestRow(NamedTuple):
    """A row of `audit_newest` as it stands."""

    cluster_id: str
    number: int
    sha256: bytes
    since: int
    mac: bytes


def head(conn: Connection, writer: str, *, lock: bool = False) -> HeadRow | None:
    """Head of one writer's chain; None when there is none. With `lock` nobody else moves it until the transaction
    ends."""
    found = fetch(conn, _HEAD + " WHERE writer = ?" + (for_update(conn) if lock else ""), (writer,))
    return _head_row(found[0]) if found else None


def heads_of(conn: Connection, writers: Sequence[str]) -> list[HeadRow]:
    """Heads of these chains; one that has none is missing."""
    return [_head_row(row) for row in fetch_of(conn, _HEAD, "writer", writers, fetch=fetch)]


def writers_with_rows(conn: Connection, writers: Sequence[str]) -> set[str]:
    """Those of these chains that have rows."""
    return {row[0] for row in fetch_of(conn, "SELECT DISTINCT writer FROM audit_rows", "writer", writers)}


def heads(conn: Connection) -> list[tuple[HeadRow, int]]:
    """Heads of all chains, each with the newest number that a checkpoint named."""
    return [(_head_row(row), _signed_number(row)) for row in fetch(conn, _HEADS)]


def grown_heads(conn: Connection) -> list[tuple[HeadRow, int]]:
    """Heads of the chains that have a row that no checkpoint covers."""
    return [(_head_row(row), _signed_number(row)) for row in fetch(conn, _HEADS + _GROWN)]


def _head_row(row: tuple[Any, ...]) -> HeadRow:
    return HeadRow(row[0], row[1], octets(row[2]), octets(row[3]))


def _signed_number(row: tuple[Any, ...]) -> int:
    return row[4] if isinstance(row[4], int) else 0


def head_writers(conn: Connection) -> list[str]:
    """Writers that have a head or a row."""
    found = {row[0] for text in (_ROW_WRITERS, "SELECT writer FROM audit_heads") for row in fetch(conn, text)}
    return sorted(writer for writer in found if isinstance(writer, str))


def put_head(conn: Connection, new_head: Head, mac: bytes) -> None:
    """Store the head of a chain."""
    execute(conn, _SET_HEAD, (new_head.writer, new_head.number, new_head.hash, mac))


def advance_head(conn: Connection, before: Head, after: Head, mac: bytes) -> bool:
    """Replace the head of a chain; false when another one than `before` is stored."""
    return execute(conn, _ADVANCE, (after.number, after.hash, mac, before.writer, before.number, before.hash)) == 1


def delete_head(conn: Connection, writer: str) -> None:
    """Remove the head of a chain."""
    execute(conn, "DELETE FROM audit_heads WHERE writer = ?", (writer,))


def insert_rows(conn: Connection, rows: Sequence[AuditRow]) -> None:
    """Store rows of one chain. A number that exists already fails: two processes use one writer name."""
    for some in bounded(list(map(_stored, rows)), _DETAIL):
        insert_many(conn, "audit_rows", _KINDS, some)


def newest_row(conn: Connection, writer: str) -> tuple[int, bytes] | None:
    """Number and hash of the newest row of a chain; None without one."""
    text = (
        "SELECT number, hash FROM audit_rows WHERE writer = ? AND number = CAST(number AS BIGINT)"
        " ORDER BY number DESC LIMIT 1"
    )
    found = fetch(conn, text, (writer,))
    return (found[0][0], octets(found[0][1])) if found else None


def newest_of_kind(conn: Connection, writer: str, kind: str, last: int) -> tuple[int, bytes] | None:
    """Number and previous hash of a chain's newest row of a kind, up to row `last`; None without one."""
    text = (
        "SELECT number, previous_hash FROM audit_rows WHERE writer = ? AND kind = ? AND number <= ?"
        " ORDER BY number DESC LIMIT 1"
    )
    found = fetch(conn, text, (writer, kind, last))
    return (found[0][0], octets(found[0][1])) if found else None


def kinds_and_subjects(conn: Connection, writer: str) -> list[tuple[int, Any, Any]]:
    """Number, kind and subject of each row of a chain, as they stand."""
    text = "SELECT number, kind, subject FROM audit_rows WHERE writer = ? ORDER BY number"
    return [(row[0], row[1], row[2]) for row in fetch(conn, text, (writer,))]


def any_grown(conn: Connection) -> bool:
    """Whether a chain has a row that no checkpoint covers."""
    return bool(fetch(conn, _HEADS + _GROWN + " LIMIT 1"))


def grown(conn: Connection) -> list[tuple[str, int]]:
    """Writer and newest number of each chain that has a row that no checkpoint covers."""
    return [(row[0], _whole(row[1])) for row in fetch(conn, _HEADS + _GROWN)]


def note_signed(conn: Connection, numbers: Sequence[tuple[str, int]]) -> None:
    """A checkpoint named these writers at these numbers. Call it behind `insert_checkpoint`, which lets one in."""
    execute_many(conn, _SET_SIGNED, numbers)


def forget_signed(conn: Connection) -> None:
    """Note of no chain that a checkpoint named it."""
    execute(conn, "DELETE FROM audit_signed", ())


def hashes(conn: Connection, writer: str, first: int, last: int) -> dict[int, bytes]:
    """Hashes of one chain's rows by number, from `first` to `last`."""
    text = "SELECT number, hash FROM audit_rows WHERE writer = ? AND number BETWEEN ? AND ?"
    return {number: octets(digest) for number, digest in fetch(conn, text, (writer, first, last))}


def node_standing(conn: Connection, node_id: str) -> NodeStanding:
    """What is known of a node's chain, beside its rows."""
    found = fetch(conn, f"SELECT {_STANDING} FROM node_audits WHERE node_id = ?", (node_id,))  # noqa: S608 - constants
    if not found:
        return NodeStanding()
    stored = zip(_STANDING.split(", "), found[0], strict=True)
    values: dict[str, Any] = {name: _text(value) if name == "finding" else _whole(value) for name, value in stored}
    return NodeStanding(**values)


def set_node_standing(conn: Connection, node_id: str, standing: NodeStanding) -> None:
    """Replace it."""
    execute(conn, _SET_STANDING, (node_id, *astuple(standing)))


def rows_after(conn: Connection, position: int, limit: int) -> list[AuditRow]:
    """Rows in the order of storage, after a position."""
    return _audit_rows(fetch(conn, f"{_ROWS} WHERE position > ? ORDER BY position LIMIT ?", (position, limit)))


def rows_between(conn: Connection, writer: str, after: int, last: int, limit: int) -> list[AuditRow]:
    """Rows of one chain by number, those after `after` up to `last`."""
    text = f"{_ROWS} WHERE writer = ? AND number > ? AND number <= ? AND {_WHOLE} ORDER BY number LIMIT ?"
    return _audit_rows(fetch(conn, text, (writer, after, last, limit)))


def _audit_rows(found: Sequence[tuple[Any, ...]]) -> list[AuditRow]:
    return [
        AuditRow(
            position=max(row[0], 0),
            writer=_text(row[1]),
            number=_whole(row[2]),
            at_ms=_whole(row[3]),
            kind=_text(row[4]),
            actor=_text(row[5]),
            subject=_text(row[6]),
            detail=octets(row[7]),
            previous_hash=octets(row[8]),
            hash=octets(row[9]),
        )
        for row in found
    ]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else _ODD


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def last_position(conn: Connection) -> int:
    """Position of the newest row; 0 without rows."""
    return int(conn.exec_driver_sql("SELECT COALESCE(MAX(position), 0) FROM audit_rows").scalar_one())


def numbers_up_to(conn: Connection, position: int) -> dict[str, int]:
    """Newest number of each chain among the rows up to `position`."""
    found = fetch(conn, _NUMBERS_UP_TO, (position,))
    return {_text(writer): _whole(number) for writer, number in found if number is not None}


def position_before_last(conn: Connection, count: int) -> int:
    """Position after which `count` rows stand; 0 when there are fewer."""
    text = sql(conn, "SELECT position FROM audit_rows ORDER BY position DESC LIMIT 1 OFFSET ?")
    return int(conn.exec_driver_sql(text, (count,)).scalar() or 0)


def newest(conn: Connection, cluster_id: str) -> NewestRow | None:
    """What is stored of the newest checkpoint; None when nothing is."""
    found = fetch(conn, _NEWEST + " WHERE cluster_id = ?", (cluster_id,))
    return _newest_row(found[0]) if found else None


def hold_newest(conn: Connection) -> None:
    """Until this transaction ends nobody else stores which checkpoint is the newest."""
    fetch(conn, _NEWEST + for_update(conn))


def forget_newest_of_others(conn: Connection, cluster_id: str) -> None:
    """A database holds one cluster: what stands there of another was planted."""
    conn.exec_driver_sql(sql(conn, "DELETE FROM audit_newest WHERE cluster_id <> ?"), (cluster_id,))


def all_newest(conn: Connection) -> list[NewestRow]:
    """What is stored of the newest checkpoint, of whatever cluster: a database holds one."""
    return [_newest_row(row) for row in fetch(conn, _NEWEST)]


def _newest_row(row: tuple[Any, ...]) -> NewestRow:
    return NewestRow(row[0], row[1], octets(row[2]), row[3], octets(row[4]))


def insert_newest(conn: Connection, row: NewestRow) -> None:
    """Store which checkpoint is the newest, for the first time."""
    execute(conn, _INSERT_NEWEST, row)


def put_newest(conn: Connection, row: NewestRow) -> None:
    """Store which checkpoint is the newest."""
    execute(conn, _SET_NEWEST, row)


def newest_checkpoint_number(conn: Connection) -> int:
    """Number of the newest row of `audit_checkpoints`; 0 without one, the largest there is for what is no number."""
    number = fetch(conn, "SELECT COALESCE(MAX(number), 0) FROM audit_checkpoints")[0][0]
    return number if isinstance(number, int) else LAST_POSITION


def checkpoint(conn: Connection, number: int) -> bytes | None:
    """A checkpoint's serialised `Signed`; None when it is not there."""
    found = fetch(conn, "SELECT signed FROM audit_checkpoints WHERE number = ?", (number,))
    return octets(found[0][0]) if found else None


def checkpoints_down(conn: Connection, last: int, first: int, limit: int) -> list[tuple[int, bytes]]:
    """Number and serialised `Signed` of checkpoints from `last` down to `first`."""
    text = "SELECT number, signed FROM audit_checkpoints WHERE number BETWEEN ? AND ? ORDER BY number DESC LIMIT ?"
    return [(row[0], octets(row[1])) for row in fetch(conn, text, (first, last, limit))]


def newest_checkpoint_up_to(conn: Connection, position: int) -> int:
    """Number of the newest checkpoint that covers no row after `position`; 0 without one."""
    found = fetch(conn, "SELECT MAX(number) FROM audit_checkpoints WHERE position <= ?", (position,))
    return _whole(found[0][0])


def insert_checkpoint(conn: Connection, number: int, position: int, at_ms: int, signed: bytes) -> None:
    """Store a checkpoint. A number that exists already fails: another replica was faster."""
    text = sql(conn, "INSERT INTO audit_checkpoints (number, position, at_ms, signed) VALUES (?, ?, ?, ?)")
    conn.exec_driver_sql(text, (number, position, at_ms, signed))


def delete_checkpoints_after(conn: Connection, number: int) -> int:
    """Remove checkpoints behind a number; how many there were."""
    return execute(conn, "DELETE FROM audit_checkpoints WHERE number > ?", (number,))


def checkpoints_after(conn: Connection, number: int, position: int, limit: int) -> list[tuple[int, bytes]]:
    """Number and serialised `Signed` of checkpoints after `number` that cover no row after `position`."""
    text = (
        "SELECT number, signed FROM audit_checkpoints"  # noqa: S608 - a constant
        f" WHERE number > ? AND position <= ? AND {_WHOLE} ORDER BY number LIMIT ?"
    )
    return [(row[0], octets(row[1])) for row in fetch(conn, text, (number, position, limit))]
