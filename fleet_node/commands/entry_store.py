"""SQL that writes the journal's table `entries`; `fleet_node.commands.store` calls it within its commits.

Many rows go with one statement, new ones whole, and of changed ones what changes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from fleet_node.commands.entry import Change, Entry

T = TypeVar("T")
Values = tuple[int | str | bytearray, ...]


def _texts(statement: str, row: str) -> dict[int, str]:
    """`statement` for several numbers of rows; few, because each stays prepared."""
    return {rows: statement.format(", ".join([row] * rows)) for rows in (32, 16, 8, 4, 2, 1)}


# Replaces, because a seq that was too far away when it first came has a row already.
_ACCEPT = _texts("INSERT OR REPLACE INTO entries VALUES {}", "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, x'')")
# An update of many rows at once: what has not ended is never forgotten, so its row is there and nothing is inserted.
_CHANGE = _texts(
    "INSERT INTO entries VALUES {} ON CONFLICT (seq) DO UPDATE SET state = excluded.state,"
    " report_no = excluded.report_no, started_at_ms = excluded.started_at_ms, report = excluded.report,"
    " arguments = CASE excluded.report WHEN x'' THEN arguments ELSE x'' END",
    "(?, x'', x'', '', '', x'', 0, 0, ?, ?, ?, ?)",
)
_TELL_AGAIN = "UPDATE entries SET report_no = ?, report = ? WHERE seq = ?"


def write_accepted(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """New rows."""
    _write(connection, _ACCEPT, entries, _accepted_values)


def write_changed(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """What changes of rows that are there."""
    _write(connection, _CHANGE, changes, _changed_values)


def write_told_again(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Numbers and reports of rows that say nothing new."""
    connection.executemany(_TELL_AGAIN, map(_told_again_values, changes))


def is_one_statement(rows: Sequence[object]) -> bool:
    """Whether that many rows are written with a single statement."""
    return len(rows) in _ACCEPT


def _write(
    connection: sqlite3.Connection, texts: dict[int, str], items: Sequence[T], values: Callable[[T], Values]
) -> None:
    written = 0
    for rows, text in texts.items():
        while len(items) - written >= rows:
            flat: list[int | str | bytearray] = []
            for item in items[written : written + rows]:
                flat += values(item)
            connection.execute(text, flat)
            written += rows


# sqlite3 looks for an adapter of every bytes object that it binds, in vain and for longer than the row takes to write.
# A bytearray it takes as it is.


def _accepted_values(entry: Entry) -> Values:
    return (
        entry.seq,
        bytearray(entry.command_id),
        bytearray(entry.digest),
        entry.actor,
        entry.action,
        bytearray(entry.arguments),
        entry.not_after_ms,
        entry.accepted_at_ms,
        entry.state,
        entry.report_no,
        entry.started_at_ms,
    )


def _changed_values(change: Change) -> Values:
    # The row keeps no arguments of what has ended: they may hold secrets, and nothing needs them any more.
    return change.entry.seq, change.state, change.report_no, change.started_at_ms, bytearray(change.final_report)


def _told_again_values(change: Change) -> Values:
    return change.report_no, bytearray(change.final_report), change.entry.seq
