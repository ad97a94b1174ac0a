"""A request of telemetry on its way to the receiver, until that took it or refused it for good.

Mental model
    Receivers judge whole requests: Prometheus takes nothing of one in which a single sample is too old. So one that is
    refused goes out again by halves, and a node costs no other node's samples.
    500 says either that the receiver is broken, or that it never takes this: Prometheus 3.5 says so of samples that are
    older than its window (prometheus/prometheus#16645), and every version of a name of which nothing is left in its own
    alphabet. It is broken if it says so of this process's own sign of life, too. Then the request waits, as it does
    while the receiver is away. Else it was refused, or one node could hold up all others for ever.
"""

from __future__ import annotations

import asyncio

from fleet.backoff import Backoff, BackoffPolicy
from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_server.observability.metrics import ExportMetrics
from fleet_server.telemetry import otlp
from fleet_server.telemetry.export_rules import Answer, Standing
from fleet_server.telemetry.otlp import ExportMetricsServiceRequest
from fleet_server.telemetry.otlp_sinks import Sink

log = get_logger(__name__)

FAULTS = 3
"""So often a receiver says 500 of a request, each time beside a sign of life that it took, until that is believed."""


class Sender:
    """Sends one request after the other.

    Args:
        sink: the receiver.
        metrics: told about every answer.
        cluster: name of the cluster.
    """

    def __init__(self, *, sink: Sink, clock: Clock, metrics: ExportMetrics, cluster: str) -> None:
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._cluster = cluster
        self._backoff = Backoff(BackoffPolicy(initial_s=1.0, maximum_s=60.0))
        self._is_picky = False
        self.trouble = ""
        """For people: why the receiver does not take what it is sent now; empty while it does."""

    async def send(self, request: ExportMetricsServiceRequest) -> None:
        """Send one until all of it was taken, or refused for good."""
        waiting = [request]
        while waiting:
            part = waiting.pop()
            answer = await self._insist(part)
            halves = otlp.halves(part) if answer.standing is Standing.REFUSED else ()
            waiting += halves
            if not halves:
                self._note(answer, otlp.count(part))

    async def _insist(self, request: ExportMetricsServiceRequest) -> Answer:
        """TAKEN or REFUSED, whenever that is."""
        faults = 0
        while True:
            answer = await self._ask(request)
            if answer.standing in (Standing.TAKEN, Standing.REFUSED):
                self._is_picky = self._is_picky and not faults  # what it said 500 of it took, after all
                self._backoff.failures = 0
                return answer
            if answer.standing is Standing.FAULT and await self._is_alive():
                faults += 1
                if faults == FAULTS:
                    self._is_picky = True
                    self._backoff.failures = 0
                    return Answer(Standing.REFUSED, answer.detail)
                if self._is_picky:
                    continue
            await self._wait(answer)

    async def _is_alive(self) -> bool:
        """Whether the receiver judges what it is sent, and does not fail at whatever it is."""
        answer = await self._ask(otlp.sign_of_life(self._cluster, self._clock.now_ms()))
        return answer.standing in (Standing.TAKEN, Standing.REFUSED)

    async def _ask(self, request: ExportMetricsServiceRequest) -> Answer:
        answer = await asyncio.to_thread(self._sink.send, request)
        self._metrics.requests.labels(answer.standing.value).inc()
        return answer

    async def _wait(self, answer: Answer) -> None:
        delay_s = self._backoff.next_delay_s(answer.retry_after_s)
        self.trouble = f"the receiver does not take it: {answer.detail}"
        is_setup = answer.standing is Standing.SETUP
        say = "look at the receiver's URL, headers and CAs" if is_setup else "it is tried again"
        log.warning("telemetry_not_taken", detail=answer.detail, retry_in_s=round(delay_s, 1), next=say)
        await self._clock.sleep(delay_s)

    def _note(self, answer: Answer, points: int) -> None:
        rejected = points if answer.standing is Standing.REFUSED else min(points, answer.rejected)
        self._metrics.samples.inc(points - rejected)
        self.trouble = ""
        if rejected:
            self._metrics.rejected.inc(rejected)
            log.warning("telemetry_rejected", samples=rejected, of=points, detail=answer.detail)
