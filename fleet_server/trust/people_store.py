"""SQL of what people contribute to the cluster's trust: operators' public keys, and what owners signed.

Rows are verified here, so nobody sees one that was written around the server.
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet.v1 import trust_pb2
from fleet_server.database.engine import Connection, sql
from fleet_server.trust.secrets import RowMac

_KEY_COLUMNS = "key_id, cluster_id, operator, public_key, enrolled_at_ms"


@dataclass(frozen=True, slots=True)
class OperatorKeyRow:
    """A person's public signing key."""

    key_id: bytes
    cluster_id: str
    operator: str
    public_key: bytes
    enrolled_at_ms: int


class PeopleStore:
    """Rows of `operator_keys` and `cluster_people`.

    Args:
        key_mac: MAC of the first.
        people_mac: MAC of the second.
    """

    def __init__(self, key_mac: RowMac, people_mac: RowMac) -> None:
        self._key_mac = key_mac
        self._people_mac = people_mac

    def insert_key(self, conn: Connection, row: OperatorKeyRow) -> None:
        """Store a key. One that is there already fails."""
        fields = (row.key_id, row.cluster_id, row.operator, row.public_key, row.enrolled_at_ms)
        text = f"INSERT INTO operator_keys ({_KEY_COLUMNS}, mac) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
        conn.exec_driver_sql(sql(conn, text), (*fields, self._key_mac.compute(*fields)))

    def holder(self, conn: Connection, key_id: bytes) -> str | None:
        """Operator whose key that is, whole row or not; None when it is nobody's."""
        row = conn.exec_driver_sql(sql(conn, "SELECT operator FROM operator_keys WHERE key_id = ?"), (key_id,)).first()
        return None if row is None else str(row[0])

    def keys(self, conn: Connection, cluster_id: str) -> tuple[list[OperatorKeyRow], set[str]]:
        """Every key whose row is whole, by operator, oldest first; and the key ids of rows that are not."""
        text = (
            f"SELECT {_KEY_COLUMNS}, mac FROM operator_keys WHERE cluster_id = ?"  # noqa: S608 - constants
            " ORDER BY operator, enrolled_at_ms, key_id"
        )
        found: list[OperatorKeyRow] = []
        tampered: set[str] = set()
        for *fields, mac in conn.exec_driver_sql(sql(conn, text), (cluster_id,)):
            if self._key_mac.verify(mac, *fields):
                found.append(OperatorKeyRow(*fields))
            else:
                tampered.add(bytes(fields[0]).hex())
        return found, tampered

    def put_people(self, conn: Connection, cluster_id: str, kept: trust_pb2.TrustBundleStatement) -> None:
        """Store what owners signed, in place of what stood."""
        fields = (cluster_id, kept.SerializeToString(deterministic=True))
        text = (
            "INSERT INTO cluster_people (cluster_id, kept, mac) VALUES (?, ?, ?)"
            " ON CONFLICT (cluster_id) DO UPDATE SET kept = excluded.kept, mac = excluded.mac"
        )
        conn.exec_driver_sql(sql(conn, text), (*fields, self._people_mac.compute(*fields)))

    def people(self, conn: Connection, cluster_id: str) -> tuple[trust_pb2.TrustBundleStatement, bool]:
        """What owners signed, and whether the row is whole: one that was changed around the server says nothing."""
        text = "SELECT cluster_id, kept, mac FROM cluster_people WHERE cluster_id = ?"
        row = conn.exec_driver_sql(sql(conn, text), (cluster_id,)).first()
        if row is None:
            return trust_pb2.TrustBundleStatement(), True
        if not self._people_mac.verify(row[2], row[0], row[1]):
            return trust_pb2.TrustBundleStatement(), False
        return trust_pb2.TrustBundleStatement.FromString(row[1]), True
