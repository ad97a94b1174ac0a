"""What only time, or somebody else, decides about routes: relays that are gone, leases that end, ways nobody walks.

Every replica sweeps, and looks with one read; it writes only when something is due, and passes over what another one is
at. The routes of a relay that was lost are decided together, in ids' order, so that they spread over the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.database.engine import Connection
from fleet_server.database.wakeup import Bell
from fleet_server.database.writer import Transaction
from fleet_server.observability.route_metrics import SHOWN_ROUTES, RouteMetrics
from fleet_server.routes import decision_store, due_store, finding_store
from fleet_server.routes.deciding import MAX_ROUTES, Deciding
from fleet_server.routes.model import PathState
from fleet_server.routes.parts import SWEEP_TOPIC, RouteParts
from fleet_server.routes.record import RouteRecord

log = get_logger(__name__)

INTERVAL_S = 1.0
RETENTION_EVERY = 60
FIGURES_EVERY = 5
THOROUGH_EVERY = 5
_MOST_DUE = 4 * MAX_ROUTES
_DELETED_AT_ONCE = 500
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """What the metrics show of routes: how many are in each state, and the first of them by name."""

    by_state: dict[str, int]
    shown: Sequence[RouteRecord]


class Sweep:
    """Sweeps routes.

    Args:
        parts: of the room.
        deciding: decides about what is due.
        metrics: of the room.
    """

    def __init__(self, parts: RouteParts, deciding: Deciding, metrics: RouteMetrics) -> None:
        self._parts = parts
        self._deciding = deciding
        self._metrics = metrics
        self._bell = Bell(parts.clock)
        self._looks = 0
        parts.wakeup.subscribe(SWEEP_TOPIC, self._bell.ring_nowait)
        parts.wakeup.on_hint(SWEEP_TOPIC, lambda _: self._bell.ring_nowait(), pause_s=0.1)

    async def run(self) -> None:
        """Sweep each second, and at once when something was decided that routes have to follow, until cancelled. While
        the database is away nothing is lost: the next round does it."""
        rounds = 0
        while True:
            rung = await self._bell.wait(INTERVAL_S)
            rounds += not rung
            try:
                await self.sweep()
                if not rung and rounds % FIGURES_EVERY == 0:
                    await self.measure()
                if not rung and rounds % RETENTION_EVERY == 0:
                    await self.prune()
            except Refusal as refusal:
                log.warning("route_sweep_put_off", reason=refusal.reason)

    async def sweep(self) -> None:
        """Everything that is due now."""
        await self._parts.quarantine.flush()
        due = await self._parts.database.read(self._due)
        for start in range(0, len(due), MAX_ROUTES):
            chunk = due[start : start + MAX_ROUTES]
            await self._parts.database.write(lambda tx, chunk=chunk: self._decide(tx, chunk))  # type: ignore[misc]

    async def measure(self) -> None:
        """Set the metrics that are looked up."""
        figures = await self._parts.database.read(self._figures)
        self._metrics.measure(figures.by_state, [(r.name, r.state, r.rtt_us, r.enabled) for r in figures.shown])

    async def prune(self) -> None:
        """Delete history that is older than the retention, in small batches, and decisions but the newest of each
        route."""
        before_ms = self._parts.times().past_ms - self._parts.retention_ms
        for delete in (finding_store.delete_old_history, decision_store.delete_old):
            while (
                await self._parts.database.write(
                    lambda tx, delete=delete: delete(tx.conn, before_ms, _DELETED_AT_ONCE)  # type: ignore[misc]
                )
                == _DELETED_AT_ONCE
            ):
                await self._parts.clock.sleep(_PAUSE_S)

    def _due(self, conn: Connection) -> list[str]:
        """Ids of routes that are to be looked at, growing."""
        parts, policy, times = self._parts, self._parts.policy, self._parts.times()
        in_use = parts.routes.loads(conn)
        usable = {relay.node_id for relay in parts.pool(conn) if relay.usable} if in_use else set()
        due = set(due_store.ids_over(conn, sorted(in_use.keys() - usable)))
        # Until then a third of its life is over.
        before_ms = times.own_ms + policy.lease_ttl_ms - policy.lease_ttl_ms // 3
        if in_use:
            due |= set(due_store.ids_ending(conn, before_ms, _MOST_DUE))
        if in_use and not self._looks % THOROUGH_EVERY:
            due |= set(due_store.ids_without_lease(conn, _MOST_DUE))
        self._looks += 1
        due |= set(due_store.ids_unseen(conn, times.past_ms, policy.stale_after_intervals, _MOST_DUE))
        return sorted(due)

    def _decide(self, tx: Transaction, route_ids: Sequence[str]) -> None:
        held = self._deciding.hold(tx, route_ids)
        self._deciding.settle(tx, held)

    def _figures(self, conn: Connection) -> Figures:
        counted = self._parts.routes.count_by_state(conn)
        by_state = {state.value: counted.get(state.value, 0) for state in PathState}
        return Figures(by_state, self._parts.routes.page(conn, after="", limit=SHOWN_ROUTES))
