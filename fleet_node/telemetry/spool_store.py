"""Telemetry on disk until the server has it: bounded bytes, the oldest dropped and counted. Blocking; one thread at a
time.

SQLite with WAL and synchronous=NORMAL: a batch is in the file before it is sent, without waiting for the disk. What was
spooled survives kill -9; a power cut may take the last seconds, which telemetry can bear and commands could not (their
journal is another file). Batch numbers grow over every loss: a spool starts above what it holds and not below the
clock's milliseconds, so a spool that was lost goes on above what it gave out before.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet.logs import get_logger
from fleet.v1 import telemetry_pb2
from fleet_node.telemetry.encoder import Batch, Series

log = get_logger(__name__)

MEMORY_BYTES = 4 * 1024 * 1024
MAX_SERIES = 20_000
_ROW_BYTES = 24  # what a row costs beside its batch; also in the queries below
_DROP_PAGE = 256

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (batch_seq INTEGER PRIMARY KEY, batch BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS series (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, labels TEXT NOT NULL, kind TEXT NOT NULL, unit TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS counters (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    last_batch_seq INTEGER NOT NULL, dropped_through INTEGER NOT NULL, dropped_total INTEGER NOT NULL
);
INSERT OR IGNORE INTO counters VALUES (1, 0, 0, 0);
"""


class SpoolUnavailableError(Exception):
    """The spool could not be written or read now."""


@dataclass(frozen=True, slots=True)
class SpoolCounters:
    """Where a spool stands.

    Args:
        last_batch_seq: highest number given out.
        dropped_through: every batch up to it that was not sent is lost; 0 when none is.
        dropped_total: batches lost in all.
        batches: held now.
        size_bytes: what they take.
    """

    last_batch_seq: int
    dropped_through: int
    dropped_total: int
    batches: int
    size_bytes: int


