"""SQL over `rewinds`."""

from __future__ import annotations

from fleet_server.database.engine import Connection
from fleet_server.database.statements import execute, fetch


def newest(conn: Connection) -> int:
    """Number of the newest; 0 without one."""
    rows = fetch(conn, "SELECT number FROM rewinds ORDER BY number DESC LIMIT 1")
    return int(rows[0][0]) if rows else 0


def is_open(conn: Connection) -> bool:
    """Whether one was not settled."""
    return bool(fetch(conn, "SELECT 1 FROM rewinds WHERE settled_at_ms = 0 LIMIT 1"))


def insert(conn: Connection, number: int, found_by: str, now_ms: int) -> None:
    """Write one down, unless another replica does at this moment."""
    text = "INSERT INTO rewinds (number, at_ms, found_by, settled_at_ms) VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING"
    execute(conn, text, (number, now_ms, found_by))


def settle(conn: Connection, now_ms: int) -> None:
    """Settle all."""
    execute(conn, "UPDATE rewinds SET settled_at_ms = ? WHERE settled_at_ms = 0", (now_ms,))
