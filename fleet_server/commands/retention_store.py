"""SQL that forgets commands: issues that ended long ago, piece by piece."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fleet_server.commands.rules import MAX_SPECS
from fleet_server.commands.run_store import POSSIBLE, of_issue
from fleet_server.commands.store import Connection
from fleet_server.database.statements import execute_many, fetch

Place = tuple[int, str]
"""(issued_at_ms, issue_id): where in the history an issue stands."""


class Piece(NamedTuple):
    """Some commands of one node and one issue: seqs from `first_seq` on, before `end_seq`. No node and no seqs: the
    issue, which holds none."""

    issue_id: str
    node_id: str
    first_seq: int
    end_seq: int

    @property
    def size(self) -> int:
        """What it costs to delete, in commands: an issue that nobody took holds none."""
        return max(1, self.end_seq - self.first_seq)


def issues_before(conn: Connection, before_ms: int, after: Place, limit: int) -> list[Place]:
    """Issues that were made before a time, oldest first, behind `after`."""
    at_ms, issue_id = after
    text = (
        "SELECT issued_at_ms, issue_id FROM command_issues WHERE issued_at_ms < ? AND issued_at_ms >= ?"
        " AND (issued_at_ms > ? OR issue_id > ?) ORDER BY issued_at_ms, issue_id LIMIT ?"
    )
    return [(row[0], row[1]) for row in fetch(conn, text, (before_ms, at_ms, at_ms, issue_id, limit))]


def ended_before(conn: Connection, issue_id: str, before_ms: int) -> bool:
    """Whether every command of an issue ended before a time. It stays so: only a result that the server had declared
    unknown is ever replaced."""
    text = f"SELECT 1 FROM {of_issue(conn)} AND (c.state < 5 OR c.finished_at_ms >= ?) LIMIT 1"
    return not fetch(conn, text, (issue_id, before_ms))


def pieces(conn: Connection, issue_id: str, size: int) -> list[Piece]:
    """An issue's commands in pieces of at most `size`. A run that no server could have written is left where it is."""
    text = f"SELECT r.node_id, r.first_seq, r.count FROM command_runs r WHERE r.issue_id = ? AND {POSSIBLE} ORDER BY 1"
    found = [
        Piece(issue_id, node_id, seq, min(seq + size, first_seq + count))
        for node_id, first_seq, count in fetch(conn, text, (issue_id,))
        if count <= MAX_SPECS
        for seq in range(first_seq, first_seq + count, size)
    ]
    return found or [Piece(issue_id, "", 0, 0)]


def forget_commands(conn: Connection, some: Sequence[Piece], before_ms: int) -> int:
    """Delete what ended before a time; how many commands that were."""
    text = (
        "DELETE FROM commands WHERE node_id = ? AND seq >= ? AND seq < ? AND issue_id = ?"
        " AND state >= 5 AND finished_at_ms < ?"
    )
    where = [(each.node_id, each.first_seq, each.end_seq, each.issue_id, before_ms) for each in some]
    return execute_many(conn, text, where)


def forget_runs(conn: Connection, some: Sequence[Piece]) -> None:
    """Delete the runs whose last piece is among these and whose commands are all gone."""
    text = (
        "DELETE FROM command_runs WHERE issue_id = ? AND node_id = ? AND first_seq + count = ?"
        " AND NOT EXISTS (SELECT 1 FROM commands AS c WHERE c.node_id = command_runs.node_id"
        " AND c.seq >= command_runs.first_seq AND c.seq < ? AND c.issue_id = command_runs.issue_id)"
    )
    execute_many(conn, text, [(each.issue_id, each.node_id, each.end_seq, each.end_seq) for each in some])


def forget_issues(conn: Connection, issue_ids: Sequence[str]) -> None:
    """Delete the issues that hold nothing any more."""
    text = (
        "DELETE FROM command_issues WHERE issue_id = ?"
        " AND NOT EXISTS (SELECT 1 FROM command_runs WHERE command_runs.issue_id = ?)"
    )
    execute_many(conn, text, [(issue_id, issue_id) for issue_id in issue_ids])
