"""What PostgreSQL gives with nothing of the product on it: rows of about a command's size, through one connection."""

from __future__ import annotations

import asyncio
import os
import time

import psycopg

from tests.fakes.postgres import PostgresServer
from tests.load.context import Context
from tests.load.results import Figures

_ROW_BYTES = 200
_MICROSECONDS = 1_000_000
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"


async def commit_costs(ctx: Context) -> Figures:
    """Microseconds of a commit of one row, and of a row of 32-row commits; WAL of such a row, with one index."""
    return await asyncio.to_thread(_measure, ctx.scaled(2_000, 200))


def _measure(commits: int) -> Figures:
    server = PostgresServer(durable=True)
    try:
        with psycopg.connect(server.plain_url(server.create_database())) as connection:
            connection.execute("CREATE TABLE entry (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, content BYTEA)")
            connection.commit()
            single_us = _commits(connection, commits, 1)
            before = _wal(connection)
            of_32_us = _commits(connection, commits, 32) / 32
            wal_bytes = (_wal(connection) - before) / commits / 32
    finally:
        server.stop()
    return {
        "commit_us": single_us,
        "row_of_32_us": of_32_us,
        "commits_per_row_of_32": 1 / 32,
        "wal_bytes_per_row_of_32": wal_bytes,
    }


def _commits(connection: psycopg.Connection, commits: int, rows: int) -> float:
    values = ", ".join(["(%s)"] * rows)
    started_at_s = time.perf_counter()
    for _ in range(commits):
        content = [os.urandom(_ROW_BYTES) for _ in range(rows)]
        connection.execute(f"INSERT INTO entry (content) VALUES {values}", content)  # type: ignore[arg-type]
        connection.commit()
    return (time.perf_counter() - started_at_s) / commits * _MICROSECONDS


def _wal(connection: psycopg.Connection) -> float:
    found = connection.execute(_WAL).fetchone()
    connection.commit()
    assert found is not None
    return float(found[0])
