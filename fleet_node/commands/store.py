"""What the journal holds: SQLite with WAL and synchronous=FULL, all SQL on its tables. Blocking; one thread at a time.

A row of `entries` is one command for as long as the node remembers it: what it was (command_id, digest), how far it is
(state), and the number of the newest report about it. While it has not ended its report is told from these; once it
has, the report is kept as it is sent, in place of the arguments. `tombstones` are cancels that came before their
command.

Each SQL statement lets go of the interpreter and has to get it back from the event loop, which costs more than writing
a row does: so a commit writes many rows with one statement (`entry_store`). And `counters` stand for what no row says:
the usual commits, of one statement's commands or of their ends, are one SQL statement that needs no transaction around
it, and write no page but those of their rows. The audit's rows about them follow with a later commit (`audit_log`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from fleet.logs import get_logger
from fleet.v1 import command_pb2, gateway_pb2
from fleet.v1.command_pb2 import CommandState
from fleet_node.commands.audit_log import AuditLog
from fleet_node.commands.audit_rows import AuditEvent
from fleet_node.commands.entry import Change, Entry
from fleet_node.commands.entry_store import is_one_statement, write_accepted, write_changed, write_told_again
from fleet_node.commands.intent_store import refuse_intents_until, use_intents, used_intents
from fleet_node.commands.journal_copy import Between, copy_journal_into, nothing_between
from fleet_node.commands.journal_file import open_file
from fleet_node.commands.used_intents import Use, UsedIntents

Counters = tuple[int, int, int]  # last_accepted_seq, last_report_no, acked_report_no

log = get_logger(__name__)

KEEP_ROWS = 4096
KEEP_BYTES = 32 * 1024 * 1024
_TRIM_SLACK_ROWS = 256
_TRIM_SLACK_BYTES = 4 * 1024 * 1024
_PAGE_ROWS = 512
_ACK_SLACK = 256
"""Acknowledged reports that a node may send once more after it was killed: it does not write for each of them."""

_UNFINISHED = f"({CommandState.COMMAND_STATE_ACCEPTED:d}, {CommandState.COMMAND_STATE_RUNNING:d})"

_COUNTERS = "UPDATE counters SET last_accepted_seq = ?, last_report_no = ?, acked_report_no = ?"
# What was too far away was never accepted: its row says nothing of how far the node is.
_SAID_BY_ROWS = (
    "SELECT coalesce(max(seq) FILTER (WHERE accepted_at_ms > 0), 0), coalesce(max(report_no), 0) FROM entries"
)
_DAMAGED_REMEDY = "look at the disk, revoke the node, and enroll it again with an empty state folder"
_ENTRY_COLUMNS = (
    "seq, command_id, digest, actor, action, arguments, not_after_ms, accepted_at_ms, state, report_no, started_at_ms,"
    " report"
)


class JournalUnavailableError(Exception):
    """The journal could not be written or read now; nothing of what was asked stands. Trying again may help."""


@dataclass(slots=True)
class Batch:
    """What is to be durable at once. Empty parts cost nothing.

    Args:
        accepted: entries new to the journal.
        changed: of commands that have not ended, those accepted here among them, in order.
        told_again: changes that say nothing new but for their number.
        tombstones: (seq, command_id) of cancels that came first.
        uses: intents that accepted commands use up.
        intents_after_ms: intents issued up to then count for nothing, Unix milliseconds; 0 when this says nothing.
        last_accepted_seq: where it stands after this batch; 0 when the batch does not move it.
        last_report_no: highest report_no in this batch; 0 when it has none.
        audit: what the node's audit says beside that.
        audit_left_out: how much more it would say, had there been room to keep it until now; a gap counts it.
    """

    accepted: Sequence[Entry] = ()
    changed: Sequence[Change] = ()
    told_again: Sequence[Change] = ()
    tombstones: Sequence[tuple[int, bytes]] = ()
    uses: Sequence[Use] = ()
    intents_after_ms: int = 0
    last_accepted_seq: int = 0
    last_report_no: int = 0
    audit: Sequence[AuditEvent] = ()
    audit_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a starting node finds.

    Args:
        last_accepted_seq: highest seq journaled.
        last_report_no: highest report_no given out.
        acked_report_no: every report up to it is acknowledged.
        unfinished: ACCEPTED and RUNNING, in seq order.
        unacknowledged: bytes of each report above `acked_report_no` by its number, growing.
        tombstones: command_id by seq.
        used: intents that commands used up.
    """

    last_accepted_seq: int
    last_report_no: int
    acked_report_no: int
    unfinished: list[Entry]
    unacknowledged: dict[int, int]
    tombstones: dict[int, bytes]
    used: UsedIntents


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
        saved = self.connection.execute("SELECT last_accepted_seq, last_report_no, acked_report_no FROM counters")
        last_accepted_seq, last_report_no, acked_report_no = saved.fetchone()
        rows_seq, rows_report_no = self.connection.execute(_SAID_BY_ROWS).fetchone()
        self._counters = (max(last_accepted_seq, rows_seq), max(last_report_no, rows_report_no), acked_report_no)
        self._saved_acked = acked_report_no
        self.audit = AuditLog(self.connection, node_id)
        unsealed = (self.audit.sealed_seq, self.audit.sealed_report_no)
        left = self._read("WHERE seq > ? OR report_no > ? ORDER BY seq", *unsealed)
        self.audit.recovered(filter(_is_whole, left))

    def apply(self, batches: Sequence[Batch], acked_report_no: int) -> None:
        """Make `batches` durable in one transaction, in order, or none of them.

        Args:
            batches: what callers handed in.
            acked_report_no: rides along, for trimming; what is lost of it when the node is killed is at most 256.

        Raises:
            JournalUnavailableError: the disk is full, read-only or failing.
        """
        accepted = [entry for batch in batches for entry in batch.accepted]
        changed = [change for batch in batches for change in batch.changed]
        told_again = [change for batch in batches for change in batch.told_again]
        tombstones = [tombstone for batch in batches for tombstone in batch.tombstones]
        uses = [use for batch in batches for use in batch.uses]
        intents_after_ms = max([batch.intents_after_ms for batch in batches], default=0)
        events = [event for batch in batches for event in batch.audit]
        self.audit.left_out(sum([batch.audit_left_out for batch in batches]))
        last_accepted_seq, last_report_no, acked = self._counters
        counters = (
            max([last_accepted_seq, *[batch.last_accepted_seq for batch in batches]]),
            max([last_report_no, *[batch.last_report_no for batch in batches]]),
            max(acked, acked_report_no),
        )
        count = self.rows + len(accepted)
        size = self._bytes + sum([len(change.final_report) for change in changed])
        rare = events or told_again or tombstones or uses or intents_after_ms
        # Before rows are forgotten, or numbered once more, the audit says what they say.
        seal = bool(events or told_again) or self.audit.due or self._crowded(count, size, counters)
        try:
            if not seal and not rare and self._said_by(accepted, changed, counters):
                write_accepted(self.connection, accepted)
                write_changed(self.connection, changed)
            else:
                with self._transaction(counters):
                    write_accepted(self.connection, accepted)
                    if told_again:  # before what changes: it says how commands stood until now
                        write_told_again(self.connection, told_again)
                    write_changed(self.connection, changed)
                    if tombstones:
                        self._bury(tombstones)
                    if uses:
                        use_intents(self.connection, uses)
                    if intents_after_ms:
                        refuse_intents_until(self.connection, intents_after_ms)
                    if seal:
                        self.audit.seal(accepted, changed, events, last_seq=counters[0], last_report_no=counters[1])
                    count, size = self._trim(count, size, counters)
                self._saved_acked = counters[2]
        except Exception as error:
            self.audit.lost(events)
            if isinstance(error, sqlite3.Error):
                raise JournalUnavailableError(_unavailable(error)) from error
            raise
        if seal:
            self.audit.sealed()
        else:
            self.audit.durable(accepted, changed)
        self.rows, self._bytes, self._counters = count, size, counters

    def chain_audit(self) -> None:
        """Write rows of the audit about what has none yet, and sign the chain when it is time.

        Raises:
            JournalUnavailableError: they cannot be written.
        """
        if not self.audit.unsealed and not self.audit.signature_due:
            return
        last_seq, last_report_no, _ = self._counters
        try:
            with self._transaction(self._counters):
                self.audit.seal((), (), (), last_seq=last_seq, last_report_no=last_report_no)
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error
        self.audit.sealed()

    def next_audit(self, acked_number: int, after: int) -> list[gateway_pb2.AuditRow]:
        """The audit's next rows that are chained.

        Args:
            acked_number: the server has every row up to it.
            after: number of the last row that is not wanted.

        Raises:
            JournalUnavailableError: they cannot be read.
        """
        try:
            self.audit.acked(acked_number)
            return self.audit.after(after)
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error

    def recover(self) -> Recovered:
        """What the last process left.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        try:
            last_accepted_seq, last_report_no, acked_report_no = self._counters
            numbers = self.connection.execute(
                "SELECT report_no, length(report) FROM entries WHERE report_no > ? ORDER BY report_no",
                (acked_report_no,),
            )
            tombstones = self.connection.execute(
                "SELECT seq, command_id FROM tombstones WHERE seq > ?", (last_accepted_seq,)
            )
            return Recovered(
                last_accepted_seq=last_accepted_seq,
                last_report_no=last_report_no,
                acked_report_no=acked_report_no,
                unfinished=self._entries(f"WHERE state IN {_UNFINISHED} ORDER BY seq"),
                unacknowledged=dict(numbers),
                tombstones=dict(tombstones),
                used=used_intents(self.connection),
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

    def reported(self, numbers: Iterable[int]) -> list[Entry]:
        """The entries whose newest report has one of these numbers, growing. One whose report the disk has damaged is
        passed over: it must not hold up those behind it.

        Raises:
            JournalUnavailableError: it cannot be read.
        """
        wanted = set(numbers)
        if not wanted:
            return []
        where = "WHERE report_no BETWEEN ? AND ? ORDER BY report_no"
        try:
            entries = self._read(where, min(wanted), max(wanted))
        except sqlite3.Error as error:
            raise JournalUnavailableError(_unavailable(error)) from error
        return [entry for entry in entries if entry.report_no in wanted and _is_whole(entry)]

    def copy_to(self, path: Path, between: Between = nothing_between) -> None:
        """Write what is durable when this returns into a new file, 0600. What `between` raises ends it.

        Raises:
            JournalUnavailableError: it cannot be read, or the copy not be written.
        """
        try:
            copy_journal_into(self.connection, path, between)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnavailableError(_unavailable(error)) from error

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in. A second call does nothing."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    def _said_by(self, accepted: Sequence[Entry], changed: Sequence[Change], counters: Counters) -> bool:
        """Whether one statement writes these rows, and they say all that the counters would say."""
        if bool(accepted) == bool(changed) or not is_one_statement(accepted or changed):
            return False
        last_accepted_seq, last_report_no, acked_report_no = counters
        if acked_report_no - self._saved_acked > _ACK_SLACK:
            return False
        if changed:
            return changed[-1].report_no == last_report_no and last_accepted_seq == self._counters[0]
        return (accepted[-1].report_no, accepted[-1].seq) == (last_report_no, last_accepted_seq)

    @contextlib.contextmanager
    def _transaction(self, counters: Counters) -> Iterator[None]:
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            execute(_COUNTERS, counters)
            yield
            execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                execute("ROLLBACK")

    def _bury(self, tombstones: Sequence[tuple[int, bytes]]) -> None:
        self.connection.execute("DELETE FROM tombstones WHERE seq <= (SELECT last_accepted_seq FROM counters)")
        self.connection.executemany("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", tombstones)

    def _entries(self, where: str, *values: int) -> list[Entry]:
        entries = self._read(where, *values)
        for entry in entries:
            if not _is_whole(entry):
                raise JournalUnavailableError(f"the journal's entry of seq {entry.seq} is damaged: {_DAMAGED_REMEDY}")
        return entries

    def _read(self, where: str, *values: int) -> list[Entry]:
        rows = self.connection.execute(f"SELECT {_ENTRY_COLUMNS} FROM entries {where}", values)  # noqa: S608  constants
        return [Entry(*row) for row in rows]

    def _crowded(self, rows: int, size: int, counters: Counters) -> bool:
        crowded = rows > self._keep_rows + _TRIM_SLACK_ROWS or size > self._keep_bytes + _TRIM_SLACK_BYTES
        return crowded and counters[2] != self._trimmed_at

    def _trim(self, rows: int, size: int, counters: Counters) -> tuple[int, int]:
        """Forget the oldest acknowledged commands beyond what is kept; returns rows and bytes left."""
        if not self._crowded(rows, size, counters):
            return rows, size
        acked_report_no = self._trimmed_at = counters[2]
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


def _is_whole(entry: Entry) -> bool:
    """Whether the disk has kept its report as it was: SQLite checks its pages, not what stands on them."""
    try:
        command_pb2.Report.FromString(entry.final_report)
    except DecodeError:
        log.error("journaled_report_damaged", seq=entry.seq)
        return False
    return True


def _unavailable(error: sqlite3.Error | OSError) -> str:
    return f"the node's journal cannot be used ({error}): make room on its disk, or make it writable again"
