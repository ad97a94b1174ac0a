"""Poll: decisions about nodes that were made on other replicas.

A hint from the replica that decided comes sooner, but nothing rests on it: a replica that holds a node's stream hears
of a decision made elsewhere by asking. One read for the whole fleet over the index of decisions: it finds nothing while
nobody decides anything. A node is suspended or revoked on whichever replica holds it within a second
(docs/operations/revoke.md).
Times of decisions only order them: each is later than those that were committed when it was made, so a replica whose
clock is wrong is heard. One may be committed behind a later one; it is looked for as long as that can take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from fleet.clock import Clock
from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Bell

log = get_logger(__name__)

INTERVAL_S = 0.25
"""Half a second is in time on a quiet machine, and leaves a busy one too little of the second."""
WINDOW_S = 30.0
"""How long a transaction may take from its decision to its commit, and still no decision is missed."""


class Decisions(Protocol):
    """Where decisions stand."""

    def newest_decision_ms(self, conn: Connection) -> int:
        """Time of the last one, Unix milliseconds; 0 before the first."""
        ...

    def decided_since(self, conn: Connection, since_ms: int) -> list[tuple[str, int]]:
        """(node id, time of the last one about it) of decisions after a time."""
        ...


class DecisionPoll:
    """Tells of nodes about which something was decided.

    Args:
        decided: called with the ids of nodes that were not told of before.
        interval_s: seconds between two looks.
    """

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        store: Decisions,
        decided: Callable[[Sequence[str]], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._database = database
        self._clock = clock
        self._store = store
        self._decided = decided
        self._interval_s = interval_s
        self._settled_ms: int | None = None
        self._bell = Bell(clock)
        self._seen: deque[tuple[float, int]] = deque()
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Poll until cancelled; a database that is away is asked again."""
        while True:
            await self._bell.wait(self._interval_s)
            try:
                await self.poll()
            except Refusal as refusal:
                log.debug("decision_poll_put_off", reason=str(refusal.reason))

    def poll_now(self) -> None:
        """Another replica may have decided something: look at once."""
        self._bell.ring_nowait()

    async def poll(self) -> None:
        """One round."""
        began_s = self._clock.monotonic()
        if self._settled_ms is None:
            newest_ms = await self._database.read(self._store.newest_decision_ms)
            self._settled_ms = max(0, newest_ms - int(WINDOW_S * 1000))
        since_ms = self._settled_ms
        found = await self._database.read(lambda conn: self._store.decided_since(conn, since_ms))
        news = [node_id for node_id, at_ms in found if self._told.get(node_id) != at_ms]
        self._told = dict(found)
        self._settle(began_s, max((at_ms for _, at_ms in found), default=since_ms))
        if news:
            self._decided(news)

    def _settle(self, began_s: float, newest_ms: int) -> None:
        """Nothing comes any more behind what was the newest decision a window ago."""
        if not self._seen or self._seen[-1][1] != newest_ms:
            self._seen.append((began_s, newest_ms))
        while self._seen and self._seen[0][0] <= began_s - WINDOW_S:
            self._settled_ms = self._seen.popleft()[1]
