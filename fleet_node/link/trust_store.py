"""The node's trust in force: judged by pure rules, durable before it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fleet import trust
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.trust import TrustState
from fleet.v1 import gateway_pb2, session_pb2, trust_pb2
from fleet_node.enrollment.membership import BundleFile
from fleet_node.link.key_audit import Unheard
from fleet_node.link.people_store import PeopleStore
from fleet_node.link.ports import KeyAuditPort
from fleet_node.observability.metrics import LinkMetrics

log = get_logger(__name__)


class TrustStore:
    """Holds the bundle in force and takes better ones (docs/protocol.md, "Trust").

    Args:
        file: where the bundle rests.
        metrics: shows generation and number.
        people: takes from each bundle what people signed; None where nobody asks for it.
        audit: told of every bundle that is applied or refused.
    """

    def __init__(
        self,
        file: BundleFile,
        metrics: LinkMetrics,
        people: PeopleStore | None = None,
        audit: KeyAuditPort | None = None,
    ) -> None:
        self._file = file
        self._metrics = metrics
        self._people = people
        self._callbacks: list[Callable[[TrustState], None]] = []
        self._audit = audit or Unheard()
        self._turn = asyncio.Lock()
        self._state = file.load()
        if people is not None:  # the file with people's words may have been moved away
            people.recall(self._state)
        self._show()

    @property
    def state(self) -> TrustState:
        """The verified bundle in force."""
        return self._state

    def changed(self, callback: Callable[[TrustState], None]) -> None:
        """Call `callback` whenever another bundle is in force."""
        self._callbacks.append(callback)

    async def offer(self, bundles: Sequence[trust_pb2.Signed]) -> gateway_pb2.BundleApplied:
        """Judge a chain, oldest first; what to tell the server once the newest good one is durable."""
        async with self._turn:
            try:
                offered = list(trust.steps(self._state, bundles))
                if offered:
                    if self._people is not None:
                        await self._people.take(offered)
                    await asyncio.to_thread(self._file.save, *offered)
                    self._state = offered[-1]
            except (trust.TrustError, OSError) as error:
                reason = str(error.reason) if isinstance(error, trust.TrustError) else "DISK"
                self._audit.refuse(NodeAuditKind.BUNDLE_REFUSED, reason, held=list(self._state.version))
                log.warning("trust_bundle_refused", reason=reason, detail=str(error))
                return self._applied(applied=False, reason=f"{reason}: {error}")
        if offered:
            self._audit.tell(NodeAuditKind.BUNDLE_APPLIED, version=list(self._state.version))
        self._show()
        for callback in self._callbacks:
            callback(self._state)
        return self._applied(applied=True, reason="")

    async def pin_owner(self, pin: bytes) -> None:
        """Pin an owner from now on, and take what the bundle in force says of it."""
        if self._people is not None:
            async with self._turn:
                await self._people.pin(pin, [self._state])

    def _applied(self, *, applied: bool, reason: str) -> gateway_pb2.BundleApplied:
        generation, number = self._state.version
        version = session_pb2.BundleVersion(generation=generation, number=number)
        return gateway_pb2.BundleApplied(version=version, applied=applied, reason=reason)

    def _show(self) -> None:
        self._metrics.bundle_generation.set(self._state.generation)
        self._metrics.bundle_number.set(self._state.number)
