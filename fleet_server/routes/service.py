"""The routes room: what operators, streams and the server's tasks do with routes (docs/protocol.md, "Routes")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet.clock import Clock
from fleet.v1 import lease_pb2, route_pb2
from fleet_server.audit.service import AuditService
from fleet_server.config import Settings
from fleet_server.database.engine import Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.nodes.service import NodeService
from fleet_server.observability.route_metrics import RouteMetrics
from fleet_server.routes.deciding import Deciding
from fleet_server.routes.model import Policy
from fleet_server.routes.news import RouteNews
from fleet_server.routes.node_side import NodeSide
from fleet_server.routes.operating import Created
from fleet_server.routes.parts import RELAY_LOSS_MS, RETENTION_MS
from fleet_server.routes.pooling import PoolOperations, RelayView
from fleet_server.routes.reading import Explanation, RouteReading, RouteView
from fleet_server.routes.recording import Recorder
from fleet_server.routes.snapshots import Snapshot
from fleet_server.routes.sweeping import Sweep
from fleet_server.trust.secrets import RowMac
from fleet_server.trust.service import TrustService

__all__ = ["Created", "Explanation", "RelayView", "RouteService", "RouteView", "Snapshot", "policy_of"]


def policy_of(settings: Settings) -> Policy:
    """The constants of decisions, and what nodes are told, as the operator has set them."""
    return Policy(
        lease_ttl_ms=settings.lease_ttl_s * 1000,
        degraded_rtt_us=settings.route_degraded_rtt_ms * 1000,
        degraded_loss_permille=settings.route_degraded_loss_permille,
        min_refresh_interval_ms=int(settings.route_refresh_interval_s * 1000),
        no_change_cooldown_ms=int(settings.route_cooldown_s * 1000),
        no_change_cooldown_max_ms=int(settings.route_cooldown_max_s * 1000),
    )


class RouteService(PoolOperations, RouteReading, NodeSide):
    """Everything that the rest of the server does with routes.

    Args:
        metrics: of the room.

    The others: see `RouteParts`.
    """

    def __init__(
        self,
        *,
        metrics: RouteMetrics,
        database: Database,
        clock: Clock,
        wakeup: Wakeup,
        audit: AuditService,
        nodes: NodeService,
        trust: TrustService,
        row_mac: Callable[[str], RowMac],
        policy: Policy | None = None,
        relay_loss_ms: int = RELAY_LOSS_MS,
        retention_ms: int = RETENTION_MS,
    ) -> None:
        super().__init__(
            database=database,
            clock=clock,
            wakeup=wakeup,
            audit=audit,
            nodes=nodes,
            trust=trust,
            row_mac=row_mac,
            policy=policy,
            relay_loss_ms=relay_loss_ms,
            retention_ms=retention_ms,
        )
        self._metrics = metrics
        deciding = Deciding(self, metrics)
        self._recorder = Recorder(self, deciding, metrics)
        self._sweep = Sweep(self, deciding, metrics)
        self.news = RouteNews(self)

    async def load(self) -> None:
        """Learn which nodes have a part of the configuration; before streams open.

        Raises:
            Refusal: the database is away.
        """
        await self.news.load()

    def concerns(self, node_id: str) -> bool:
        """Whether a node has, or had, a part of the configuration: answered from memory."""
        return node_id in self.concerned or not self.news.is_known

    async def record(self, node_id: str, epoch: int, health: route_pb2.RouteHealth) -> None:
        """A node reported what it found on its routes, on the stream of `epoch`; returns once what is believed of it is
        committed and decided: at once for what broke, half a second later for other news, 2 s at most for the rest.

        Raises:
            Refusal: the database is away.
        """
        await self._recorder.record(node_id, epoch, health)

    async def note_lease(self, node_id: str, epoch: int, ack: lease_pb2.LeaseAck) -> None:
        """See `NodeSide`; refusals are counted."""
        if not ack.applied:
            self._metrics.leases.labels("refused").inc()
        await super().note_lease(node_id, epoch, ack)

    async def run_news(self) -> None:
        """Look for what other replicas changed, until cancelled."""
        await asyncio.gather(self.news.run(), self.news.configs.run(), self.news.leases.run())

    async def run_recorder(self) -> None:
        """Record what was reported, and decide, until cancelled."""
        await self._recorder.run()

    async def run_sweep(self) -> None:
        """Renew leases, and look for what is gone or past, until cancelled."""
        await self._sweep.run()

    async def flush(self) -> None:
        """Record and decide what was reported until now.

        Raises:
            Refusal: the database is away; what was reported is kept.
        """
        await self._recorder.flush()

    async def sweep(self) -> None:
        """Do what is due now.

        Raises:
            Refusal: the database is away; the next one does it.
        """
        await self._sweep.sweep()

    async def prune(self) -> None:
        """Delete history that is older than the retention.

        Raises:
            Refusal: the database is away.
        """
        await self._sweep.prune()
