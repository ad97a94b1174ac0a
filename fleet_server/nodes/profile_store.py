"""SQL over what nodes say of themselves: versions, reported labels, drivers and their actions. Confers nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from fleet.v1 import gateway_pb2
from fleet_server.database.bulk import fetch_of
from fleet_server.database.engine import Connection, sql
from fleet_server.database.statements import fetch
from fleet_server.nodes.record import DriverSet, NodeActions, encode_drivers
from fleet_server.nodes.store import CHUNK, encode_labels

_CACHED_SETS = 256
_FIELDS = (
    "version, reported_labels, drivers, drivers_sha256, max_in_flight, bundle_generation, bundle_number, config_version"
)


_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in _FIELDS.split(", "))
_SAVE = (
    f"INSERT INTO node_profiles (node_id, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
    f" ON CONFLICT (node_id) DO UPDATE SET {_UPDATES}"
)


class ProfileStore:
    """Rows of `node_profiles`. Driver sets are parsed once per SHA-256: nodes of one version share one. Any thread
    may call.
    """

    def __init__(self) -> None:
        self._sets: dict[bytes, DriverSet] = {}

    def save(self, conn: Connection, hellos: Mapping[str, gateway_pb2.HelloBody]) -> dict[str, bytes]:
        """Store the profiles of hellos, by node id, that differ from what is stored.

        Returns:
            SHA-256 of the new driver set of each node whose drivers changed.
        """
        columns = _FIELDS.replace("drivers, ", "")
        text = f"SELECT node_id, {columns} FROM node_profiles"  # noqa: S608 - constants
        stored = {node_id: tuple(fields) for node_id, *fields in fetch_of(conn, text, "node_id", list(hellos))}
        changed = {}
        for node_id, body in hellos.items():
            row = _row(body)
            known = stored.get(node_id)
            if known is not None and known == row[:2] + row[3:]:
                continue
            conn.exec_driver_sql(sql(conn, _SAVE), (node_id, *row))
            if known is None or bytes(known[2]) != row[3]:
                changed[node_id] = row[3]
        return changed

    def save_bundle(self, conn: Connection, node_id: str, generation: int, number: int) -> None:
        """Note which trust bundle a node holds."""
        text = "UPDATE node_profiles SET bundle_generation = ?, bundle_number = ? WHERE node_id = ?"
        conn.exec_driver_sql(sql(conn, text), (generation, number, node_id))

    def actions(self, conn: Connection, node_ids: Sequence[str]) -> NodeActions:
        """What each of these nodes offers."""
        of_node: dict[str, bytes] = {}
        for start in range(0, len(node_ids), CHUNK):
            chunk = node_ids[start : start + CHUNK]
            marks = ", ".join("?" * len(chunk))
            text = f"SELECT node_id, drivers_sha256 FROM node_profiles WHERE node_id IN ({marks})"  # noqa: S608
            for node_id, digest in fetch(conn, text, tuple(chunk)):
                of_node[node_id] = bytes(digest)
        holder = {digest: node_id for node_id, digest in of_node.items()}
        found = ((digest, self._set(conn, digest, node_id)) for digest, node_id in holder.items())
        return NodeActions({digest: drivers for digest, drivers in found if drivers is not None}, of_node)

    def holders(self, conn: Connection) -> dict[tuple[int, int], int]:
        """(generation, number) of a bundle -> how many nodes that may connect hold it."""
        text = (
            "SELECT p.bundle_generation, p.bundle_number, COUNT(*)"
            " FROM node_profiles p JOIN nodes n ON n.node_id = p.node_id WHERE n.state <> 'REVOKED'"
            " GROUP BY p.bundle_generation, p.bundle_number"
        )
        return {(row[0], row[1]): row[2] for row in conn.exec_driver_sql(text)}

    def holdings(self, conn: Connection, site: str, seen_since_ms: int) -> list[tuple[tuple[int, int], int, int, str]]:
        """What the nodes of a site (empty: of all) hold: (generation, number), nodes that may connect, those among
        them that are ACTIVE and online or were seen since then, and the name of one of these."""
        asked = "n.state = 'ACTIVE' AND (n.online = 1 OR n.last_seen_ms >= ?)"
        text = (
            "SELECT COALESCE(p.bundle_generation, 0), COALESCE(p.bundle_number, 0), COUNT(*),"  # noqa: S608 - constants
            f" SUM(CASE WHEN {asked} THEN 1 ELSE 0 END), MIN(CASE WHEN {asked} THEN n.name END)"
            " FROM nodes n LEFT JOIN node_profiles p ON p.node_id = n.node_id"
            " WHERE n.state <> 'REVOKED' AND (? = '' OR n.site = ?) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        found = fetch(conn, text, (seen_since_ms, seen_since_ms, site, site))
        return [((row[0], row[1]), row[2], int(row[3]), row[4] or "") for row in found]

    def _set(self, conn: Connection, digest: bytes, node_id: str) -> DriverSet | None:
        known = self._sets.get(digest)
        if known is not None:
            return known
        row = conn.exec_driver_sql(sql(conn, "SELECT drivers FROM node_profiles WHERE node_id = ?"), (node_id,)).first()
        # Sets are shared by digest: bytes that do not have it would speak for other nodes.
        if row is None or hashlib.sha256(bytes(row[0])).digest() != digest:
            return None
        if len(self._sets) >= _CACHED_SETS:
            self._sets.clear()
        found = DriverSet.parse(digest, bytes(row[0]))
        self._sets[digest] = found
        return found


def _row(body: gateway_pb2.HelloBody) -> tuple[str, str, bytes, bytes, int, int, int, int]:
    """The columns of `_FIELDS`."""
    drivers = encode_drivers(body)
    version = body.bundle_version
    return (
        body.software_version,
        encode_labels(body.labels),
        drivers,
        hashlib.sha256(drivers).digest(),
        body.max_in_flight,
        version.generation,
        version.number,
        body.config_version,
    )
