"""SQL over `gateway_endpoints`."""

from __future__ import annotations

from dataclasses import dataclass

from fleet.logs import get_logger
from fleet_server.database.engine import Connection, sql
from fleet_server.database.statements import fetch
from fleet_server.trust.secrets import RowMac

log = get_logger(__name__)

_COLUMNS = "cluster_id, replica_id, endpoints, since_ms, stated_ms"


@dataclass(frozen=True, slots=True)
class EndpointList:
    """One replica's list: since when it is this one, and when the replica stood by it last. Unix milliseconds."""

    cluster_id: str
    replica_id: str
    endpoints: tuple[str, ...]
    since_ms: int
    stated_ms: int


class EndpointStore:
    """Rows of `gateway_endpoints`, covered by a MAC whole.

    Args:
        mac: of that table.
    """

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac
        self._told: set[str] = set()

    def lists(self, conn: Connection, cluster_id: str) -> dict[str, EndpointList]:
        """Replica id -> its list, of rows that the server wrote; what it did not is told once."""
        found: dict[str, EndpointList] = {}
        text = f"SELECT {_COLUMNS}, mac FROM gateway_endpoints WHERE cluster_id = ?"  # noqa: S608 - constants
        for *fields, mac in fetch(conn, text, (cluster_id,)):
            replica_id = str(fields[1])
            if self._mac.verify(mac, *fields):  # first: SQLite holds any type
                found[replica_id] = EndpointList(fields[0], replica_id, tuple(fields[2].split(",")), *fields[3:])
            elif replica_id not in self._told:
                self._told.add(replica_id)
                log.error("gateway_endpoints_tampered", replica_id=replica_id)
        return found

    def put(self, conn: Connection, row: EndpointList) -> None:
        """Store a replica's list in place of the one before."""
        fields = (row.cluster_id, row.replica_id, ",".join(row.endpoints), row.since_ms, row.stated_ms)
        text = (
            f"INSERT INTO gateway_endpoints ({_COLUMNS}, mac) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
            " ON CONFLICT (cluster_id, replica_id) DO UPDATE SET endpoints = excluded.endpoints,"
            " since_ms = excluded.since_ms, stated_ms = excluded.stated_ms, mac = excluded.mac"
        )
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))

    def forget_before(self, conn: Connection, stated_ms: int) -> None:
        """Delete lists that no replica stood by since then."""
        conn.exec_driver_sql(sql(conn, "DELETE FROM gateway_endpoints WHERE stated_ms < ?"), (stated_ms,))
