"""SQL that finds routes which are due, and holds those that nobody else holds."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fleet_server.database.bulk import fetch_of
from fleet_server.database.engine import Connection, for_update_of_free
from fleet_server.database.statements import fetch

_LENT = "l.route_id = r.route_id AND l.relay_node_id = r.relay_node_id AND l.withdrawn = 0"


def hold_free(conn: Connection, route_ids: Iterable[str]) -> list[str]:
    """Those of these routes whose rows nobody else holds: they are held now, until the transaction ends."""
    lock = for_update_of_free(conn)
    rows = fetch_of(conn, "SELECT route_id FROM routes", "route_id", sorted(set(route_ids)), lock=lock)
    return [route_id for (route_id,) in rows]


def existing(conn: Connection, route_ids: Iterable[str]) -> set[str]:
    """Those of these routes that there are, held by somebody or not."""
    rows = fetch_of(conn, "SELECT route_id FROM routes", "route_id", sorted(set(route_ids)))
    return {route_id for (route_id,) in rows}


def ids_over(conn: Connection, relay_ids: Sequence[str]) -> list[str]:
    """Ids of enabled routes that lead over one of these relays."""
    rows = fetch_of(conn, "SELECT route_id, enabled FROM routes", "relay_node_id", relay_ids)
    return [route_id for route_id, enabled in rows if enabled]


def ids_ending(conn: Connection, before_ms: int, limit: int) -> list[str]:
    """Ids of enabled routes over a relay whose lease for them ends before a time, the first to end first."""
    text = (
        f"SELECT r.route_id FROM route_leases l JOIN routes r ON {_LENT} WHERE l.expires_at_ms < ? AND r.enabled = 1"
        " ORDER BY l.expires_at_ms LIMIT ?"
    )
    return [route_id for (route_id,) in fetch(conn, text, (before_ms, limit))]


def ids_without_lease(conn: Connection, limit: int) -> list[str]:
    """Ids of enabled routes over a relay that was lent nothing for them, or from whom that was taken back."""
    text = (
        "SELECT r.route_id FROM routes r WHERE r.enabled = 1 AND r.relay_node_id <> ''"
        f" AND NOT EXISTS (SELECT 1 FROM route_leases l WHERE {_LENT}) ORDER BY r.route_id LIMIT ?"
    )
    return [route_id for (route_id,) in fetch(conn, text, (limit,))]


def ids_unseen(conn: Connection, past_ms: int, intervals: int, limit: int) -> list[str]:
    """Ids of enabled routes whose path counts for something, and was not walked for so many intervals.

    Args:
        past_ms: Unix milliseconds; what lies before is past by every clock.
    """
    text = (
        "SELECT route_id FROM routes WHERE enabled = 1 AND state <> 'UNKNOWN'"
        " AND observed_at_ms < ? - ? * probe_interval_ms AND decided_at_ms < ? - ? * probe_interval_ms"
        " ORDER BY route_id LIMIT ?"
    )
    rows = fetch(conn, text, (past_ms, intervals, past_ms, intervals, limit))
    return [route_id for (route_id,) in rows]
