"""Rows of the journal as SQLite takes them."""

from __future__ import annotations

from fleet_node.commands.entry import Change, Entry

Values = tuple[int | str | bytearray, ...]

# sqlite3 looks for an adapter of every bytes object that it binds, in vain and for longer than the row takes to write.
# A bytearray it takes as it is.


def accepted_values(entry: Entry) -> Values:
    """A new row, but for its report."""
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


def changed_values(change: Change) -> Values:
    """What changes of a row."""
    # The row keeps no arguments of what has ended: they may hold secrets, and nothing needs them any more.
    return change.entry.seq, change.state, change.report_no, change.started_at_ms, bytearray(change.final_report)


def told_again_values(change: Change) -> Values:
    """What changes of a row that says nothing new."""
    return change.report_no, bytearray(change.final_report), change.entry.seq
