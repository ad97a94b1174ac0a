"""SQL that marks commands anew: any state, in the order of their key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fleet_server.commands.store import Connection, OpenRow
from fleet_server.database.engine import sql
from fleet_server.database.statements import fetch


def rows_after(conn: Connection, after: Sequence[Any] | None, limit: int) -> list[OpenRow]:
    """Commands in any state, by node id and seq, as their MACs cover them."""
    where = "WHERE (node_id, seq) > (?, ?) " if after is not None else ""
    text = f"SELECT {', '.join(OpenRow._fields)} FROM commands {where}ORDER BY node_id, seq LIMIT ?"  # noqa: S608
    return [OpenRow._make(row) for row in fetch(conn, text, (*(after or ()), limit))]


def mark_anew(conn: Connection, rows: Iterable[tuple[bytes, str, int, bytes]]) -> int:
    """Replace MACs, (new, node id, seq, old) each, of rows that still carry the old one; how many did."""
    text = sql(conn, "UPDATE commands SET mac = ? WHERE node_id = ? AND seq = ? AND mac = ?")
    return sum(conn.exec_driver_sql(text, row).rowcount for row in rows)
