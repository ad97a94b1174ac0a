"""Poll: decisions about nodes that were made on other replicas.

A wake-up stays inside its process, so a replica that holds a node's stream hears of a decision made elsewhere by
asking. One read for the whole fleet over the index of decisions: it finds nothing while nobody decides anything. A
node is suspended or revoked on whichever replica holds it within a second (docs/operations/revoke.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Database
from fleet_server.nodes.store import NodeStore

log = get_logger(__name__)

INTERVAL_S = 0.5
WINDOW_MS = 30_000
"""How far the clocks of two replicas may differ, and how long a commit may take, and still no decision is missed."""


class DecisionPoll:
    """Tells of nodes about which something was decided.

    Args:
        decided: called with the ids of nodes that were not told of before.
    """

    def __init__(
        self, *, database: Database, clock: Clock, store: NodeStore, decided: Callable[[Sequence[str]], None]
    ) -> None:
        self._database = database
        self._clock = clock
        self._store = store
        self._decided = decided
        self._newest_ms = 0
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Poll until cancelled; a database that is away is asked again."""
        while True:
            await self._clock.sleep(INTERVAL_S)
            try:
                await self.poll()
            except Refusal as refusal:
                log.debug("decision_poll_put_off", reason=str(refusal.reason))

    async def poll(self) -> None:
        """One round."""
        now_ms = self._clock.now_ms()
        since_ms = (min(now_ms, self._newest_ms) if self._newest_ms else now_ms) - WINDOW_MS
        found = await self._database.read(lambda conn: self._store.decided_since(conn, since_ms))
        news = [node_id for node_id, at_ms in found if self._told.get(node_id) != at_ms]
        self._told = dict(found)
        self._newest_ms = max((at_ms for _, at_ms in found), default=self._newest_ms)
        if news:
            self._decided(news)
