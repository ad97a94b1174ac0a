"""What the journal holds: SQLite with WAL and synchronous=FULL, all SQL on its tables. Blocking; one thread at a time.

A row of `entries` is one command for as long as the node remembers it: what it was (command_id, digest), how far it is
(state), and the newest report about it with its number, so that a command is written twice in all and what the server
has not acknowledged is read from the same rows. `tombstones` are cancels that came before their command.

Each SQL statement lets go of the interpreter and has to get it back from the event loop, which costs more than writing
a row does: so a commit writes whole rows, new ones and changed ones alike, and many of them with one statement.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet.logs import get_logger
from fleet.v1 import command_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.journal_file import open_file
from fleet_node.commands.rules import FINAL_STATES

log = get_logger(__name__)

KEEP_ROWS = 4096
KEEP_BYTES = 32 * 1024 * 1024
_TRIM_SLACK_ROWS = 256
_TRIM_SLACK_BYTES = 4 * 1024 * 1024
_PAGE_ROWS = 512
_UNFINISHED = f"({CommandState.COMMAND_STATE_ACCEPTED:d}, {CommandState.COMMAND_STATE_RUNNING:d})"

_COLUMNS = 10
_WRITE = {  # by rows; few texts, because each stays prepared
    rows: "INSERT OR REPLACE INTO entries VALUES " + ", ".join([f"({', '.join('?' * _COLUMNS)})"] * rows)  # noqa: S608
    for rows in (32, 16, 8, 4, 2, 1)
}
_COUNTERS = (
    "UPDATE counters SET last_accepted_seq = max(last_accepted_seq, ?),"
    " last_report_no = max(last_report_no, ?), acked_report_no = max(acked_report_no, ?)"
)
_DAMAGED_REMEDY = "look at the disk, revoke the node, and enroll it again with an empty state folder"
_ENTRY_COLUMNS = "seq, command_id, digest, actor, action, arguments, not_after_ms, report"


class JournalUnavailableError(Exception):
    """The journal could not be written or read now; nothing of what was asked stands. Trying again may help."""


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


Change = tuple[Entry, command_pb2.Report]


@dataclass(slots=True)
class Batch:
    """What is to be durable at once. Empty parts cost nothing.

    Args:
        accepted: entries new to the journal.
        changed: commands that the journal holds, each with its newest report, in order.
        tombstones: (seq, command_id) of cancels that came first.
        last_accepted_seq: where it stands after this batch; 0 when the batch does not move it.
        last_report_no: highest report_no in this batch; 0 when it has none.
    """

    accepted: list[Entry] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
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
        self._keep_rows = keep_rows
        self._keep_bytes = keep_bytes
        self._trimmed_at = -1
        self.connection = open_file(path, node_id)
        totals = self.connection.execute("SELECT count(*), coalesce(sum(length(report)), 0) FROM entries").fetchone()
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
        rows = [_row(entry, entry.report) for batch in batches for entry in batch.accepted]
        count, size = self.rows + len(rows), self._bytes
        rows += [_row(entry, report) for batch in batches for entry, report in batch.changed]
        size += sum(len(row[-1]) for row in rows)
        tombstones = [tombstone for batch in batches for tombstone in batch.tombstones]
        last_accepted_seq = max((batch.last_accepted_seq for batch in batches), default=0)
        last_report_no = max((batch.last_report_no for batch in batches), default=0)
        try:
            with self.connection:  # begins before the first write, and commits or rolls back
                self._write(rows)
                if tombstones:
                    self._bury(tombstones)
                self.connection.execute(_COUNTERS, (last_accepted_seq, last_report_no, acked_report_no))
                count, size = self._trim(count, size, acked_report_no)
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error
        self.rows, self._bytes = count, size

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
        """The reports among these numbers that are still the newest of their command. One that the disk has damaged is
        passed over: it must not hold up those behind it.

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
        chosen = set(wanted)
        reports = [report for (raw,) in rows if (report := _whole(raw)) is not None]
        return [report for report in reports if report.report_no in chosen]

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in. A second call does nothing."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    def _write(self, rows: Sequence[_Row]) -> None:
        """Write whole rows, later ones over earlier ones of the same command."""
        written = 0
        for size, text in _WRITE.items():
            while len(rows) - written >= size:
                self.connection.execute(text, tuple(chain.from_iterable(rows[written : written + size])))
                written += size

    def _bury(self, tombstones: Sequence[tuple[int, bytes]]) -> None:
        self.connection.execute("DELETE FROM tombstones WHERE seq <= (SELECT last_accepted_seq FROM counters)")
        self.connection.executemany("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", tombstones)

    def _entries(self, where: str, *values: int) -> list[Entry]:
        rows = self.connection.execute(f"SELECT {_ENTRY_COLUMNS} FROM entries {where}", values)  # noqa: S608  constants
        entries: list[Entry] = []
        for seq, command_id, digest, actor, action, arguments, not_after_ms, raw in rows:
            report = _whole(raw)
            if report is None:
                raise JournalUnavailableError(f"the journal's entry of seq {seq} is damaged: {_DAMAGED_REMEDY}")
            entries.append(Entry(seq, command_id, digest, actor, action, arguments, not_after_ms, report))
        return entries

    def _trim(self, rows: int, size: int, acked_report_no: int) -> tuple[int, int]:
        """Forget the oldest acknowledged commands beyond what is kept; returns rows and bytes left."""
        crowded = rows > self._keep_rows + _TRIM_SLACK_ROWS or size > self._keep_bytes + _TRIM_SLACK_BYTES
        if not crowded or acked_report_no == self._trimmed_at:
            return rows, size
        self._trimmed_at = acked_report_no
        forgettable = f"report_no <= ? AND state NOT IN {_UNFINISHED}"
        last_seq = 0
        query = f"SELECT seq, length(report) FROM entries WHERE {forgettable} ORDER BY seq LIMIT ?"  # noqa: S608
        for seq, length in self.connection.execute(query, (acked_report_no, _PAGE_ROWS)):
            if rows <= self._keep_rows and size <= self._keep_bytes:
                break
            last_seq, rows, size = seq, rows - 1, size - length
        self.connection.execute(
            f"DELETE FROM entries WHERE {forgettable} AND seq <= ?",  # noqa: S608  constants
            (acked_report_no, last_seq),
        )
        return rows, size


def _whole(raw: bytes) -> command_pb2.Report | None:
    """A report, unless the disk has damaged it: SQLite checks its pages, not what stands on them."""
    try:
        return command_pb2.Report.FromString(raw)
    except DecodeError:
        log.error("journaled_report_damaged")
        return None


_Row = tuple[int, bytes, bytes, str, str, bytes, int, int, int, bytes]


def _row(entry: Entry, report: command_pb2.Report) -> _Row:
    state = report.state
    return (
        entry.seq,
        entry.command_id,
        entry.digest,
        entry.actor,
        entry.action,
        # What has ended keeps no arguments: they may hold secrets, and nothing needs them any more.
        b"" if state in FINAL_STATES else entry.arguments,
        entry.not_after_ms,
        state,
        report.report_no,
        report.SerializeToString(),
    )


def _unavailable(error: sqlite3.Error) -> str:
    return f"the node's journal cannot be used ({error}): make room on its disk, or make it writable again"
