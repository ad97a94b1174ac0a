"""SQL that shows commands: by key, by issue, by node."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fleet_server.commands.rules import SUCCEEDED, Standing
from fleet_server.commands.run_store import of_issue, of_open_runs
from fleet_server.commands.store import Connection, Key, NewRow, StandingRow, marks, padded
from fleet_server.database.engine import sql
from fleet_server.database.statements import fetch

_MAX_SEQ = 2**63 - 1


class FullRow(NamedTuple):
    """A command as it is shown.

    Args:
        mac: empty for one that did not come from the database just now, but with the change that this replica made.
    """

    node_id: str
    seq: int
    command_id: bytes
    issue_id: str
    spec_no: int
    not_after_ms: int
    state: int
    cancel_requested_by: str
    key_id: bytes | None
    sent_at_ms: int
    accepted_at_ms: int
    started_at_ms: int
    finished_at_ms: int
    output_truncated: int
    reason: str
    error: str
    mac: bytes
    output: bytes | None


class FoundRow(NamedTuple):
    """Where a command stands."""

    node_id: str
    seq: int
    state: int
    mark: int
    not_after_ms: int


def mark(state: int, cancel_requested_by: str) -> int:
    """What people see move while a command is open: its state, and that its cancel waits for an answer."""
    return 2 * state + bool(cancel_requested_by)


def as_issued(row: NewRow) -> FullRow:
    """A command that was just inserted, as it is shown."""
    return FullRow(
        node_id=row.node_id,
        seq=row.seq,
        command_id=row.command_id,
        issue_id=row.issue_id,
        spec_no=row.spec_no,
        not_after_ms=row.not_after_ms,
        state=row.state,
        cancel_requested_by="",
        key_id=row.key_id,
        sent_at_ms=row.sent_at_ms,
        accepted_at_ms=0,
        started_at_ms=0,
        finished_at_ms=0,
        output_truncated=0,
        reason="",
        error="",
        mac=row.mac,
        output=None,
    )


def as_reported(row: StandingRow, now: Standing) -> FullRow:
    """A command that a report moved from `row` on, as it is shown."""
    return FullRow(
        node_id=row.node_id,
        seq=row.seq,
        command_id=row.command_id,
        issue_id=row.issue_id,
        spec_no=row.spec_no,
        not_after_ms=row.not_after_ms,
        state=now.state,
        cancel_requested_by=row.cancel_requested_by,
        key_id=row.key_id,
        sent_at_ms=row.sent_at_ms,
        accepted_at_ms=now.accepted_at_ms,
        started_at_ms=now.started_at_ms,
        finished_at_ms=now.finished_at_ms,
        output_truncated=now.output_truncated,
        reason=now.reason,
        error=now.error,
        mac=row.mac,
        output=now.output,
    )


_FULL = ", ".join(f"c.{column}" for column in FullRow._fields)
_BRIEF = _FULL.removesuffix("c.output") + "NULL"


def full_by_keys(conn: Connection, keys: Sequence[Key], *, brief: bool) -> list[FullRow]:
    """Commands by key, by node and seq; without outputs when `brief`."""
    by_node: dict[str, list[int]] = {}
    for node_id, seq in keys:
        by_node.setdefault(node_id, []).append(seq)
    found: list[FullRow] = []
    for node_id, seqs in by_node.items():
        for chunk in padded(sorted(seqs)):
            text = (
                f"SELECT {_BRIEF if brief else _FULL} FROM commands c"
                f" WHERE c.node_id = ? AND c.seq IN ({marks(chunk)}) ORDER BY c.seq"
            )
            found.extend(FullRow(*row) for row in fetch(conn, text, (node_id, *chunk)))
    return found


def full_by_id(conn: Connection, command_id: bytes) -> FullRow | None:
    """One command."""
    text = f"SELECT {_FULL} FROM commands c WHERE c.command_id = ?"
    row = conn.exec_driver_sql(sql(conn, text), (command_id,)).first()
    return None if row is None else FullRow(*row)


def page_of_issue(
    conn: Connection, issue_id: str, *, after: Key, limit: int, open_only: bool = False, brief: bool = False
) -> list[FullRow]:
    """Commands of an issue, by node and seq."""
    text = (
        f"SELECT {_BRIEF if brief else _FULL} FROM {of_issue(conn, open_only=open_only)}"
        " AND r.node_id >= ? AND (r.node_id > ? OR c.seq > ?) ORDER BY r.node_id, c.seq LIMIT ?"
    )
    node_id, seq = after
    return [FullRow(*row) for row in fetch(conn, text, (issue_id, node_id, node_id, seq, limit))]


def page_of_node(
    conn: Connection, node_id: str, *, issue_id: str, before_seq: int | None, limit: int, open_only: bool
) -> list[FullRow]:
    """Commands of a node, newest first; of one issue when `issue_id` is not empty."""
    if issue_id:
        source = f"{of_issue(conn, open_only=open_only)} AND r.node_id = ?"
    elif open_only:
        source = of_open_runs(conn, of_node=True)
    else:
        source = "commands c WHERE c.node_id = ?"
    text = f"SELECT {_FULL} FROM {source} AND c.seq < ? ORDER BY c.seq DESC LIMIT ?"
    whose = (issue_id, node_id) if issue_id else (node_id,)
    before = _MAX_SEQ if before_seq is None else before_seq
    return [FullRow(*row) for row in fetch(conn, text, (*whose, before, limit))]


def issue_before(conn: Connection, before: tuple[int, str] | None) -> tuple[int, str] | None:
    """(issued_at_ms, issue_id) of the newest issue before another that holds commands."""
    at_ms, issue_id = before or (_MAX_SEQ, "")
    text = (
        "SELECT issued_at_ms, issue_id FROM command_issues WHERE issued_count > 0 AND issued_at_ms <= ?"
        " AND (issued_at_ms < ? OR issue_id < ?) ORDER BY issued_at_ms DESC, issue_id DESC LIMIT 1"
    )
    row = conn.exec_driver_sql(sql(conn, text), (at_ms, at_ms, issue_id)).first()
    return None if row is None else (row[0], row[1])


def open_issues(conn: Connection) -> list[tuple[int, str]]:
    """(issued_at_ms, issue_id) of issues that hold open commands, newest first."""
    text = (
        "SELECT issued_at_ms, issue_id FROM command_issues"
        f" WHERE issue_id IN (SELECT r.issue_id FROM {of_open_runs(conn)}) ORDER BY issued_at_ms DESC, issue_id DESC"
    )
    return [(row[0], row[1]) for row in conn.exec_driver_sql(text)]


def open_keys(conn: Connection, issue_id: str) -> list[Key]:
    """Commands of an issue that have not ended."""
    text = f"SELECT c.node_id, c.seq FROM {of_issue(conn, open_only=True)}"
    return [(node_id, seq) for node_id, seq in fetch(conn, text, (issue_id,))]


def open_marks(conn: Connection, issue_id: str) -> dict[Key, int]:
    """Where the commands of an issue stand that have not ended; see `mark`."""
    text = f"SELECT c.node_id, c.seq, c.state, c.cancel_requested_by FROM {of_issue(conn, open_only=True)}"
    return {row[:2]: mark(*row[2:]) for row in fetch(conn, text, (issue_id,))}


def marks_of(conn: Connection, keys: Sequence[Key]) -> list[tuple[Key, int]]:
    """Where those of some commands stand that have not ended; see `mark`."""
    found: list[tuple[Key, int]] = []
    for chunk in padded(keys):
        text = (
            "SELECT c.node_id, c.seq, c.state, c.cancel_requested_by FROM commands c"
            f" WHERE (c.node_id, c.seq) IN (VALUES {', '.join(['(?, ?)'] * len(chunk))})"
        )
        rows = fetch(conn, text, [part for key in chunk for part in key])
        found += [(row[:2], mark(*row[2:])) for row in rows if row[2] < SUCCEEDED]
    return found


def found_open(conn: Connection, limit: int) -> list[FoundRow]:
    """Open commands of all nodes, so many at most: those whose time passes first, in that order, by node and seq where
    it is the same."""
    text = (
        f"SELECT c.node_id, c.seq, c.state, c.cancel_requested_by, c.not_after_ms FROM {of_open_runs(conn)}"
        " ORDER BY c.not_after_ms, c.node_id, c.seq LIMIT ?"
    )
    return [_found(row) for row in fetch(conn, text, (limit,))]


def found_of(conn: Connection, issue_ids: Sequence[str]) -> list[FoundRow]:
    """Commands of some issues, ended ones too."""
    found: list[FoundRow] = []
    for chunk in padded(issue_ids):
        source = of_issue(conn, issues=len(chunk))
        text = f"SELECT c.node_id, c.seq, c.state, c.cancel_requested_by, c.not_after_ms FROM {source}"
        found += map(_found, fetch(conn, text, list(chunk)))
    return found


def issues_since(conn: Connection, since_ms: int) -> dict[str, int]:
    """Issues that hold commands and were made after a time in Unix ms, by id, each with its own."""
    text = "SELECT issue_id, issued_at_ms FROM command_issues WHERE issued_count > 0 AND issued_at_ms > ?"
    return dict(fetch(conn, text, (since_ms,)))


def _found(row: tuple[Any, ...]) -> FoundRow:
    node_id, seq, state, cancel_requested_by, not_after_ms = row
    return FoundRow(node_id, seq, state, mark(state, cancel_requested_by), not_after_ms)
