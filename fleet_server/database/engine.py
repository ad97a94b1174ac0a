"""The database as rooms see it: `read` a snapshot, `write` through the one writer.

    room ── write(job) ──> writer thread ── one connection, group commit
         ── read(query) ─> reader threads ─ a connection each, read-only snapshots

Both sides reconnect by themselves after the database was away. Until then a caller is told to try again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from fleet.errors import Reason, Refusal
from fleet_server.database import dialects
from fleet_server.database.clock import DatabaseClock
from fleet_server.database.dialects import (
    DatabaseUrlError,
    Dialect,
    for_change,
    for_change_of_free,
    for_key_share,
    for_update,
    for_update_of_free,
    octets,
)
from fleet_server.database.refusals import SHUTTING_DOWN, as_refusal, away
from fleet_server.database.statements import sql
from fleet_server.database.writer import Transaction, Writer, WriterMetrics

# Services import nothing of SQLAlchemy: what they name of it, they name from here.
__all__ = [
    "Connection",
    "Database",
    "DatabaseUrlError",
    "IntegrityError",
    "for_change",
    "for_change_of_free",
    "for_key_share",
    "for_update",
    "for_update_of_free",
    "octets",
    "sql",
]

T = TypeVar("T")
MAX_WAITING_READS = 10_000
READ_TIMEOUT_S = 15.0
HUNG_AFTER_S = 45.0
"""So long the writer may be at one group: three times what a stall is given until its connection is cut."""
_CLOSE_TIMEOUT_S = 5.0


class Database:
    """One database of one server process.

    Args:
        url: see `dialects.parse_url`.
        metrics: told about every commit.
        readers: threads, and connections, for reading.

    Raises:
        DatabaseUrlError: the URL is of no use; nothing was opened.
    """

    def __init__(self, url: str, *, metrics: WriterMetrics | None = None, readers: int = 4) -> None:
        parsed = dialects.parse_url(url)
        self.dialect: Dialect = dialects.dialect_of(parsed)
        self._shown = dialects.show_url(parsed)
        self._write_engine = dialects.make_write_engine(parsed, lock_timeout_ms=dialects.WRITER_LOCK_TIMEOUT_MS)
        self._read_engine = dialects.make_read_engine(parsed, connections=readers)
        self._read_threads = ThreadPoolExecutor(readers, thread_name_prefix="database-reader")
        self._reading: dict[Connection, float] = {}
        self._waiting_reads = 0
        self._closed = False
        self.writer = Writer(self._write_engine, metrics)
        self.clock = DatabaseClock()

    @property
    def waiting_reads(self) -> int:
        """Reads that run, and reads that wait for a thread."""
        return self._waiting_reads

    def is_hung(self) -> bool:
        """Whether the writer is held by something that cutting its connection did not end. A database that is merely
        away lets go of it in time, or is not reached: several hosts whose names nobody resolves may take minutes. That,
        a restart of this process would not help."""
        since = self.writer.busy_since
        return since is not None and not self.writer.connecting and perf_counter() - since > HUNG_AFTER_S

    def start(self) -> None:
        """Start the writer. Nothing is connected before the first read or write."""
        self.writer.start()

    async def close(self) -> None:
        """Commit what is queued, let running reads end, then disconnect."""
        self._closed = True
        await asyncio.to_thread(self._close)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on a snapshot in a reader thread. It runs twice when its first connection turns out to be dead,
        or another transaction in its way.

        Raises:
            Refusal: UNAVAILABLE when the database is away, OVERLOADED when too many reads wait.
            Exception: whatever `query` raised.
        """
        if self._closed:
            raise Refusal(Reason.UNAVAILABLE, SHUTTING_DOWN)
        if self._waiting_reads >= MAX_WAITING_READS:
            raise Refusal(Reason.OVERLOADED, "too many reads wait: try again in a moment", retry_after_s=1.0)
        self._waiting_reads += 1
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)
        except DBAPIError as error:
            raise as_refusal(error) from None
        except TimeoutError:
            self._hang_up(older_than_s=READ_TIMEOUT_S / 2)
            raise away() from None
        finally:
            self._waiting_reads -= 1

    async def write(self, work: Callable[[Transaction], T], *, rank: str | None = None) -> T:
        """Run `work` in a transaction of the writer; see `Writer.submit`."""
        return await self.writer.submit(work, rank=rank)

    def write_nowait(self, work: Callable[[Transaction], T], *, patience_s: float | None = None) -> asyncio.Future[T]:
        """As `write`, for who waits in another way than with a task; see `Writer.submit_nowait`."""
        return self.writer.submit_nowait(work, patience_s=patience_s)

    def _read(self, query: Callable[[Connection], T]) -> T:
        try:
            return self._read_once(query)
        except DBAPIError as error:
            if not error.connection_invalidated and not dialects.is_contended(error):
                raise
        # A pooled connection died while it lay idle: the failure emptied the pool, so this opens a fresh one. Or a
        # schema change stood in its way.
        return self._read_once(query)

    def _read_once(self, query: Callable[[Connection], T]) -> T:
        with self._read_engine.connect() as connection:
            self._reading[connection] = perf_counter()
            try:
                with connection.begin():
                    return query(connection)
            finally:
                del self._reading[connection]

    def _hang_up(self, older_than_s: float = 0.0) -> None:
        """Free reader threads that a hanging database holds."""
        before = perf_counter() - older_than_s
        for connection, since in list(self._reading.items()):
            if since < before:
                dialects.hang_up(connection)

    def _close(self) -> None:
        self.writer.close()
        patience = threading.Timer(_CLOSE_TIMEOUT_S, self._hang_up)
        patience.start()
        self._read_threads.shutdown(wait=True, cancel_futures=True)
        patience.cancel()
        self._read_engine.dispose()
        self._write_engine.dispose()

    def __repr__(self) -> str:
        return f"Database({self._shown})"
