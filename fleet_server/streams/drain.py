"""Drains this replica without losing anything: a goaway with a slot of its own for every stream, progress, and a hard
end.

docs/protocol.md, "Drain". The listener is closed by the caller before this begins, and live streams go on. What is
left at the deadline is aborted with DRAINING; nothing here can hang, whatever peers do.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.streams import rules
from fleet_server.streams.registry import StreamRegistry

log = get_logger(__name__)

_ABORT_GRACE_S = 2.0
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far a drain is; times in seconds."""

    streams_total: int
    streams_left: int
    rate_per_s: float
    estimate_s: float
    done: bool


class Drain:
    """One drain of one replica.

    Args:
        admission_per_s: handshakes per second that other replicas admit; 0 when this one is alone.
        own_admission_per_s: what this replica will admit when it is back: paces the return to a lone one.
        endpoints: where the nodes may go instead; must stand in their signed bundle.
    """

    def __init__(
        self,
        *,
        registry: StreamRegistry,
        clock: Clock,
        metrics: StreamMetrics,
        reason: gateway_pb2.GoawayReason.ValueType,
        deadline_s: float,
        admission_per_s: float,
        own_admission_per_s: float,
        endpoints: tuple[str, ...] = (),
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._reason = reason
        self._started = clock.monotonic()
        self._deadline = self._started + deadline_s
        self._admission_per_s = admission_per_s
        self._own_admission_per_s = own_admission_per_s
        self._endpoints = endpoints
        self._total = len(registry)
        self._done = False

    def shorten(self, deadline_s: float) -> None:
        """A second request to stop: the deadline moves closer, never further away."""
        self._deadline = min(self._deadline, self._clock.monotonic() + deadline_s)

    def progress(self) -> DrainProgress:
        """Where it stands now."""
        left = len(self._registry)
        gone = max(0, self._total - left)
        rate, estimate = rules.drain_estimate_s(left, gone, self._clock.monotonic() - self._started)
        return DrainProgress(self._total, left, rate, estimate, self._done)

    async def run(self) -> DrainProgress:
        """Send every stream away, wait for them, abort what is left."""
        self._metrics.drain_streams.set(self._total)
        self._send_goaways()
        while len(self._registry) and self._clock.monotonic() < self._deadline:
            self._show()
            await self._clock.sleep(_TICK_S)
        await self._abort_rest()
        self._done = True
        self._show()
        log.info("drained", streams=self._total, aborted=len(self._registry))
        return self.progress()

    def _send_goaways(self) -> None:
        remaining_ms = int((self._deadline - self._clock.monotonic()) * 1000)
        alone = self._admission_per_s <= 0
        window_ms = rules.restart_window_ms(self._total, self._own_admission_per_s)
        for stream, slot in zip(
            self._registry, rules.slots(self._total, remaining_ms, self._admission_per_s), strict=False
        ):
            stream.goaway(
                gateway_pb2.ControlGoaway(
                    reason=self._reason,
                    deadline_ms=remaining_ms,
                    reconnect_after_ms=slot.reconnect_after_ms,
                    window_ms=window_ms if alone else slot.window_ms,
                    endpoints=self._endpoints,
                    resume=self._reason != gateway_pb2.GOAWAY_REASON_SHUTDOWN,
                )
            )

    async def _abort_rest(self) -> None:
        for stream in self._registry:
            stream.end(Refusal(Reason.DRAINING, "this replica stops now: connect again", retry_after_s=0.5))
        await asyncio.wait({asyncio.ensure_future(self._registry.wait_empty())}, timeout=_ABORT_GRACE_S)

    def _show(self) -> None:
        progress = self.progress()
        self._metrics.drain_streams_left.set(0 if progress.done else progress.streams_left)
        self._metrics.drain_rate.set(0 if progress.done else progress.rate_per_s)
