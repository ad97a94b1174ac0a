"""SQL over `relays`, `route_leases` and `route_peers`: who may relay, who does, and where each is found. Every row is
checked against its MAC as it is read."""

# Every part of a statement is a constant of this module; values only ever travel as parameters.
# ruff: noqa: S608

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from fleet_server.database.bulk import fetch_of
from fleet_server.database.engine import Connection, for_update, octets
from fleet_server.database.statements import execute, fetch, fetch_any
from fleet_server.routes.record import LeaseRecord, PeerRecord, RelayRecord
from fleet_server.trust.secrets import RowMac

Tampered = Callable[[str], None]

_RELAY = "node_id, cluster_id, site, capacity, weight, added_at_ms, added_by"
_SELECT_RELAY = f"SELECT {_RELAY}, mac FROM relays"
_LEASE = "route_id, lease_id, relay_node_id, generation, issued_at_ms, expires_at_ms, withdrawn"
_SELECT_LEASE = f"SELECT {_LEASE}, mac, acked_generation, acked_at_ms FROM route_leases"
_LEASE_FIELDS = len(_LEASE.split(", "))
_SAVE_LEASE = (
    f"INSERT INTO route_leases ({_LEASE}, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (route_id) DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for column in [*_LEASE.split(", ")[1:], "mac"])
)
_PEER = "node_id, endpoints, certificate, reported_at_ms"
_SELECT_PEER = f"SELECT {_PEER}, mac FROM route_peers"
_SAVE_PEER = (
    f"INSERT INTO route_peers ({_PEER}, mac) VALUES (?, ?, ?, ?, ?) ON CONFLICT (node_id) DO UPDATE SET endpoints ="
    " excluded.endpoints, certificate = excluded.certificate, reported_at_ms = excluded.reported_at_ms, mac ="
    " excluded.mac"
)


class RelayStore:
    """The relay pool. Any thread may call.

    Args:
        mac: of the table `relays`.
        tampered: told the id of a node whose row's MAC does not fit.
    """

    def __init__(self, mac: RowMac, tampered: Tampered) -> None:
        self._mac = mac
        self._tampered = tampered

    def insert(self, conn: Connection, relay: RelayRecord) -> None:
        """Add one.

        Raises:
            IntegrityError: somebody added it a moment before.
        """
        fields = _relay_fields(relay)
        text = f"INSERT INTO relays ({_RELAY}, mac) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        execute(conn, text, (*fields, self._mac.compute(*fields)))

    def update(self, conn: Connection, relay: RelayRecord) -> None:
        """Store another capacity, weight or site of one."""
        fields = _relay_fields(relay)
        text = (
            "UPDATE relays SET site = ?, capacity = ?, weight = ?, added_at_ms = ?, added_by = ?, mac = ?"
            " WHERE node_id = ?"
        )
        execute(conn, text, (*fields[2:], self._mac.compute(*fields), relay.node_id))

    def delete(self, conn: Connection, node_id: str) -> bool:
        """Remove one; False when there was none."""
        return execute(conn, "DELETE FROM relays WHERE node_id = ?", (node_id,)) == 1

    def by_id(self, conn: Connection, node_id: str, *, lock: bool = False) -> RelayRecord | None:
        """One."""
        text = f"{_SELECT_RELAY} WHERE node_id = ?" + (for_update(conn) if lock else "")
        found = fetch_any(conn, text, (node_id,))
        return self._relay(found[0]) if found else None

    def every(self, conn: Connection) -> list[RelayRecord]:
        """All of them, by id."""
        return [self._relay(row) for row in fetch_any(conn, f"{_SELECT_RELAY} ORDER BY node_id")]

    def count(self, conn: Connection) -> int:
        """How many there are."""
        return int(fetch(conn, "SELECT COUNT(*) FROM relays")[0][0])

    def _relay(self, row: tuple[Any, ...]) -> RelayRecord:
        *fields, mac = row
        if self._mac.verify(mac, *fields):
            return RelayRecord(*fields)
        self._tampered(str(fields[0]))
        return RelayRecord(str(fields[0]), "", "", 0, 0, 0, "", intact=False)


