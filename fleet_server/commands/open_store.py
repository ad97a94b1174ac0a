"""SQL over all that is open: the survey of the whole fleet, and the end of runs whose commands have all ended."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fleet_server.commands.run_store import COMMANDS_OF_RUN, commands_of, of_open_runs
from fleet_server.commands.store import Connection, Key, padded
from fleet_server.database.bulk import EachUpdate
from fleet_server.database.engine import for_update_of_free
from fleet_server.database.statements import fetch

RunKey = tuple[str, str]
"""(issue_id, node_id): primary key of a run."""


class OpenOfNode(NamedTuple):
    """How many commands of a node are open; of these, were not sent or not answered; have a cancel that waits; and the
    lowest seq of them."""

    node_id: str
    open: int
    unanswered: int
    asked: int
    lowest: int


class Survey(NamedTuple):
    """Nodes that have open commands, and runs that are open though none of their commands is."""

    nodes: list[OpenOfNode]
    ended: list[RunKey]


# A sum, for the same reason as in `store`: of each run PostgreSQL would look through all that is open.
_IS_OPEN = "(c.state + 0) < 5"
_OPEN_COUNTS = (
    "COUNT(c.seq), SUM(CASE WHEN c.state = 1 OR (c.state = 2 AND c.sent_at_ms < ?) THEN 1 ELSE 0 END),"
    " SUM(CASE WHEN c.cancel_requested_by <> '' THEN 1 ELSE 0 END), MIN(c.seq)"
)
_END = EachUpdate(
    "command_runs",
    {"issue_id": "text", "node_id": "text"},
    "is_open = 0",
    "t.issue_id = v.issue_id AND t.node_id = v.node_id",
    f"(SELECT COUNT(*) FROM commands c WHERE {commands_of('t')} AND {_IS_OPEN}) = 0",
)


def survey(conn: Connection, sent_before_ms: int) -> Survey:
    """Read what is open in the whole fleet; what was sent at `sent_before_ms` or later is on its way, and not
    unanswered."""
    if conn.dialect.name == "postgresql":
        # An aggregate for each run: nothing else keeps the planner from joining all commands there are.
        counts = f"SELECT {_OPEN_COUNTS} FROM commands c WHERE {COMMANDS_OF_RUN} AND {_IS_OPEN}"
        text = f"SELECT r.node_id, r.issue_id, n.* FROM command_runs r, LATERAL ({counts}) n WHERE r.is_open = 1"
    else:
        text = (
            f"SELECT r.node_id, r.issue_id, {_OPEN_COUNTS} FROM command_runs r"
            f" LEFT JOIN commands c ON {COMMANDS_OF_RUN} AND {_IS_OPEN}"
            " WHERE r.is_open = 1 GROUP BY r.node_id, r.issue_id"
        )
    nodes: dict[str, OpenOfNode] = {}
    ended: list[RunKey] = []
    for node_id, issue_id, *counted in fetch(conn, text, (sent_before_ms,)):
        if not counted[0]:
            ended.append((issue_id, node_id))
            continue
        found = OpenOfNode(node_id, *counted)
        known = nodes.get(node_id)
        nodes[node_id] = found if known is None else _both(known, found)
    return Survey(list(nodes.values()), ended)


def with_more(conn: Connection, accepted: Mapping[str, int]) -> set[str]:
    """Those of these nodes that have a command, open or not, above a seq of theirs.

    Args:
        accepted: seq by node id.
    """
    if conn.dialect.name != "postgresql":
        text = "SELECT 1 FROM commands WHERE node_id = ? AND seq > ? LIMIT 1"
        return {node_id for node_id, seq in accepted.items() if fetch(conn, text, (node_id, seq))}
    # LIMIT keeps the planner from joining all commands there are.
    text = (
        "SELECT v.node_id FROM unnest(CAST(? AS text[]), CAST(? AS bigint[])) AS v (node_id, seq) CROSS JOIN LATERAL"
        " (SELECT 1 FROM commands c WHERE c.node_id = v.node_id AND c.seq > v.seq LIMIT 1) more"
    )
    return {node_id for (node_id,) in fetch(conn, text, (list(accepted), list(accepted.values())))}


def end_runs(conn: Connection, runs: Sequence[RunKey]) -> None:
    """Note that all commands of these runs have ended, where that is so in this database: one that went back after they
    were surveyed may hold some of them open, and nobody would find those again. Whoever holds a run is at the same, or
    forgets it."""
    free: set[RunKey] = set()
    for chunk in padded(runs):
        text = (
            "SELECT r.issue_id, r.node_id FROM command_runs r WHERE r.is_open = 1"
            f" AND (r.issue_id, r.node_id) IN (VALUES {', '.join(['(?, ?)'] * len(chunk))}){for_update_of_free(conn)}"
        )
        free.update((row[0], row[1]) for row in fetch(conn, text, [part for key in chunk for part in key]))
    _END.run(conn, sorted(free))


def asked_cancels(conn: Connection) -> list[Key]:
    """Open commands whose cancel is not answered, of all nodes."""
    text = f"SELECT c.node_id, c.seq FROM {of_open_runs(conn)} AND c.cancel_requested_by <> ''"
    return [(node_id, seq) for node_id, seq in fetch(conn, text)]


def _both(one: OpenOfNode, other: OpenOfNode) -> OpenOfNode:
    return OpenOfNode(
        one.node_id,
        one.open + other.open,
        one.unanswered + other.unanswered,
        one.asked + other.asked,
        min(one.lowest, other.lowest),
    )
