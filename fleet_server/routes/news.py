"""What other replicas changed of nodes' parts and leases: heard of by hint, and looked for in any case.

Which nodes have a part at all is kept in memory, so that a fleet without routes costs nothing at a hello.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection
from fleet_server.nodes.poll import DecisionPoll
from fleet_server.routes import config_store
from fleet_server.routes.parts import CONFIG_KIND, LEASE_KIND, SWEEP_TOPIC, TOPIC, RouteParts

log = get_logger(__name__)

INTERVAL_S = 1.0
_HINT_PAUSE_S = 0.05


class _Parts:
    """Versions of nodes' parts, as `DecisionPoll` asks for decisions."""

    def newest_decision_ms(self, conn: Connection) -> int:
        return config_store.newest_ms(conn)

    def decided_since(self, conn: Connection, since_ms: int) -> list[tuple[str, int]]:
        return config_store.changed_since(conn, since_ms)


class _Leases:
    """Leases, as `DecisionPoll` asks for decisions: about their holders and the sources of their routes."""

    def __init__(self, parts: RouteParts) -> None:
        self._store = parts.leases

    def newest_decision_ms(self, conn: Connection) -> int:
        return self._store.newest_ms(conn)

    def decided_since(self, conn: Connection, since_ms: int) -> list[tuple[str, int]]:
        newest: dict[str, int] = {}
        for relay_id, source_id, at_ms in self._store.issued_since(conn, since_ms):
            for node_id in (relay_id, source_id):
                newest[node_id] = max(at_ms, newest.get(node_id, 0))
        return list(newest.items())


class RouteNews:
    """Wakes streams of this replica for what another one changed."""

    def __init__(self, parts: RouteParts) -> None:
        self._parts = parts
        self._wakeup = parts.wakeup
        self.is_known = False
        poll = partial(DecisionPoll, database=parts.database, clock=parts.clock, interval_s=INTERVAL_S)
        self.configs: DecisionPoll = poll(store=_Parts(), decided=self._configs_changed)
        self.leases: DecisionPoll = poll(store=_Leases(parts), decided=partial(self._changed, LEASE_KIND))
        self._on_hint(CONFIG_KIND, self.configs.poll_now)
        self._on_hint(LEASE_KIND, self.leases.poll_now)
        for topic in (TOPIC, SWEEP_TOPIC):
            self._on_hint(topic, partial(self._wakeup.wake_nowait, [topic]))

    async def load(self) -> None:
        """Learn which nodes have a part.

        Raises:
            Refusal: the database is away.
        """
        self._parts.concerned.update(await self._parts.database.read(config_store.node_ids))
        self.is_known = True

    async def run(self) -> None:
        """Learn which nodes have a part if that is not known, and audit what was found tampered, until cancelled."""
        while True:
            try:
                if not self.is_known:
                    await self.load()
                await self._parts.quarantine.flush()
            except Refusal as refusal:
                log.debug("route_news_put_off", reason=str(refusal.reason))
            await self._parts.clock.sleep(INTERVAL_S)

    def _on_hint(self, kind: str, look: Callable[[], None]) -> None:
        self._wakeup.on_hint(kind, lambda _: look(), pause_s=_HINT_PAUSE_S)

    def _configs_changed(self, node_ids: Sequence[str]) -> None:
        self._parts.concerned.update(node_ids)
        self._changed(CONFIG_KIND, node_ids)

    def _changed(self, kind: str, node_ids: Sequence[str]) -> None:
        self._wakeup.wake_nowait([f"{kind}:{node_id}" for node_id in node_ids])
