"""SQL over the tables that are sealed or marked, whichever it is: their rows are done anew under another key."""

# Names of tables and columns are constants of `fleet_server.database.marked`.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fleet_server.database.engine import Connection, sql
from fleet_server.database.marked import MarkedTable


def rows_after(
    conn: Connection, table: MarkedTable, columns: Sequence[str], after: tuple[Any, ...] | None, limit: int
) -> list[dict[str, Any]]:
    """The next rows of a table, in the order of its key.

    Args:
        columns: which to read.
        after: key of the last row before; None to begin.
        limit: at most so many.
    """
    keys = ", ".join(table.key)
    where = f" WHERE ({keys}) > ({', '.join('?' * len(table.key))})" if after is not None else ""
    text = f"SELECT {', '.join(columns)} FROM {table.name}{where} ORDER BY {keys} LIMIT ?"
    found = conn.exec_driver_sql(sql(conn, text), (*(after or ()), limit))
    return [dict(zip(columns, row, strict=True)) for row in found]


def update_unchanged(conn: Connection, table: MarkedTable, row: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Write new values of columns, unless somebody has changed the row since it was read; whether they were."""
    guard = "mac" if table.covered else table.sealed
    sets = ", ".join(f"{name} = ?" for name in changed)
    where = " AND ".join(f"{name} = ?" for name in (*table.key, guard))
    values = (*changed.values(), *(row[name] for name in table.key), row[guard])
    return conn.exec_driver_sql(sql(conn, f"UPDATE {table.name} SET {sets} WHERE {where}"), values).rowcount == 1
