"""The journal's file: SQLite with WAL and synchronous=FULL, and all SQL of this room. Blocking; one thread at a time.

A row of `entries` is one command for as long as the node remembers it: what it was (command_id, digest), how far it is
(state), and the newest report about it with its number, so that a command costs one insert and one update and what the
server has not acknowledged is read from the same rows. `tombstones` are cancels that came before their command.

The file is made once, when the node is enrolled, and never again: a node that lost its journal would run everything
twice, so a journal that is missing, damaged or another node's stops the node.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.rules import FINAL_STATES

SCHEMA_VERSION = 1
KEEP_ROWS = 4096
KEEP_BYTES = 32 * 1024 * 1024
_TRIM_SLACK_ROWS = 256
_TRIM_SLACK_BYTES = 4 * 1024 * 1024
_PAGE_ROWS = 512
_UNFINISHED = f"({CommandState.COMMAND_STATE_ACCEPTED:d}, {CommandState.COMMAND_STATE_RUNNING:d})"

_SCHEMA = f"""
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    command_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    arguments BLOB NOT NULL,
    not_after_ms INTEGER NOT NULL,
    state INTEGER NOT NULL,
    report_no INTEGER NOT NULL,
    report BLOB NOT NULL
);
CREATE TABLE tombstones (seq INTEGER PRIMARY KEY, command_id BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    node_id TEXT NOT NULL,
    last_accepted_seq INTEGER NOT NULL,
    last_report_no INTEGER NOT NULL,
    acked_report_no INTEGER NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_INSERT = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# What has ended keeps no arguments: they may hold secrets, and nothing needs them any more.
_UPDATE = (
    "UPDATE entries SET state = ?, report_no = ?, report = ?,"
    " arguments = CASE WHEN ? THEN x'' ELSE arguments END WHERE seq = ?"
)
_COUNTERS = (
    "UPDATE counters SET last_accepted_seq = max(last_accepted_seq, ?),"
    " last_report_no = max(last_report_no, ?), acked_report_no = max(acked_report_no, ?)"
)
_ENTRY_COLUMNS = "seq, command_id, digest, actor, action, arguments, not_after_ms, report"


class JournalUnavailableError(Exception):
    """The journal could not be written or read now; nothing of what was asked stands. Trying again may help."""


class JournalDamagedError(Exception):
    """The journal cannot be used at all. Says what is wrong and what to do."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy


_START_OVER = (
    "Without it this node cannot know what it already ran, so it does not start. Revoke the node"
    " (`fleetctl nodes revoke`), then enroll it again with an empty state folder"
)


@dataclass(slots=True, eq=False)
class Entry:
    """One command in the journal.

    Args:
        seq: its monotonic_seq.
        command_id: 16 bytes.
        digest: `fleet.sequence.command_digest`.
        actor: on whose behalf.
        action: full name.
        arguments: JSON as it came; empty once it cannot run any more.
        not_after_ms: it must not start later, server time.
        report: the newest report about it; replaced by a new message with every change, never changed in place.
    """

    seq: int
    command_id: bytes
    digest: bytes
    actor: str
    action: str
    arguments: bytes
    not_after_ms: int
    report: command_pb2.Report

    @property
    def state(self) -> CommandState.ValueType:
        """Where it stands."""
        return self.report.state


@dataclass(slots=True)
class Batch:
    """What is to be durable at once. Empty parts cost nothing.

    Args:
        accepted: entries new to the journal.
        changed: newest reports about commands that the journal holds, in order.
        tombstones: (seq, command_id) of cancels that came first.
        last_accepted_seq: where it stands after this batch; 0 when the batch does not move it.
        last_report_no: highest report_no in this batch; 0 when it has none.
    """

    accepted: list[Entry] = field(default_factory=list)
    changed: list[command_pb2.Report] = field(default_factory=list)
    tombstones: list[tuple[int, bytes]] = field(default_factory=list)
    last_accepted_seq: int = 0
    last_report_no: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a starting node finds.

    Args:
        last_accepted_seq: highest seq journaled.
        last_report_no: highest report_no given out.
        acked_report_no: every report up to it is acknowledged.
        unfinished: ACCEPTED and RUNNING, in seq order.
        unacknowledged: report numbers above `acked_report_no`, growing.
        tombstones: command_id by seq.
    """

    last_accepted_seq: int
    last_report_no: int
    acked_report_no: int
    unfinished: list[Entry]
    unacknowledged: list[int]
    tombstones: dict[int, bytes]


def ensure_journal(path: Path, node_id: str) -> None:
    """Make an empty journal for a node that is being enrolled; one that is there already must be this node's.

    Raises:
        JournalDamagedError: what is there cannot be used.
        OSError: the folder cannot be written.
    """
    if path.exists():
        JournalStore(path, node_id).close()
        return
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO counters VALUES (1, ?, 0, 0, 0)", (node_id,))
    finally:
        connection.close()
    draft.rename(path)  # whole or absent: an empty file would look like a damaged journal
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class JournalStore:
    """An open journal file.

    Args:
        path: made by `ensure_journal`.
        node_id: whose it must be.
        keep_rows: acknowledged commands kept, to tell a replay from a new command.
        keep_bytes: what they may take.

    Raises:
        JournalDamagedError: missing, damaged, another node's, in use, or not readable.
    """

    def __init__(self, path: Path, node_id: str, *, keep_rows: int = KEEP_ROWS, keep_bytes: int = KEEP_BYTES) -> None:
        if not path.exists():
            raise JournalDamagedError(path, "the journal is missing", _START_OVER)
        self._keep_rows = keep_rows
        self._keep_bytes = keep_bytes
        self._trimmed_at = -1
        self.connection = _open(path)
        try:
            self._check(path, node_id)
            totals = self.connection.execute(
                "SELECT count(*), coalesce(sum(length(report)), 0) FROM entries"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise _damaged(path, error) from error
        except JournalDamagedError:
            self.connection.close()
            raise
        self.rows: int = totals[0]
        self._bytes: int = totals[1]

    def apply(self, batches: Sequence[Batch], acked_report_no: int) -> None:
        """Make `batches` durable in one transaction, in order, or none of them.

        Args:
            batches: what callers handed in.
            acked_report_no: rides along, for trimming.

        Raises:
            JournalUnavailableError: the disk is full, read-only or failing.
        """
        accepted = [_row(entry) for batch in batches for entry in batch.accepted]
        changed = [_change(report) for batch in batches for report in batch.changed]
        tombstones = [tombstone for batch in batches for tombstone in batch.tombstones]
        last_accepted_seq = max((batch.last_accepted_seq for batch in batches), default=0)
        last_report_no = max((batch.last_report_no for batch in batches), default=0)
        execute, executemany = self.connection.execute, self.connection.executemany
        try:
            execute("BEGIN IMMEDIATE")
            if accepted:
                executemany(_INSERT, accepted)
            if changed:
                executemany(_UPDATE, changed)
            if tombstones:
                execute("DELETE FROM tombstones WHERE seq <= (SELECT last_accepted_seq FROM counters)")
                executemany("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", tombstones)
            execute(_COUNTERS, (last_accepted_seq, last_report_no, acked_report_no))
            rows = self.rows + len(accepted)
            size = self._bytes + sum(len(row[9]) for row in accepted) + sum(len(row[2]) for row in changed)
            rows, size = self._trim(rows, size, acked_report_no)
            execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise JournalUnavailableError(_unavailable(error)) from error
        self.rows, self._bytes = rows, size

    def recover(self) -> Recovered:
        """What the last process left.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        try:
            counters = self.connection.execute(
                "SELECT last_accepted_seq, last_report_no, acked_report_no FROM counters"
            ).fetchone()
            numbers = self.connection.execute(
                "SELECT report_no FROM entries WHERE report_no > ? ORDER BY report_no", (counters[2],)
            )
            return Recovered(
                last_accepted_seq=counters[0],
                last_report_no=counters[1],
                acked_report_no=counters[2],
                unfinished=self._entries(f"WHERE state IN {_UNFINISHED} ORDER BY seq"),
                unacknowledged=[number for (number,) in numbers],
                tombstones=dict(
                    self.connection.execute("SELECT seq, command_id FROM tombstones WHERE seq > ?", counters[:1])
                ),
            )
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error

    def find(self, seqs: Iterable[int]) -> dict[int, Entry]:
        """The entries at these seqs, those that are remembered.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        try:
            found = [self._entries("WHERE seq = ?", seq) for seq in seqs]
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error
        return {entry.seq: entry for entries in found for entry in entries}

    def reports(self, numbers: Iterable[int]) -> list[command_pb2.Report]:
        """The reports among these numbers that are still the newest of their command.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        wanted = list(numbers)
        if not wanted:
            return []
        query = "SELECT report FROM entries WHERE report_no BETWEEN ? AND ? ORDER BY report_no"
        try:
            rows = self.connection.execute(query, (min(wanted), max(wanted))).fetchall()
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error
        reports = [command_pb2.Report.FromString(row[0]) for row in rows]
        chosen = set(wanted)
        return [report for report in reports if report.report_no in chosen]

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in. A second call does nothing."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    def _check(self, path: Path, node_id: str) -> None:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalDamagedError(
                path, f"it is of version {version}", "A newer fleet-node wrote it: install that one again"
            )
        problem = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok" or version < SCHEMA_VERSION:
            raise JournalDamagedError(path, "the journal is damaged", _START_OVER)
        row = self.connection.execute("SELECT node_id FROM counters").fetchone()
        if row is None or row[0] != node_id:
            raise JournalDamagedError(
                path, f"it is not the journal of node {node_id}", "Put this node's own state folder back"
            )

    def _entries(self, where: str, *values: int) -> list[Entry]:
        rows = self.connection.execute(f"SELECT {_ENTRY_COLUMNS} FROM entries {where}", values)  # noqa: S608  constants
        return [
            Entry(
                seq, command_id, digest, actor, action, arguments, not_after_ms, command_pb2.Report.FromString(report)
            )
            for seq, command_id, digest, actor, action, arguments, not_after_ms, report in rows
        ]

    def _trim(self, rows: int, size: int, acked_report_no: int) -> tuple[int, int]:
        """Forget the oldest acknowledged commands beyond what is kept; returns rows and bytes left."""
        crowded = rows > self._keep_rows + _TRIM_SLACK_ROWS or size > self._keep_bytes + _TRIM_SLACK_BYTES
        if not crowded or acked_report_no == self._trimmed_at:
            return rows, size
        self._trimmed_at = acked_report_no
        doomed: list[tuple[int]] = []
        query = (
            f"SELECT seq, length(report) FROM entries WHERE report_no <= ? AND state NOT IN {_UNFINISHED}"  # noqa: S608
            " ORDER BY seq LIMIT ?"
        )
        for seq, length in self.connection.execute(query, (acked_report_no, _PAGE_ROWS)):
            if rows <= self._keep_rows and size <= self._keep_bytes:
                break
            doomed.append((seq,))
            rows, size = rows - 1, size - length
        self.connection.executemany("DELETE FROM entries WHERE seq = ?", doomed)
        return rows, size

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")


def _row(entry: Entry) -> tuple[int, bytes, bytes, str, str, bytes, int, int, int, bytes]:
    report = entry.report
    return (
        entry.seq,
        entry.command_id,
        entry.digest,
        entry.actor,
        entry.action,
        entry.arguments,
        entry.not_after_ms,
        report.state,
        report.report_no,
        report.SerializeToString(),
    )


def _change(report: command_pb2.Report) -> tuple[int, int, bytes, bool, int]:
    state = report.state
    return (state, report.report_no, report.SerializeToString(), state in FINAL_STATES, report.monotonic_seq)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.0)
    try:
        # Nobody else reads it, and a second process must not write it; this also spares the shared-memory file.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -1024")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, error) from error
    return connection


def _damaged(path: Path, error: sqlite3.DatabaseError) -> JournalDamagedError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return JournalDamagedError(path, "another process uses it", "End the other fleet-node of this state folder")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return JournalDamagedError(path, f"the journal is damaged ({error})", _START_OVER)
    return JournalDamagedError(
        path, f"it cannot be opened ({error})", "Make room on its disk, or make file and folder writable for this user"
    )


def _unavailable(error: sqlite3.Error) -> str:
    return f"the node's journal cannot be used ({error}): make room on its disk, or make it writable again"
