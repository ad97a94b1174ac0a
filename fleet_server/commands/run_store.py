"""SQL over `command_runs`: which commands an issue holds.

An issue gives each of its nodes consecutive seqs, so one small row for each node says what an index over the issue ids
of all commands would say with an entry for each command.

No MAC covers these rows, because nothing is signed or sent by them. They lead to commands, and only to those whose own
row names the issue: a forged run shows nothing that is not there, a missing one only hides commands from views of their
issue. Views of the node still show them, and they are delivered all the same. A run that no server could have written
is passed over, and `impossible` names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleet_server.database.bulk import insert_many
from fleet_server.database.engine import Connection
from fleet_server.database.statements import fetch

# No server gives out a seq above half of what the column holds; PostgreSQL refuses a sum that overflows it.
POSSIBLE = f"r.first_seq BETWEEN 1 AND {2**62} AND r.count > 0"
# CASE, because nothing else says what is evaluated first; NULL compares with nothing.
_COLUMNS = {"issue_id": "text", "node_id": "text", "first_seq": "bigint", "count": "integer"}
_COMMANDS_OF_RUN = (
    "c.node_id = r.node_id AND c.seq >= r.first_seq"
    f" AND c.seq < CASE WHEN {POSSIBLE} THEN r.first_seq + r.count END AND c.issue_id = r.issue_id"
)


def insert_runs(conn: Connection, issue_id: str, first_seqs: Mapping[str, int], count: int) -> None:
    """Say which commands an issue holds: `count` of each node, from its first seq on."""
    rows = [(issue_id, node_id, first_seq, count) for node_id, first_seq in first_seqs.items()]
    insert_many(conn, "command_runs", _COLUMNS, rows)


def of_issue(conn: Connection, *, open_only: bool = False, issues: int = 1) -> str:
    """The end of a SELECT: commands `c` by way of their runs `r`, the id of their issue, or of so many `issues`, the
    first parameters.

    Each run's commands are looked up by primary key. Left to themselves, PostgreSQL takes a run for a ninth of its
    node's history and reads all commands there are instead, and SQLite may begin at the commands.
    """
    is_open = " c.state < 5 AND" if open_only else ""
    if conn.dialect.name == "postgresql":
        # OFFSET keeps the planner from pulling the inner SELECT up into the join, and from looking through the index of
        # all open commands once for each run.
        commands = f"LATERAL (SELECT * FROM commands c WHERE {_COMMANDS_OF_RUN} OFFSET 0) c WHERE{is_open}"  # noqa: S608  # constants
    else:
        commands = f"commands c WHERE {_COMMANDS_OF_RUN} AND{is_open}"
    ids = ", ".join("?" * issues)
    return f"command_runs r CROSS JOIN {commands} r.issue_id IN ({ids})"


def impossible(conn: Connection, issue_id: str) -> list[str]:
    """Ids of the nodes whose run of this issue was written by somebody else than a server."""
    text = f"SELECT r.node_id FROM command_runs r WHERE r.issue_id = ? AND NOT ({POSSIBLE}) ORDER BY r.node_id"  # noqa: S608
    return [node_id for (node_id,) in fetch(conn, text, (issue_id,))]
