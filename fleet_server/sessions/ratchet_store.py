"""SQL over `node_ratchets`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from fleet_server.database.bulk import EachUpdate, fetch_of
from fleet_server.database.engine import Connection, for_update, sql
from fleet_server.database.statements import fetch
from fleet_server.trust.secrets import RowMac


@dataclass(frozen=True, slots=True, repr=False)
class RatchetRow:
    """What is kept of a node's ratchet; `ratchet` says what it means."""

    node_id: str
    confirmed_sha256: bytes = b""
    sealed_offer: bytes = b""
    any_until_ms: int = 0
    seq_floor: int = 0
    floor_at_ms: int = 0
    audit_chain: int = 0
    boots: bytes = b""


_FIELDS = "confirmed_sha256, sealed_offer, any_until_ms, seq_floor, floor_at_ms, audit_chain, boots, mac"
_SELECT = f"SELECT node_id, {_FIELDS} FROM node_ratchets"  # noqa: S608 - constants
_TURNED = EachUpdate(
    "node_ratchets",
    {
        "node_id": "text",
        "confirmed_sha256": "bytea",
        "sealed_offer": "bytea",
        "any_until_ms": "bigint",
        "seq_floor": "bigint",
        "floor_at_ms": "bigint",
        "audit_chain": "bigint",
        "boots": "bytea",
        "mac": "bytea",
    },
    ", ".join(f"{column} = v.{column}" for column in _FIELDS.split(", ")),
    "t.node_id = v.node_id",
)


class TamperedRatchetError(Exception):
    """The row was changed outside the server, or removed."""


class RatchetStore:
    """Rows of `node_ratchets`, one of each node.

    Args:
        mac: of that table.
    """

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac

    def load(self, conn: Connection, node_id: str, *, lock: bool = True) -> RatchetRow:
        """A node's row.

        Args:
            lock: until the transaction ends.

        Raises:
            TamperedRatchetError: it cannot be told what the server wrote.
        """
        found = fetch(conn, f"{_SELECT} WHERE node_id = ?{for_update(conn) if lock else ''}", (node_id,))
        return self._checked(found[0] if found else (node_id,))

    def load_all(self, conn: Connection, node_ids: Sequence[str]) -> dict[str, RatchetRow]:
        """The rows of nodes, by id, locked until the transaction ends. One of which it cannot be told what the server
        wrote is missing."""
        rows = {}
        for row in fetch_of(conn, _SELECT, "node_id", node_ids, lock=for_update(conn)):
            with suppress(TamperedRatchetError):
                rows[row[0]] = self._checked(row)
        return rows

    def save_all(self, conn: Connection, rows: Sequence[RatchetRow]) -> None:
        """Store rows, of no two the same node, in place of those that were loaded."""
        _TURNED.run(conn, [(*(fields := astuple(row)), self._mac.compute(*fields)) for row in rows])

    def save(self, conn: Connection, row: RatchetRow) -> None:
        """Store a row in place of the one before."""
        text = (
            "INSERT INTO node_ratchets"
            " (node_id, confirmed_sha256, sealed_offer, any_until_ms, seq_floor, floor_at_ms, audit_chain, boots, mac)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node_id) DO UPDATE SET"
            " confirmed_sha256 = excluded.confirmed_sha256, sealed_offer = excluded.sealed_offer,"
            " any_until_ms = excluded.any_until_ms, seq_floor = excluded.seq_floor, floor_at_ms = excluded.floor_at_ms,"
            " audit_chain = excluded.audit_chain, boots = excluded.boots, mac = excluded.mac"
        )
        fields = astuple(row)
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))

    def _checked(self, row: Sequence[Any]) -> RatchetRow:
        node_id, *fields = row
        if not fields or not self._mac.verify(fields[-1], node_id, *fields[:-1]):  # every node has a row
            raise TamperedRatchetError(node_id)
        return RatchetRow(node_id, *fields[:-1])
