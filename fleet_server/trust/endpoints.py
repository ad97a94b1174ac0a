"""Which gateway endpoints nodes are offered: those of every replica, joined, so that replicas with different settings
do not replace each other's for ever.

Mental model
    Each replica keeps the list of its settings in a row of its own, and says once an hour that it stands. A bundle
    offers all lists, the one that was changed last first; all replicas read the same rows, so all make the same of
    them. What no replica stood by for a day is forgotten: a restart, or a night without one, changes nothing.
    The rows carry a MAC: what stands in them is signed and sent to every node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fleet.logs import get_logger
from fleet_server.database.engine import Connection, sql
from fleet_server.database.statements import fetch
from fleet_server.trust.secrets import RowMac

log = get_logger(__name__)

MAX_ENDPOINTS = 32
KEPT_MS = 24 * 3600 * 1000
STATED_EVERY_MS = 3600 * 1000
_COLUMNS = "cluster_id, replica_id, endpoints, since_ms, stated_ms"


@dataclass(frozen=True, slots=True)
class EndpointList:
    """One replica's list: since when it is this one, and when the replica stood by it last. Unix milliseconds."""

    cluster_id: str
    replica_id: str
    endpoints: tuple[str, ...]
    since_ms: int
    stated_ms: int


def joined(lists: Iterable[EndpointList]) -> tuple[str, ...]:
    """Every endpoint once, those of the list first that was changed last."""
    ordered = sorted(lists, key=lambda each: (-each.since_ms, each.replica_id))
    return tuple(dict.fromkeys(endpoint for each in ordered for endpoint in each.endpoints))[:MAX_ENDPOINTS]


def stated(held: EndpointList | None, own: EndpointList) -> EndpointList | None:
    """The row of a replica that stands by `own` now; None while the one that is held says so already.

    Args:
        held: its row; None when there is none.
        own: as of now.
    """
    if held is None or held.endpoints != own.endpoints:
        return own
    if 0 <= own.stated_ms - held.stated_ms < STATED_EVERY_MS:
        return None
    return replace(held, stated_ms=own.stated_ms)


class EndpointBoard:
    """Rows of `gateway_endpoints`, covered by a MAC whole. The caller holds the cluster's lock.

    Args:
        mac: of that table.
    """

    def __init__(self, mac: RowMac) -> None:
        self._mac = mac
        self._told: set[str] = set()

    def offered(
        self, conn: Connection, cluster_id: str, replica_id: str, own: Sequence[str], now_ms: int
    ) -> tuple[str, ...]:
        """What nodes are offered, once this replica's own list stands there.

        Args:
            replica_id: empty for a process that is no replica: its list counts only while there is no other.
            own: endpoints of this process's settings, preferred first.
        """
        lists = self._lists(conn, cluster_id)
        if replica_id:
            row = stated(lists.get(replica_id), EndpointList(cluster_id, replica_id, tuple(own), now_ms, now_ms))
            if row is not None:
                self._put(conn, row)
                lists[replica_id] = row
            conn.exec_driver_sql(sql(conn, "DELETE FROM gateway_endpoints WHERE stated_ms < ?"), (now_ms - KEPT_MS,))
        standing = [each for each in lists.values() if each.stated_ms >= now_ms - KEPT_MS]
        return joined(standing) or tuple(own)

    def _lists(self, conn: Connection, cluster_id: str) -> dict[str, EndpointList]:
        found: dict[str, EndpointList] = {}
        text = f"SELECT {_COLUMNS}, mac FROM gateway_endpoints WHERE cluster_id = ?"  # noqa: S608 - constants
        for *fields, mac in fetch(conn, text, (cluster_id,)):
            row = EndpointList(fields[0], fields[1], tuple(fields[2].split(",")), fields[3], fields[4])
            if self._mac.verify(mac, *fields):
                found[row.replica_id] = row
            elif row.replica_id not in self._told:
                self._told.add(row.replica_id)
                log.error("gateway_endpoints_tampered", replica_id=row.replica_id)
        return found

    def _put(self, conn: Connection, row: EndpointList) -> None:
        fields = (row.cluster_id, row.replica_id, ",".join(row.endpoints), row.since_ms, row.stated_ms)
        text = (
            f"INSERT INTO gateway_endpoints ({_COLUMNS}, mac) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
            " ON CONFLICT (cluster_id, replica_id) DO UPDATE SET endpoints = excluded.endpoints,"
            " since_ms = excluded.since_ms, stated_ms = excluded.stated_ms, mac = excluded.mac"
        )
        conn.exec_driver_sql(sql(conn, text), (*fields, self._mac.compute(*fields)))
