"""SQL over the mark of a replica's commits."""

from __future__ import annotations

from fleet_server.database.engine import Connection
from fleet_server.database.statements import fetch


def advance(conn: Connection, replica_id: str, known: int) -> int | None:
    """Move the mark on by one; what it is now, or None when it is not there or lies before `known`."""
    text = (
        "UPDATE replicas SET commit_mark = commit_mark + 1 WHERE replica_id = ? AND commit_mark >= ?"
        " RETURNING commit_mark"
    )
    rows = fetch(conn, text, (replica_id, known))
    return rows[0][0] if rows else None


def stored(conn: Connection, replica_id: str) -> int | None:
    """The mark; None without a row."""
    rows = fetch(conn, "SELECT commit_mark FROM replicas WHERE replica_id = ?", (replica_id,))
    return rows[0][0] if rows else None
