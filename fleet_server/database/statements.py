"""Statements of the hot path, handed to the driver's own cursor: rows come back as plain tuples.

SQLAlchemy wraps each execution in a context, a result and row objects: five to thirteen microseconds a statement, where
the database itself takes two. Errors are SQLAlchemy's all the same, so callers and the writer judge them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

Parameters = Sequence[Any]


def sql(conn: Connection, text: str) -> str:
    """`text` with ``?`` for parameters, in the style of the connection's driver."""
    return text if conn.dialect.paramstyle == "qmark" else _qmark_to_format(text)


def fetch(conn: Connection, text: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
    """All rows that a statement answers, ``?`` standing for parameters."""
    cursor = conn.connection.cursor()
    try:
        cursor.execute(sql(conn, text), parameters)
        return list(cursor.fetchall())
    except conn.dialect.loaded_dbapi.Error as error:
        raise as_sqlalchemy(conn, error) from error
    finally:
        cursor.close()


def fetch_any(conn: Connection, text: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
    """As `fetch`, of rows that somebody may have edited: SQLite's driver refuses a whole statement for text that is no
    UTF-8. Here what is none is replaced. It costs a call for each text."""
    if conn.dialect.name != "sqlite":
        return fetch(conn, text, parameters)
    driver: Any = conn.connection.driver_connection
    strict, driver.text_factory = driver.text_factory, _replaced
    try:
        return fetch(conn, text, parameters)
    finally:
        driver.text_factory = strict


def _replaced(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def execute(conn: Connection, text: str, parameters: Parameters = (), *, prepare: bool = True) -> int:
    """How many rows a statement changed.

    Args:
        prepare: keep its plan, once it was run a few times. PostgreSQL.
    """
    cursor: Any = conn.connection.cursor()
    try:
        if prepare:
            cursor.execute(sql(conn, text), parameters)
        else:
            cursor.execute(sql(conn, text), parameters, prepare=False)
        return int(cursor.rowcount)
    except conn.dialect.loaded_dbapi.Error as error:
        raise as_sqlalchemy(conn, error) from error
    finally:
        cursor.close()


def execute_many(conn: Connection, text: str, rows: Sequence[Parameters]) -> int:
    """How many rows a statement changed, run once for each of `rows`; where these can be many, see `bulk`. To
    PostgreSQL the driver's own way is a pipeline, and until that is whole none of PostgreSQL's timeouts counts."""
    cursor = conn.connection.cursor()
    try:
        if conn.dialect.name == "postgresql":
            return sum(_run(cursor, sql(conn, text), row) for row in rows)
        cursor.executemany(sql(conn, text), rows)
        return cursor.rowcount
    except conn.dialect.loaded_dbapi.Error as error:
        raise as_sqlalchemy(conn, error) from error
    finally:
        cursor.close()


def _run(cursor: Any, text: str, row: Parameters) -> int:
    return int(cursor.execute(text, row).rowcount)


@lru_cache(maxsize=1024)
def _qmark_to_format(text: str) -> str:
    return text.replace("%", "%%").replace("?", "%s")


def as_sqlalchemy(conn: Connection, error: Exception) -> BaseException:
    """The error as `exec_driver_sql` raises it, statement and parameters left out: they hold operators' arguments."""
    dialect = conn.dialect
    lost = dialect.is_disconnect(error, conn.connection, None)  # type: ignore[arg-type]
    if lost:
        conn.invalidate(error)
        conn.engine.dispose()  # what else lies in its pool is as dead
    return DBAPIError.instance(
        None,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=dialect,
    )
