"""The relay pool while one transaction decides about many routes, and who of it is gone.

Loads are counted on with each decision, so that the routes of a relay that was lost spread over the others as these
fill, instead of all choosing the one that was emptiest before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from fleet_server.nodes.record import NodeRecord
from fleet_server.routes.model import Relay


class Pool:
    """Relays by node id; loads follow what is decided.

    Args:
        relays: as they stood when the transaction began.
    """

    def __init__(self, relays: Iterable[Relay]) -> None:
        self._relays = {relay.node_id: relay for relay in relays}

    def listed(self) -> list[Relay]:
        """All of them, as they stand now."""
        return list(self._relays.values())

    def is_usable(self, node_id: str) -> bool:
        """Whether a node is in the pool and may carry routes now."""
        relay = self._relays.get(node_id)
        return relay is not None and relay.usable

    def ids(self) -> frozenset[str]:
        """Who is in it, usable or not."""
        return frozenset(self._relays)

    def moved(self, before: str, after: str) -> None:
        """A route that led over one relay leads over another one; either may be `DIRECT`."""
        for node_id, more in ((before, -1), (after, 1)):
            relay = self._relays.get(node_id)
            if relay is not None:
                self._relays[node_id] = replace(relay, load=max(0, relay.load + more))


class Absences:
    """Since when nodes of the pool have no stream. Any thread may ask.

    A stream that ended left the time of that. Those of a replica that was lost ended with it, and the last sign of life
    of their nodes may be old: such a node counts as gone from the moment that this replica saw it without a stream.
    Time before this replica was there counts for nobody: while the only server was away nobody could have a stream, and
    all routes would leave their relays at the moment when it is back.

    Args:
        loss_ms: how long a node may be gone.
        monotonic: seconds.
    """

    def __init__(self, loss_ms: int, monotonic: Callable[[], float]) -> None:
        self._loss_ms = loss_ms
        self._monotonic = monotonic
        self._since_s: dict[str, float] = {}
        self._began_s = monotonic()

    def is_lost(self, node: NodeRecord, past_ms: int) -> bool:
        """Whether a node has been gone for too long.

        Args:
            past_ms: what lies before it is past by every clock, Unix milliseconds.
        """
        if node.online:
            self._since_s.pop(node.node_id, None)
            return False
        now_s = self._monotonic()
        if not node.replica_id:
            return min(past_ms - node.last_seen_ms, (now_s - self._began_s) * 1000) > self._loss_ms
        return (now_s - self._since_s.setdefault(node.node_id, now_s)) * 1000 > self._loss_ms

    def keep_only(self, node_ids: Collection[str]) -> None:
        """Forget whoever is in the pool no more."""
        for node_id in [each for each in list(self._since_s) if each not in node_ids]:
            self._since_s.pop(node_id, None)
