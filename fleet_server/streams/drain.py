"""Drains this replica without losing anything: a goaway with a slot of its own for every stream, progress, and a hard
end.

docs/protocol.md, "Drain". The listener is closed by the caller before this begins, and live streams go on. Goaways
leave as slots come near, a second ahead: the pace follows what the other replicas admit while the drain runs, and who
has none yet is served as ever. What the pace does not get done by the deadline is said, not rushed: those streams are
aborted with DRAINING, each with a slot behind the ones before, so that the end of a drain is no herd either. Nothing
here can hang, whatever peers do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_server.observability.metrics import StreamMetrics
from fleet_server.streams import rules
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.stream import Stream

log = get_logger(__name__)

_ABORT_GRACE_S = 2.0
_TICK_S = 0.05
_LOOK_FOR_NEW_S = 0.5
_TOLD_RETRY_S = 0.5
"""For a node that is on its way already when its old stream is aborted."""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far a drain is; times in seconds.

    Args:
        short_s: by how much the deadline is too near for the pace; 0 while it is not.
    """

    streams_total: int
    streams_left: int
    rate_per_s: float
    estimate_s: float
    done: bool
    short_s: float = 0.0


class Drain:
    """One drain of one replica.

    Args:
        reason: what nodes are told. A replica that is alone, for `pace_per_s` is 0 at the start, says RESTART instead
            of what would have them open the next stream first.
        pace_per_s: streams per second that the others take from this one now; 0 while nobody does.
        own_admission_per_s: what this replica will admit when it is back: paces the return to a lone one.
    """

    def __init__(
        self,
        *,
        registry: StreamRegistry,
        clock: Clock,
        metrics: StreamMetrics,
        reason: gateway_pb2.GoawayReason.ValueType,
        deadline_s: float,
        pace_per_s: Callable[[], float],
        own_admission_per_s: float,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._pace_per_s = pace_per_s
        self._own_admission_per_s = own_admission_per_s
        alone = pace_per_s() <= 0
        self._reason = rules.drain_reason(reason, alone=alone)
        self._at_once = alone or self._reason not in rules.MOVING
        self._started = clock.monotonic()
        self._deadline = self._started + deadline_s
        self._last_slot = self._started + rules.last_slot_s(deadline_s)
        self._total = len(registry)
        self._told: set[str] = set()
        self._untold: deque[Stream] = deque()
        self._looked_at = -_LOOK_FOR_NEW_S
        self._next_slot = self._started
        self._short = False
        self._done = False

    def shorten(self, deadline_s: float) -> None:
        """A second request to stop: the deadline moves closer, never further away."""
        now = self._clock.monotonic()
        if now + deadline_s < self._deadline:
            self._deadline = now + deadline_s
            self._last_slot = now + rules.last_slot_s(deadline_s)

    def progress(self) -> DrainProgress:
        """Where it stands now."""
        left = len(self._registry)
        gone = max(0, self._total - left)
        rate, estimate = rules.drain_estimate_s(left, gone, self._clock.monotonic() - self._started)
        return DrainProgress(self._total, left, rate, estimate, self._done, self._short_s())

    async def run(self) -> DrainProgress:
        """Send every stream away, wait for them, abort what is left."""
        while len(self._registry) and self._clock.monotonic() < self._deadline:
            self._look_for_new()
            if self._at_once:
                self._send_all()
            else:
                self._send_due()
            self._show()
            await self._clock.sleep(_TICK_S)
        await self._abort_rest()
        self._done = True
        self._show()
        log.info("drained", streams=self._total, aborted=len(self._registry))
        return self.progress()

    def _look_for_new(self) -> None:
        """Streams that nobody was told to leave yet: one may open while the drain begins."""
        now = self._clock.monotonic()
        if now - self._looked_at < _LOOK_FOR_NEW_S:
            return
        self._looked_at = now
        known = self._told.union(stream.stream_id for stream in self._untold)
        self._untold.extend(stream for stream in self._registry if stream.stream_id not in known)
        self._total = max(self._total, len(self._registry))

    def _next_untold(self) -> Stream | None:
        while self._untold:
            stream = self._untold.popleft()
            if not stream.ended:
                self._told.add(stream.stream_id)
                return stream
        return None

    def _send_all(self) -> None:
        """One window for all: they come back when this replica does."""
        per_s = min(filter(None, (self._pace_per_s(), self._own_admission_per_s)), default=0.0)
        window_ms = rules.restart_window_ms(self._total, per_s)
        while (stream := self._next_untold()) is not None:
            self._send(stream, after_ms=0, window_ms=window_ms)

    def _send_due(self) -> None:
        now, pace_per_s = self._clock.monotonic(), self._pace_per_s()
        self._next_slot = max(self._next_slot, now)  # what was held up is no reason for a burst
        self._note_short()
        if pace_per_s <= 0:
            return
        step = 1.0 / pace_per_s
        while self._untold and self._next_slot <= min(now + rules.AHEAD_S, self._last_slot):
            stream = self._next_untold()
            if stream is None:
                return
            self._send(stream, after_ms=int((self._next_slot - now) * 1000), window_ms=max(1, int(step * 1000)))
            self._next_slot += step

    def _send(self, stream: Stream, *, after_ms: int, window_ms: int) -> None:
        stream.goaway(
            gateway_pb2.ControlGoaway(
                reason=self._reason,
                deadline_ms=max(0, int((self._deadline - self._clock.monotonic()) * 1000)),
                reconnect_after_ms=after_ms,
                window_ms=window_ms,
                resume=self._reason != gateway_pb2.GOAWAY_REASON_SHUTDOWN,
            )
        )

    def _short_s(self) -> float:
        if self._at_once or self._done:
            return 0.0
        return rules.short_s(len(self._untold), self._pace_per_s(), self._last_slot - self._next_slot)

    def _note_short(self) -> None:
        short_s = self._short_s()
        if bool(short_s) != self._short:
            self._short = bool(short_s)
            if short_s:
                log.warning(
                    "drain_deadline_too_near",
                    untold=len(self._untold),
                    pace_per_s=round(self._pace_per_s(), 1),
                    short_s=round(short_s, 1) if short_s != float("inf") else "nobody takes them",
                    next="what is left at the deadline comes back in slots, and is without a stream meanwhile",
                )

    async def _abort_rest(self) -> None:
        now = self._clock.monotonic()
        step = 1.0 / (self._pace_per_s() or max(self._own_admission_per_s, 1.0))
        slot = max(self._next_slot, now)
        for stream in self._registry:
            retry_after_s = _TOLD_RETRY_S
            if stream.stream_id not in self._told:
                retry_after_s, slot = slot - now + _TOLD_RETRY_S, slot + step
            say = "this replica stops now: connect again"
            stream.end(Refusal(Reason.DRAINING, say, retry_after_s=retry_after_s))
        await asyncio.wait({asyncio.ensure_future(self._registry.wait_empty())}, timeout=_ABORT_GRACE_S)

    def _show(self) -> None:
        progress = self.progress()
        self._metrics.drain_streams.set(self._total)
        self._metrics.drain_streams_left.set(0 if progress.done else progress.streams_left)
        self._metrics.drain_rate.set(0 if progress.done else progress.rate_per_s)
        self._metrics.drain_short.set(min(progress.short_s, rules.MAX_SHOWN_S))
