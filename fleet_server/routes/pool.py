"""The relay pool while one transaction decides about many routes.

Loads are counted on with each decision, so that the routes of a relay that was lost spread over the others as these
fill, instead of all choosing the one that was emptiest before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

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
