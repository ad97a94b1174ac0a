"""SQL over `route_configs`: which version of its part of the configuration each node is to have. Confers nothing: the
part is built from other rows, and signed."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.

from __future__ import annotations

from collections.abc import Iterable

from fleet_server.database.bulk import EachUpdate, fetch_of, insert_many
from fleet_server.database.engine import Connection, for_change
from fleet_server.database.statements import execute, fetch
from fleet_server.routes.record import ConfigRecord

MAX_VERSION = 2**53
"""What a node may show at most: a number that JSON still tells exactly."""

_SELECT = "SELECT node_id, version, changed_at_ms, applied_version, applied, reason, applied_at_ms FROM route_configs"
_KINDS = {"node_id": "text", "version": "bigint", "changed_at_ms": "bigint"}
_BUMP = EachUpdate(
    "route_configs",
    {"changed": "bigint", "node_id": "text"},
    "version = t.version + 1, changed_at_ms = v.changed",
    "t.node_id = v.node_id",
)
# Another replica makes the same row at the same moment: its version is as new.
_BESIDE = (
    " ON CONFLICT (node_id) DO UPDATE SET version = route_configs.version + 1, changed_at_ms = excluded.changed_at_ms"
)


def bump(conn: Connection, node_ids: Iterable[str], now_ms: int) -> None:
    """Have these nodes be sent their part anew. Taken in one order; later than each change before it, whatever the
    clock says, so that whoever looks for changes since a time finds it."""
    wanted = sorted(set(node_ids))
    if not wanted:
        return
    lock = for_change(conn)
    there = [row[0] for row in fetch_of(conn, "SELECT node_id FROM route_configs", "node_id", wanted, lock=lock)]
    at_ms = max(now_ms, newest_ms(conn) + 1)
    _BUMP.run(conn, [(at_ms, node_id) for node_id in there])
    known = set(there)
    fresh = [(node_id, 1, at_ms) for node_id in wanted if node_id not in known]
    if fresh:
        insert_many(conn, "route_configs", _KINDS, fresh, _BESIDE)


def raise_above(conn: Connection, node_id: str, shown: int, now_ms: int) -> bool:
    """A node shows a version: have its next one be above that. False when it is already, or nothing is."""
    if not 0 < shown < MAX_VERSION:
        return False
    text = (
        "INSERT INTO route_configs (node_id, version, changed_at_ms) VALUES (?, ?, ?) ON CONFLICT (node_id) DO UPDATE"
        " SET version = excluded.version, changed_at_ms = excluded.changed_at_ms"
        " WHERE route_configs.version < excluded.version - 1"
    )
    return execute(conn, text, (node_id, shown + 1, max(now_ms, newest_ms(conn) + 1))) > 0


def note_applied(conn: Connection, node_id: str, version: int, now_ms: int, *, applied: bool, reason: str = "") -> None:
    """A node told which version it runs, or refused."""
    text = "UPDATE route_configs SET applied_version = ?, applied = ?, reason = ?, applied_at_ms = ? WHERE node_id = ?"
    execute(conn, text, (version, int(applied), reason, now_ms, node_id))


def by_ids(conn: Connection, node_ids: Iterable[str]) -> dict[str, ConfigRecord]:
    """By node; one that has no part is missing."""
    rows = fetch_of(conn, _SELECT, "node_id", sorted(set(node_ids)))
    return {row[0]: ConfigRecord._make((*row[:4], bool(row[4]), *row[5:])) for row in rows}


def newest_ms(conn: Connection) -> int:
    """Time of the last change; 0 before the first."""
    return int(fetch(conn, "SELECT COALESCE(MAX(changed_at_ms), 0) FROM route_configs")[0][0])


def changed_since(conn: Connection, since_ms: int) -> list[tuple[str, int]]:
    """(node id, time) of parts that changed after a time."""
    text = "SELECT node_id, changed_at_ms FROM route_configs WHERE changed_at_ms > ?"
    return [(row[0], row[1]) for row in fetch(conn, text, (since_ms,))]


def node_ids(conn: Connection) -> list[str]:
    """Nodes that have, or had, a part."""
    return [node_id for (node_id,) in fetch(conn, "SELECT node_id FROM route_configs")]
