"""SQL over `command_runs`: which commands an issue holds.

An issue gives each of its nodes consecutive seqs, so one small row for each node says what an index over the issue ids
of all commands would say with an entry for each command.

No MAC covers these rows, because nothing is signed or sent by them. They lead to commands, and only to those whose own
row names the issue: a forged run shows nothing that is not there, a missing one only hides commands from views of their
issue and from what looks after all that is open. Views of the node still show them, and they are delivered all the
same. A run that no server could have written is passed over, and `impossible` names it.

A run is open until a survey found that all its commands had ended (`open_store`), which none ever takes back. So the
open runs lead to every open command, however long the history, and no index has to hold the state of commands: of a
row whose state is in an index PostgreSQL writes all index entries anew each time the state moves.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleet_server.database.bulk import insert_many
from fleet_server.database.engine import Connection
from fleet_server.database.statements import fetch


def _possible(run: str) -> str:
    # No server gives out a seq above half of what the column holds; PostgreSQL refuses a sum that overflows it.
    return f"{run}.first_seq BETWEEN 1 AND {2**62} AND {run}.count > 0"


def commands_of(run: str) -> str:
    """What has to hold of a command ``c`` that is one of a run, which a statement calls `run`."""
    # CASE, because nothing else says what is evaluated first; NULL compares with nothing.
    end = f"CASE WHEN {_possible(run)} THEN {run}.first_seq + {run}.count END"
    return f"c.node_id = {run}.node_id AND c.seq >= {run}.first_seq AND c.seq < {end} AND c.issue_id = {run}.issue_id"


POSSIBLE = _possible("r")
COMMANDS_OF_RUN = commands_of("r")
_COLUMNS = {"issue_id": "text", "node_id": "text", "first_seq": "bigint", "count": "integer", "is_open": "integer"}


def insert_runs(conn: Connection, issue_id: str, first_seqs: Mapping[str, int], count: int) -> None:
    """Say which commands an issue holds: `count` of each node, from its first seq on."""
    rows = [(issue_id, node_id, first_seq, count, 1) for node_id, first_seq in first_seqs.items()]
    insert_many(conn, "command_runs", _COLUMNS, rows)


def of_issue(conn: Connection, *, open_only: bool = False, issues: int = 1) -> str:
    """The end of a SELECT: commands `c` by way of their runs `r`, the id of their issue, or of so many `issues`, the
    first parameters.

    Each run's commands are looked up by primary key. Left to themselves, PostgreSQL takes a run for a ninth of its
    node's history and reads all commands there are instead, and SQLite may begin at the commands.
    """
    is_open = " AND c.state < 5" if open_only else ""
    return f"{_joined(conn)} AND r.issue_id IN ({', '.join('?' * issues)}){is_open}"


def of_open_runs(conn: Connection, *, of_node: bool = False, due: bool = False) -> str:
    """The end of a SELECT: open commands `c` by way of the runs `r` that may hold some. What it reads grows with the
    commands of these runs, never with the history.

    Args:
        of_node: only those of a node; its id is the first parameter.
        due: only those of issues whose time was past at a moment in Unix ms, which is the next parameter.
    """
    node = " AND r.node_id = ?" if of_node else ""
    # A value, not a join: PostgreSQL looks each issue up instead of reading all there are.
    expires = "(SELECT i.not_after_ms FROM command_issues i WHERE i.issue_id = r.issue_id)"
    passed = f" AND COALESCE({expires}, 0) < ?" if due else ""
    return f"{_joined(conn)} AND r.is_open = 1{node}{passed} AND c.state < 5"


def _joined(conn: Connection) -> str:
    if conn.dialect.name == "postgresql":
        # OFFSET keeps the planner from pulling the inner SELECT up into the join, and from reading all commands.
        return f"command_runs r CROSS JOIN LATERAL (SELECT * FROM commands c WHERE {COMMANDS_OF_RUN} OFFSET 0) c WHERE TRUE"  # noqa: S608, E501  # constants
    return f"command_runs r CROSS JOIN commands c WHERE {COMMANDS_OF_RUN}"


def impossible(conn: Connection, issue_id: str) -> list[str]:
    """Ids of the nodes whose run of this issue was written by somebody else than a server."""
    text = f"SELECT r.node_id FROM command_runs r WHERE r.issue_id = ? AND NOT ({POSSIBLE}) ORDER BY r.node_id"  # noqa: S608
    return [node_id for (node_id,) in fetch(conn, text, (issue_id,))]