class LeaseStore:
    """The newest rendezvous lease of each route. Any thread may call.

    Args:
        mac: of the table `route_leases`.
        tampered: told the id of a route whose lease's MAC does not fit.
    """

    def __init__(self, mac: RowMac, tampered: Tampered) -> None:
        self._mac = mac
        self._tampered = tampered

    def save(self, conn: Connection, lease: LeaseRecord) -> None:
        """Add a route's lease, or put it in the place of the one before; what its relay told of that one stays."""
        fields = (
            lease.route_id,
            lease.lease_id,
            lease.relay_id,
            lease.generation,
            lease.issued_at_ms,
            lease.expires_at_ms,
            int(lease.withdrawn),
        )
        execute(conn, _SAVE_LEASE, (*fields, self._mac.compute(*fields)))

    def of_routes(self, conn: Connection, route_ids: Iterable[str], *, lock: bool = False) -> dict[str, LeaseRecord]:
        """Leases by route. With `lock` nobody else changes them until the transaction ends; taken in one order."""
        suffix = for_update(conn) if lock else ""
        rows = fetch_of(conn, _SELECT_LEASE, "route_id", sorted(set(route_ids)), lock=suffix, fetch=fetch_any)
        return {lease.route_id: lease for lease in map(self._lease, rows)}

    def of_relays(self, conn: Connection, node_ids: Iterable[str]) -> list[LeaseRecord]:
        """Leases whose holders these nodes are, withdrawn ones among them; in no order."""
        rows = fetch_of(conn, _SELECT_LEASE, "relay_node_id", sorted(set(node_ids)), fetch=fetch_any)
        return [self._lease(row) for row in rows]

    def newest_ms(self, conn: Connection) -> int:
        """When a lease was last issued, renewed or withdrawn; 0 before the first."""
        return int(fetch(conn, "SELECT COALESCE(MAX(issued_at_ms), 0) FROM route_leases")[0][0])

    def issued_since(self, conn: Connection, since_ms: int) -> list[tuple[str, str, int]]:
        """(holder, source of the route, time) of leases that were issued, renewed or withdrawn after a time."""
        text = (
            "SELECT l.relay_node_id, r.source_node_id, l.issued_at_ms FROM route_leases l"
            " JOIN routes r ON r.route_id = l.route_id WHERE l.issued_at_ms > ?"
        )
        return [(row[0], row[1], row[2]) for row in fetch(conn, text, (since_ms,))]

    def note_ack(self, conn: Connection, lease_id: str, relay_id: str, generation: int, now_ms: int) -> bool:
        """The holder of a lease told which generation it holds; False when it is not its holder."""
        text = (
            "UPDATE route_leases SET acked_generation = ?, acked_at_ms = ? WHERE lease_id = ? AND relay_node_id = ?"
            " AND generation = ?"
        )
        return execute(conn, text, (generation, now_ms, lease_id, relay_id, generation)) > 0

    def delete(self, conn: Connection, route_id: str) -> None:
        """Remove a route's lease."""
        execute(conn, "DELETE FROM route_leases WHERE route_id = ?", (route_id,))

    def _lease(self, row: tuple[Any, ...]) -> LeaseRecord:
        fields, mac, told = row[:_LEASE_FIELDS], row[_LEASE_FIELDS], row[_LEASE_FIELDS + 1 :]
        if self._mac.verify(mac, *fields):
            route_id, lease_id, relay_id, generation, issued_at_ms, expires_at_ms, withdrawn = fields
            return LeaseRecord(
                route_id, lease_id, relay_id, generation, issued_at_ms, expires_at_ms, bool(withdrawn), True, *told
            )
        self._tampered(str(fields[0]))
        generation = fields[3] if isinstance(fields[3], int) else 0
        return LeaseRecord(str(fields[0]), str(fields[1]), str(fields[2]), generation, 0, 0, True, intact=False)


class PeerStore:
    """Probe listeners of nodes. Any thread may call.

    Args:
        mac: of the table `route_peers`.
        tampered: told the id of a node whose row's MAC does not fit.
    """

    def __init__(self, mac: RowMac, tampered: Tampered) -> None:
        self._mac = mac
        self._tampered = tampered

    def save(self, conn: Connection, peer: PeerRecord) -> None:
        """Add a node's listener, or put it in the place of the one before."""
        fields = (peer.node_id, json.dumps(peer.endpoints), peer.certificate, peer.reported_at_ms)
        execute(conn, _SAVE_PEER, (*fields, self._mac.compute(*fields)))

    def delete(self, conn: Connection, node_id: str) -> bool:
        """Forget a node's listener; False when there was none."""
        return execute(conn, "DELETE FROM route_peers WHERE node_id = ?", (node_id,)) == 1

    def by_ids(self, conn: Connection, node_ids: Iterable[str]) -> dict[str, PeerRecord]:
        """Listeners by node; a row that does not verify is missing."""
        rows = fetch_of(conn, _SELECT_PEER, "node_id", sorted(set(node_ids)), fetch=fetch_any)
        return {peer.node_id: peer for peer in map(self._peer, rows) if peer.intact}

    def _peer(self, row: tuple[Any, ...]) -> PeerRecord:
        node_id, endpoints, certificate, reported_at_ms, mac = row
        if self._mac.verify(mac, node_id, endpoints, certificate, reported_at_ms):
            return PeerRecord(node_id, tuple(json.loads(endpoints)), octets(certificate), reported_at_ms)
        self._tampered(str(node_id))
        return PeerRecord(str(node_id), (), b"", 0, intact=False)


def _relay_fields(relay: RelayRecord) -> tuple[str | int, ...]:
    return (
        relay.node_id,
        relay.cluster_id,
        relay.site,
        relay.capacity,
        relay.weight,
        relay.added_at_ms,
        relay.added_by,
    )
