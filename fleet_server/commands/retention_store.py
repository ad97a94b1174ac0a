"""SQL that forgets commands: issues that ended long ago, piece by piece."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fleet_server.commands.rules import MAX_SPECS
from fleet_server.commands.run_store import POSSIBLE, of_issue
from fleet_server.commands.store import Connection, marks, padded
from fleet_server.database.statements import execute_many, fetch

Place = tuple[int, str]
"""(issued_at_ms, issue_id): where in the history an issue stands."""


class Issue(NamedTuple):
    """An issue of the history, and how many commands it was made of."""

    issued_at_ms: int
    issue_id: str
    commands: int


class Piece(NamedTuple):
    """Some commands of one node and one issue: seqs from `first_seq` on, before `end_seq`. No node and no seqs: the
    issue, which holds none.

    Args:
        output_bytes: of their outputs; where a run is in several pieces, its mean.
        is_whole: whether these are all that the issue holds of the node.
    """

    issue_id: str
    node_id: str
    first_seq: int
    end_seq: int
    output_bytes: int = 0
    is_whole: bool = False

    @property
    def size(self) -> int:
        """What it costs to delete, in commands: an issue that nobody took holds none."""
        return max(1, self.end_seq - self.first_seq)


class Most(NamedTuple):
    """What a transaction may delete; a piece is at most that."""

    commands: int
    output_bytes: int


def issues_before(conn: Connection, before_ms: int, after: Place, limit: int) -> list[Issue]:
    """Issues that were made before a time, oldest first, behind `after`."""
    at_ms, issue_id = after
    text = (
        "SELECT issued_at_ms, issue_id, issued_count FROM command_issues"
        " WHERE issued_at_ms < ? AND issued_at_ms >= ? AND (issued_at_ms > ? OR issue_id > ?)"
        " ORDER BY issued_at_ms, issue_id LIMIT ?"
    )
    return [Issue(*row) for row in fetch(conn, text, (before_ms, at_ms, at_ms, issue_id, limit))]


def pieces(conn: Connection, issue_ids: Sequence[str], before_ms: int, most: Most) -> list[Piece]:
    """Issues of which every command ended before a time, in pieces. It stays so: only a result that the server had
    declared unknown is ever replaced. A run that no server could have written is left where it is."""
    open_issues: set[str] = set()
    output_bytes: dict[tuple[str, str], int] = {}
    runs: dict[str, list[tuple[str, int, int]]] = {issue_id: [] for issue_id in issue_ids}
    for ids in padded(issue_ids):
        # LENGTH reads no output: both databases know it from the row.
        text = (
            "SELECT r.issue_id, r.node_id, MAX(CASE WHEN c.state < 5 OR c.finished_at_ms >= ? THEN 1 ELSE 0 END),"
            f" SUM(COALESCE(LENGTH(c.output), 0)) FROM {of_issue(conn, issues=len(ids))} GROUP BY r.issue_id, r.node_id"
        )
        for issue_id, node_id, is_open, size in fetch(conn, text, (before_ms, *ids)):
            output_bytes[issue_id, node_id] = int(size)
            if is_open:
                open_issues.add(issue_id)
        text = (
            "SELECT r.issue_id, r.node_id, r.first_seq, r.count FROM command_runs r"
            f" WHERE r.issue_id IN ({marks(ids)}) AND {POSSIBLE} ORDER BY r.node_id"
        )
        for issue_id, *run in fetch(conn, text, ids):
            runs[issue_id].append((run[0], run[1], run[2]))
    found: list[Piece] = []
    for issue_id in issue_ids:
        if issue_id in open_issues:
            continue
        of_nodes = [
            piece
            for node_id, first_seq, count in runs[issue_id]
            if count <= MAX_SPECS
            for piece in _pieces_of_run(
                Piece(issue_id, node_id, first_seq, first_seq + count, output_bytes.get((issue_id, node_id), 0)), most
            )
        ]
        found += of_nodes or [Piece(issue_id, "", 0, 0)]
    return found


def _pieces_of_run(run: Piece, most: Most) -> list[Piece]:
    each_bytes = -(-run.output_bytes // run.size)
    step = min(most.commands, max(1, most.output_bytes // max(1, each_bytes)))
    ends = [(seq, min(seq + step, run.end_seq)) for seq in range(run.first_seq, run.end_seq, step)]
    return [
        Piece(
            run.issue_id,
            run.node_id,
            first_seq,
            end_seq,
            output_bytes=each_bytes * (end_seq - first_seq),
            is_whole=len(ends) == 1,
        )
        for first_seq, end_seq in ends
    ]


def forget_commands(conn: Connection, some: Sequence[Piece], before_ms: int) -> int:
    """Delete what ended before a time; how many commands that were."""
    text = (
        "DELETE FROM commands WHERE node_id = ? AND seq >= ? AND seq < ? AND issue_id = ?"
        " AND state >= 5 AND finished_at_ms < ?"
    )
    where = [(each.node_id, each.first_seq, each.end_seq, each.issue_id, before_ms) for each in some]
    return execute_many(conn, text, where)


def forget_runs(conn: Connection, some: Sequence[Piece], *, emptied: bool) -> None:
    """Delete the runs whose last piece is among these and whose commands are all gone.

    Args:
        emptied: whether all commands of these pieces were deleted: then nobody has to look after those of a whole run.
    """
    whole = [each for each in some if each.is_whole and emptied]
    text = "DELETE FROM command_runs WHERE issue_id = ? AND node_id = ? AND first_seq = ? AND first_seq + count = ?"
    execute_many(conn, text, [(each.issue_id, each.node_id, each.first_seq, each.end_seq) for each in whole])
    text = (
        "DELETE FROM command_runs WHERE issue_id = ? AND node_id = ? AND first_seq + count = ?"
        " AND NOT EXISTS (SELECT 1 FROM commands AS c WHERE c.node_id = command_runs.node_id"
        " AND c.seq >= command_runs.first_seq AND c.seq < ? AND c.issue_id = command_runs.issue_id)"
    )
    others = [each for each in some if not (each.is_whole and emptied)]
    execute_many(conn, text, [(each.issue_id, each.node_id, each.end_seq, each.end_seq) for each in others])


def forget_issues(conn: Connection, issue_ids: Sequence[str]) -> None:
    """Delete the issues that hold nothing any more."""
    text = (
        "DELETE FROM command_issues WHERE issue_id = ?"
        " AND NOT EXISTS (SELECT 1 FROM command_runs WHERE command_runs.issue_id = ?)"
    )
    execute_many(conn, text, [(issue_id, issue_id) for issue_id in issue_ids])
