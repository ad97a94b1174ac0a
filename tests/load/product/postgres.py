"""A PostgreSQL server of one row's own, which waits for its disk, and what a load made it do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import psycopg

from tests.fakes.postgres import PostgresServer
from tests.load.results import Figures

_DONE = """
    SELECT xact_commit, tup_inserted, tup_updated, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')
    FROM pg_stat_database WHERE datname = current_database()
"""
_HOT = "SELECT COALESCE(sum(n_tup_upd), 0), COALESCE(sum(n_tup_hot_upd), 0) FROM pg_stat_user_tables"


@dataclass(frozen=True, slots=True)
class Work:
    """What a database did so far, as PostgreSQL counts it: its backends tell within a second."""

    commits: float
    """Of transactions that wrote, and of those that only read."""
    rows_inserted: float
    rows_updated: float
    wal_bytes: float
    updates_of_tables: float
    hot_updates: float
    cpu_s: float
    """Of all processes of the server, seconds."""


class Postgres:
    """One database.

    Args:
        server: which it is in.
    """

    def __init__(self, server: PostgresServer) -> None:
        name = server.create_database()
        self.url = server.url(name)
        self._plain_url = server.plain_url(name)
        self._pid = server.pid

    def work(self) -> Work:
        """What was done so far."""
        with psycopg.connect(self._plain_url, autocommit=True) as connection:
            done = connection.execute(_DONE).fetchone()
            hot = connection.execute(_HOT).fetchone()
        assert done is not None
        assert hot is not None
        return Work(*map(float, done), *map(float, hot), self.cpu_s())

    def cpu_s(self) -> float:
        """CPU seconds of all processes of the server."""
        server = psutil.Process(self._pid)
        ended = server.cpu_times()
        used = ended.children_user + ended.children_system
        for process in (server, *server.children()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used += times.user + times.system
        return used


@asynccontextmanager
async def durable_postgres() -> AsyncIterator[Postgres]:
    """A server with `fsync` on and an empty database, for the length of the block."""
    server = await asyncio.to_thread(PostgresServer, durable=True)
    try:
        yield Postgres(server)
    finally:
        await asyncio.to_thread(server.stop)


def per_command(before: Work, after: Work, commands: float) -> Figures:
    """What PostgreSQL did for each of so many commands."""
    updates = after.updates_of_tables - before.updates_of_tables
    return {
        "commits_per_command": (after.commits - before.commits) / commands,
        "wal_bytes_per_command": (after.wal_bytes - before.wal_bytes) / commands,
        "rows_inserted_per_command": (after.rows_inserted - before.rows_inserted) / commands,
        "rows_updated_per_command": (after.rows_updated - before.rows_updated) / commands,
        "hot_update_share": (after.hot_updates - before.hot_updates) / max(updates, 1.0),
        "postgres_cpu_us_per_command": (after.cpu_s - before.cpu_s) / commands * 1_000_000,
    }
