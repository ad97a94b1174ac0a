"""SQL of the drain states in `nodes`."""

from __future__ import annotations

from collections.abc import Sequence

from fleet_server.database.bulk import EachUpdate
from fleet_server.database.engine import Connection
from fleet_server.database.statements import execute
from fleet_server.nodes.record import DrainState

_DRAIN = EachUpdate(
    "nodes",
    {"drain_state": "text", "drain_deadline_ms": "bigint", "node_id": "text"},
    "drain_state = v.drain_state, drain_deadline_ms = v.drain_deadline_ms",
    "t.node_id = v.node_id",
)


def set_drain(conn: Connection, node_ids: Sequence[str], state: DrainState, deadline_ms: int) -> None:
    """Set the drain state."""
    _DRAIN.run(conn, [(state.value, deadline_ms, node_id) for node_id in node_ids])


def mark_drained(conn: Connection, node_id: str) -> bool:
    """DRAINING becomes DRAINED; anything else stays."""
    text = "UPDATE nodes SET drain_state = ? WHERE node_id = ? AND drain_state = ?"
    return execute(conn, text, (DrainState.DRAINED.value, node_id, DrainState.DRAINING.value)) == 1
