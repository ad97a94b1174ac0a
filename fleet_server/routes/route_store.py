"""SQL over `routes` and `route_members`; every route is checked against its MAC as it is read."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fleet_server.database.bulk import EachUpdate, fetch_of
from fleet_server.database.engine import Connection, for_update
from fleet_server.database.statements import execute, execute_many, fetch, fetch_any
from fleet_server.routes.model import PathState
from fleet_server.routes.record import RouteHealth, RouteRecord
from fleet_server.trust.secrets import RowMac

_KEPT = (
    "route_id, cluster_id, name, source_node_id, destination_node_id, service_class, probe_interval_ms, enabled,"
    " created_at_ms, created_by, generation, relay_node_id, candidates, waiting_rendezvous, decided_at_ms"
)
_MARKED = len(_KEPT.split(", "))
_SELECT = f"SELECT {_KEPT}, mac, state, state_since_ms, observed_at_ms, rtt_us, loss_permille FROM routes"
_TOUCHES = "source_node_id = ? OR destination_node_id = ? OR relay_node_id = ?"

_HEALTH = EachUpdate(
    "routes",
    {
        "state": "text",
        "since": "bigint",
        "observed": "bigint",
        "rtt": "bigint",
        "loss": "integer",
        "route_id": "text",
    },
    "state = v.state, state_since_ms = v.since, observed_at_ms = v.observed, rtt_us = v.rtt, loss_permille = v.loss",
    "t.route_id = v.route_id",
)


class RouteStore:
    """Routes, and whose snapshots show them. Any thread may call.

    Args:
        mac: of the table `routes`.
        tampered: told the id of a route whose MAC does not fit.
    """

    def __init__(self, mac: RowMac, tampered: Callable[[str], None]) -> None:
        self._mac = mac
        self._tampered = tampered

    def insert(self, conn: Connection, route: RouteRecord) -> None:
        """Add one, and show it to its members.

        Raises:
            IntegrityError: its name, or another route between the same ends, was there a moment before.
        """
        fields = _fields(route)
        marks = ", ".join("?" * (_MARKED + 1))
        execute(conn, f"INSERT INTO routes ({_KEPT}, mac) VALUES ({marks})", (*fields, self._mac.compute(*fields)))
        self._add_members(conn, route.route_id, route.members)

    def save(self, conn: Connection, route: RouteRecord) -> frozenset[str]:
        """Store what was decided about one that the transaction holds; its health stays.

        Returns:
            Nodes whose snapshots show it, or did until now.
        """
        fields = _fields(route)
        text = (
            "UPDATE routes SET probe_interval_ms = ?, enabled = ?, generation = ?, relay_node_id = ?, candidates = ?,"
            " waiting_rendezvous = ?, decided_at_ms = ?, mac = ? WHERE route_id = ?"
        )
        execute(conn, text, (*fields[6:8], *fields[10:], self._mac.compute(*fields), route.route_id))
        return self._set_members(conn, route.route_id, route.members)

    def save_health(self, conn: Connection, health: Iterable[RouteHealth]) -> None:
        """Store what is known of the paths of routes."""
        rows: list[RouteHealth] = sorted(health, key=lambda each: each.route_id)
        _HEALTH.run(conn, rows)

    def delete(self, conn: Connection, route_id: str) -> frozenset[str]:
        """Remove one; the nodes whose snapshots showed it."""
        execute(conn, "DELETE FROM routes WHERE route_id = ?", (route_id,))
        return self._set_members(conn, route_id, frozenset())

    def by_ref(self, conn: Connection, ref: str, *, lock: bool = False) -> RouteRecord | None:
        """One by name or id."""
        text = f"{_SELECT} WHERE route_id = ? OR name = ? ORDER BY CASE WHEN route_id = ? THEN 0 ELSE 1 END LIMIT 1"
        found = self._records(fetch_any(conn, text + (for_update(conn) if lock else ""), (ref, ref, ref)))
        return found[0] if found else None

    def by_ids(self, conn: Connection, route_ids: Iterable[str], *, lock: bool = False) -> dict[str, RouteRecord]:
        """Some by id. With `lock` nobody else changes them until the transaction ends; taken in one order."""
        suffix = for_update(conn) if lock else ""
        rows = fetch_of(conn, _SELECT, "route_id", sorted(set(route_ids)), lock=suffix, fetch=fetch_any)
        return {route.route_id: route for route in self._records(rows)}

    def between(self, conn: Connection, source_id: str, destination_id: str, service_class: str) -> RouteRecord | None:
        """The route between two ends."""
        text = f"{_SELECT} WHERE source_node_id = ? AND destination_node_id = ? AND service_class = ?"
        found = self._records(fetch_any(conn, text, (source_id, destination_id, service_class)))
        return found[0] if found else None

    def page(
        self, conn: Connection, *, after: str, limit: int, node_id: str = "", relay_id: str = "", state: str = ""
    ) -> list[RouteRecord]:
        """Routes by name.

        Args:
            after: name of the last one of the page before.
            node_id: only those with this end, or over this relay.
            relay_id: only those over this relay.
            state: only those in this state; DISABLED for those that are.
        """
        conditions, values = ["name > ?"], list[Any]([after])
        if node_id:
            conditions.append(f"({_TOUCHES})")
            values += [node_id] * 3
        if relay_id:
            conditions.append("relay_node_id = ?")
            values.append(relay_id)
        if state == "DISABLED":
            conditions.append("enabled = 0")
        elif state:
            conditions.append("enabled = 1 AND state = ?")
            values.append(state)
        text = f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY name LIMIT ?"
        return self._records(fetch_any(conn, text, (*values, limit)))

    def shown_to(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, list[RouteRecord]]:
        """For each node the routes that its snapshot shows, by id."""
        text = "SELECT node_id, route_id FROM route_members"
        members = sorted(fetch_of(conn, text, "node_id", sorted(set(node_ids))))
        routes = self.by_ids(conn, [route_id for _, route_id in members])
        shown: dict[str, list[RouteRecord]] = {node_id: [] for node_id in node_ids}
        for node_id, route_id in members:
            # A member row confers nothing: what counts is whom the route names.
            if route_id in routes and node_id in routes[route_id].members:
                shown[node_id].append(routes[route_id])
        return shown

    def ids_touching(self, conn: Connection, node_id: str) -> list[str]:
        """Ids of routes that a node is an end, the relay or a candidate of, disabled ones among them."""
        text = (
            f"SELECT route_id FROM routes WHERE {_TOUCHES} UNION SELECT route_id FROM route_members WHERE node_id = ?"
        )
        return sorted(route_id for (route_id,) in fetch(conn, text, (node_id,) * 4))

    def neighbours(self, conn: Connection, node_ids: Sequence[str]) -> frozenset[str]:
        """Whoever has one of these nodes in its part of the configuration, they themselves among them; nobody when none
        of them has anything to do with routes."""
        rows = fetch_of(conn, "SELECT DISTINCT route_id FROM route_members", "node_id", sorted(set(node_ids)))
        routes = sorted(route_id for (route_id,) in rows)
        rows = fetch_of(conn, "SELECT DISTINCT node_id FROM route_members", "route_id", routes)
        return frozenset(node_id for (node_id,) in rows)

    def loads(self, conn: Connection) -> dict[str, int]:
        """How many enabled routes lead over each relay."""
        text = (
            "SELECT relay_node_id, COUNT(*) FROM routes WHERE enabled = 1 AND relay_node_id <> '' GROUP BY"
            " relay_node_id"
        )
        return dict(fetch(conn, text))

    def count(self, conn: Connection, end_id: str = "") -> int:
        """How many there are, of all nodes or with this end."""
        if not end_id:
            return int(fetch(conn, "SELECT COUNT(*) FROM routes")[0][0])
        text = "SELECT COUNT(*) FROM routes WHERE source_node_id = ? OR destination_node_id = ?"
        return int(fetch(conn, text, (end_id, end_id))[0][0])

    def count_by_state(self, conn: Connection) -> dict[str, int]:
        """How many enabled routes are in each state."""
        return dict(fetch(conn, "SELECT state, COUNT(*) FROM routes WHERE enabled = 1 GROUP BY state"))

    def ids(self, conn: Connection, *, after: str = "", limit: int) -> list[str]:
        """Ids of routes, growing; disabled ones among them."""
        text = "SELECT route_id FROM routes WHERE route_id > ? ORDER BY route_id LIMIT ?"
        return [route_id for (route_id,) in fetch(conn, text, (after, limit))]

    def _set_members(self, conn: Connection, route_id: str, members: frozenset[str]) -> frozenset[str]:
        rows = fetch(conn, "SELECT node_id FROM route_members WHERE route_id = ?", (route_id,))
        before = frozenset(node_id for (node_id,) in rows)
        gone = sorted(before - members)
        if gone:
            text = "DELETE FROM route_members WHERE node_id = ? AND route_id = ?"
            execute_many(conn, text, [(node_id, route_id) for node_id in gone])
        self._add_members(conn, route_id, members - before)
        return before | members

    def _add_members(self, conn: Connection, route_id: str, members: Iterable[str]) -> None:
        rows = [(node_id, route_id) for node_id in sorted(members)]
        if rows:
            execute_many(conn, "INSERT INTO route_members (node_id, route_id) VALUES (?, ?)", rows)

    def _records(self, rows: Iterable[tuple[Any, ...]]) -> list[RouteRecord]:
        return [self._record(row) for row in rows]

    def _record(self, row: tuple[Any, ...]) -> RouteRecord:
        kept, mac, found = row[:_MARKED], row[_MARKED], row[_MARKED + 1 :]
        intact = self._mac.verify(mac, *kept)
        if not intact:
            self._tampered(str(kept[0]))
            kept = tuple(kind(value) for kind, value in zip(_BELIEVED, kept, strict=True))
        fields: tuple[Any, ...] = (
            *kept[:7],
            bool(kept[7]),
            *kept[8:12],
            tuple(json.loads(kept[12])) if intact else (),
            bool(kept[13]),
            kept[14],
            intact,
            *_health(*found),
        )
        return RouteRecord(*fields)


def _health(state: object, *numbers: object) -> tuple[Any, ...]:
    """What was found of its path; nothing when the row makes no sense, for that part of it carries no MAC."""
    sane = state in _STATES and all(isinstance(each, int) and 0 <= each < 2**53 for each in numbers)
    return (state, *numbers) if sane and numbers[-1] <= 1000 else (PathState.UNKNOWN.value, 0, 0, 0, 0)  # type: ignore[operator]


_STATES = frozenset(state.value for state in PathState)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


# SQLite keeps any type in any column: what somebody edited is made to fit, for people to read.
_BELIEVED: tuple[Callable[[Any], Any], ...] = (
    *[str] * 6,
    _number,
    _number,
    _number,
    str,
    _number,
    str,
    str,
    _number,
    _number,
)


def _fields(route: RouteRecord) -> tuple[bytes | str | int, ...]:
    return (
        route.route_id,
        route.cluster_id,
        route.name,
        route.source_id,
        route.destination_id,
        route.service_class,
        route.probe_interval_ms,
        int(route.enabled),
        route.created_at_ms,
        route.created_by,
        route.generation,
        route.relay_id,
        json.dumps(route.candidates),
        int(route.waiting_rendezvous),
        route.decided_at_ms,
    )
