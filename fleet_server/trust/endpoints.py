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
from dataclasses import replace

from fleet_server.database.engine import Connection
from fleet_server.trust.endpoint_store import EndpointList, EndpointStore
from fleet_server.trust.secrets import RowMac

MAX_ENDPOINTS = 32
KEPT_MS = 24 * 3600 * 1000
STATED_EVERY_MS = 3600 * 1000


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
    """Where every replica puts its list up. The caller holds the cluster's lock.

    Args:
        mac: of the table `gateway_endpoints`.
    """

    def __init__(self, mac: RowMac) -> None:
        self._store = EndpointStore(mac)

    def offered(
        self, conn: Connection, cluster_id: str, replica_id: str, own: Sequence[str], now_ms: int
    ) -> tuple[str, ...]:
        """What nodes are offered, once this replica's own list stands there.

        Args:
            replica_id: empty for a process that is no replica: its list counts only while there is no other.
            own: endpoints of this process's settings, preferred first.
        """
        lists = self._store.lists(conn, cluster_id)
        if replica_id:
            row = stated(lists.get(replica_id), EndpointList(cluster_id, replica_id, tuple(own), now_ms, now_ms))
            if row is not None:
                self._store.put(conn, row)
                lists[replica_id] = row
            self._store.forget_before(conn, now_ms - KEPT_MS)
        standing = [each for each in lists.values() if each.stated_ms >= now_ms - KEPT_MS]
        return joined(standing) or tuple(own)
