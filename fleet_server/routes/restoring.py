"""The database went back to a backup: nodes hold newer generations of routes and leases than it knows, and refuse what
is older. All are raised, by more than can have been decided since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from fleet_server.database.engine import Connection
from fleet_server.routes import config_store
from fleet_server.routes.relay_store import LeaseStore
from fleet_server.routes.route_store import RouteStore
from fleet_server.trust.secrets import RowMac

STEP = 2**20
"""A route that changes each second does so for twelve days; a node's part may hold many, but is raised to what the node
shows anyway."""
_ROUTES_AT_ONCE = 200


class Raised(NamedTuple):
    """How many routes were raised, and after which id to go on; empty once all have been."""

    routes: int
    after: str


class GenerationRaise:
    """Raises routes and leases. Rows that do not verify stay as they are.

    Args:
        row_mac: MAC of a table by its name.
    """

    def __init__(self, row_mac: Callable[[str], RowMac]) -> None:
        self._routes = RouteStore(row_mac("routes"), _left_alone)
        self._leases = LeaseStore(row_mac("route_leases"), _left_alone)

    def raise_some(self, conn: Connection, after: str, now_ms: int) -> Raised:
        """Raise some routes that follow an id, and the parts that show them. Their leases end: they get new ones."""
        route_ids = self._routes.ids(conn, after=after, limit=_ROUTES_AT_ONCE)
        routes = self._routes.by_ids(conn, route_ids, lock=True)
        leases = self._leases.of_routes(conn, routes, lock=True)
        told: set[str] = set()
        sound = [route for route in routes.values() if route.intact]
        for route in sound:
            told |= self._routes.save(conn, replace(route, generation=route.generation + STEP))
        for lease in leases.values():
            if lease.intact:
                ended = replace(lease, generation=lease.generation + STEP, withdrawn=True, issued_at_ms=now_ms)
                self._leases.save(conn, ended)
        config_store.bump(conn, told, now_ms)
        return Raised(len(sound), route_ids[-1] if len(route_ids) == _ROUTES_AT_ONCE else "")


def _left_alone(_row: str) -> None:
    """Whoever reads it next notes it."""
