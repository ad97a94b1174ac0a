"""SQL over `node_ratchets`."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from fleet_server.database.engine import Connection, for_update, sql
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
        text = (
            "SELECT confirmed_sha256, sealed_offer, any_until_ms, seq_floor, floor_at_ms, audit_chain, boots, mac"
            " FROM node_ratchets WHERE node_id = ?"
        )
        found = conn.exec_driver_sql(sql(conn, text) + (for_update(conn) if lock else ""), (node_id,)).first()
        if found is None:  # every node has one
            raise TamperedRatchetError(node_id)
        *fields, mac = found
        if not self._mac.verify(mac, node_id, *fields):
            raise TamperedRatchetError(node_id)
        return RatchetRow(node_id, *fields)

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