class Spool:
    """Batches in batch_seq order.

    Args:
        path: the file. One that is damaged is set aside; where none can be written, memory takes its place.
        max_bytes: what batches may take.
        now_ms: the clock, when it is opened.
    """

    def __init__(self, path: Path, *, max_bytes: int, now_ms: int) -> None:
        self.on_disk = True
        self._max_bytes = max_bytes
        self._connection = self._open(path)
        self.catalog: dict[int, Series] = {}
        self._numbers: dict[Series, int] = {}
        self._last_number = 0
        self._prune_above = MAX_SERIES
        self._load_catalog()
        execute = self._connection.execute
        last, through, total = execute("SELECT last_batch_seq, dropped_through, dropped_total FROM counters").fetchone()
        count, size = execute("SELECT count(*), coalesce(sum(length(batch) + 24), 0) FROM batches").fetchone()
        self._counters = SpoolCounters(max(last, now_ms - 1), through, total, count, size)
        self._lost = 0

    @property
    def counters(self) -> SpoolCounters:
        """Where the spool stands; safe to read from another thread."""
        return self._counters

    @property
    def dropped_total(self) -> int:
        """Batches lost in all, those among them that could not even be counted on disk."""
        return self._counters.dropped_total + self._lost

    def append(self, batches: Sequence[Batch]) -> None:
        """Spool batches of one moment, dropping the oldest when there is no room.

        Raises:
            SpoolUnavailableError: they are dropped and counted instead.
        """
        before, series_before = self._counters, len(self.catalog)
        new: list[tuple[int, Series]] = []
        try:
            rows = self._rows(batches, new)
            size = sum(len(row[1]) + _ROW_BYTES for row in rows)
            held = before.size_bytes + size
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            self._store_series(new)
            self._connection.executemany("INSERT INTO batches VALUES (?, ?)", rows)
            last = before.last_batch_seq + len(rows)
            dropped, dropped_bytes, through = self._drop_oldest(held - self._max_bytes)
            after = SpoolCounters(
                last,
                max(before.dropped_through, through),
                before.dropped_total + dropped + self._lost,
                before.batches + len(rows) - dropped,
                held - dropped_bytes,
            )
            execute(
                "UPDATE counters SET last_batch_seq = ?, dropped_through = ?, dropped_total = ?",
                (after.last_batch_seq, after.dropped_through, after.dropped_total),
            )
            execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            self._forget_series(new)
            self._lost += len(batches)
            raise SpoolUnavailableError(f"{len(batches)} telemetry batches dropped: {error}") from error
        self._lost = 0
        self._counters = after
        if new and series_before + len(new) > self._prune_above:
            self._prune_series()
            self._prune_above = max(MAX_SERIES, 2 * len(self.catalog))  # so many in use: not again at every new one

    def read(self, after_seq: int, max_bytes: int) -> list[telemetry_pb2.TelemetryBatch]:
        """Batches above `after_seq`, about `max_bytes` of them, with the catalog's numbers in their series column. One
        that the disk has damaged is passed over: it must not hold up those behind it.

        Raises:
            SpoolUnavailableError: try again later.
        """
        found: list[telemetry_pb2.TelemetryBatch] = []
        query = "SELECT batch_seq, batch FROM batches WHERE batch_seq > ? ORDER BY batch_seq"
        try:
            with contextlib.closing(self._connection.execute(query, (after_seq,))) as rows:
                for batch_seq, batch in rows:
                    stored = _whole(batch_seq, batch)
                    if stored is None:
                        log.error("spooled_batch_damaged", batch_seq=batch_seq)
                        continue
                    found.append(stored)
                    max_bytes -= len(batch)
                    if max_bytes <= 0:
                        break
        except sqlite3.Error as error:
            raise SpoolUnavailableError(str(error)) from error
        return found

    def trim(self, batch_seq: int) -> None:
        """The server has everything up to `batch_seq`.

        Raises:
            SpoolUnavailableError: it stays, and is sent again later.
        """
        try:
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            count, size = execute(
                "SELECT count(*), coalesce(sum(length(batch) + 24), 0) FROM batches WHERE batch_seq <= ?",
                (batch_seq,),
            ).fetchone()
            execute("DELETE FROM batches WHERE batch_seq <= ?", (batch_seq,))
            execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise SpoolUnavailableError(str(error)) from error
        now = self._counters
        self._counters = SpoolCounters(
            now.last_batch_seq, now.dropped_through, now.dropped_total, now.batches - count, now.size_bytes - size
        )

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            return _connect(str(path))
        except (OSError, sqlite3.OperationalError) as error:
            log.error("spool_not_on_disk", path=str(path), error=str(error))
        except sqlite3.DatabaseError as error:
            aside = path.with_name(path.name + ".damaged")
            log.error("spool_damaged", path=str(path), kept_as=str(aside), error=str(error))
            with contextlib.suppress(OSError):
                for suffix in ("-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                path.replace(aside)
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
                with contextlib.suppress(sqlite3.Error):
                    return _connect(str(path))
        self.on_disk = False
        self._max_bytes = min(self._max_bytes, MEMORY_BYTES)
        return _connect(":memory:")

    def _rows(self, batches: Sequence[Batch], new: list[tuple[int, Series]]) -> list[tuple[int, bytes]]:
        rows: list[tuple[int, bytes]] = []
        for offset, batch in enumerate(batches, start=1):
            seq = self._counters.last_batch_seq + offset
            stored = telemetry_pb2.TelemetryBatch(
                batch_seq=seq,
                base_time_ms=batch.base_time_ms,
                series=[self._number(series, new) for series in batch.series],
                time_offset_ms=bytes(len(batch.values)),  # all at the base time
                values=batch.values,
            )
            rows.append((seq, stored.SerializeToString()))
        return rows

    def _number(self, series: Series, new: list[tuple[int, Series]]) -> int:
        number = self._numbers.get(series)
        if number is None:
            number = self._last_number = self._last_number + 1  # never used twice: streams remember it
            self._numbers[series] = number
            self.catalog[number] = series
            new.append((number, series))
        return number

    def _store_series(self, new: Sequence[tuple[int, Series]]) -> None:
        self._connection.executemany(
            "INSERT INTO series VALUES (?, ?, ?, ?, ?)",
            [(number, one.name, json.dumps(one.labels), one.kind, one.unit) for number, one in new],
        )

    def _forget_series(self, doomed: Sequence[tuple[int, Series]]) -> None:
        for number, series in doomed:
            self.catalog.pop(number, None)
            self._numbers.pop(series, None)

    def _drop_oldest(self, excess_bytes: int) -> tuple[int, int, int]:
        """Delete the oldest batches until `excess_bytes` are gone; returns batches, bytes and the last batch_seq."""
        dropped = dropped_bytes = through = 0
        while dropped_bytes < excess_bytes:
            page = self._connection.execute(
                "SELECT batch_seq, length(batch) + 24 FROM batches ORDER BY batch_seq LIMIT ?",
                (_DROP_PAGE,),
            ).fetchall()
            doomed: list[tuple[int]] = []
            for seq, size in page:
                if dropped_bytes >= excess_bytes:
                    break
                doomed.append((seq,))
                dropped, dropped_bytes, through = dropped + 1, dropped_bytes + size, seq
            if not doomed:
                break
            self._connection.executemany("DELETE FROM batches WHERE batch_seq = ?", doomed)
        return dropped, dropped_bytes, through

    def _prune_series(self) -> None:
        """Forget series that no batch on disk uses: labels that come and go must not fill disk and memory."""
        used: set[int] = set()
        try:
            for batch_seq, batch in self._connection.execute("SELECT batch_seq, batch FROM batches"):
                stored = _whole(batch_seq, batch)
                used.update(stored.series if stored is not None else ())
            doomed = [(number, series) for number, series in self.catalog.items() if number not in used]
            self._connection.executemany("DELETE FROM series WHERE number = ?", [(number,) for number, _ in doomed])
        except sqlite3.Error as error:
            log.error("spool_series_not_pruned", error=str(error))
            return
        self._forget_series(doomed)

    def _load_catalog(self) -> None:
        for number, name, labels, kind, unit in self._connection.execute("SELECT * FROM series"):
            series = Series(name, tuple((key, value) for key, value in json.loads(labels)), kind, unit)
            self.catalog[number] = series
            self._numbers[series] = number
        self._last_number = max(self.catalog, default=0)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _whole(batch_seq: int, batch: bytes) -> telemetry_pb2.TelemetryBatch | None:
    """A spooled batch, unless the disk has damaged it: SQLite checks its pages, not what stands on them."""
    try:
        stored = telemetry_pb2.TelemetryBatch.FromString(batch)
    except DecodeError:
        return None
    columns = {len(stored.series), len(stored.time_offset_ms), len(stored.values)}
    return stored if stored.batch_seq == batch_seq and len(columns) == 1 else None


def _connect(name: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=0.0)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -512")
        connection.executescript(_SCHEMA)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages do not fit together")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
