"""Handshakes that this replica can take on besides what it is doing now, for the others to pace their drains by.

What handshakes cost is measured (`admission`), and gives the rate of an idle replica. One whose event loop is busy with
commands and telemetry has less to spare, and says so: whoever drains would otherwise send it more than it gets done,
and its own nodes would wait. Handshakes themselves are no such load: those that a drain sends must not slow that drain
down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fleet.clock import Clock
from fleet_server.sessions.admission import Admission

_SHORTEST_S = 0.4
"""Of a measurement: heartbeats that come sooner tell what the last one did."""
_WEIGHT = 0.3
"""Of each new measurement: a heartbeat apart, so that a short burst of work does not set the pace."""


def spare_per_s(rate_per_s: float, *, share: float, busy: float, least: float) -> float:
    """Handshakes a second that a loop has time for.

    Args:
        rate_per_s: of an idle one, which gives them `share` of its time.
        busy: part of its time that goes into everything but handshakes, 0 to 1.
        least: never fewer: they are admitted whatever else goes on.
    """
    free = max(0.0, 1.0 - busy)
    return min(rate_per_s, max(least, rate_per_s * free / share))


class Capacity:
    """Measured whenever it is asked for, which is at each heartbeat. Belongs to the event loop.

    Args:
        cpu_s: CPU seconds of the event loop's thread.
    """

    def __init__(self, admission: Admission, clock: Clock, cpu_s: Callable[[], float] = time.thread_time) -> None:
        self._admission = admission
        self._clock = clock
        self._cpu_s = cpu_s
        self._busy = 0.0
        self._taking_per_s = 0.0
        self._last = (clock.monotonic(), cpu_s(), admission.admitted, admission.handshakes_cpu_s)

    def measure(self) -> None:
        """Take in what happened since the last call."""
        now = (self._clock.monotonic(), self._cpu_s(), self._admission.admitted, self._admission.handshakes_cpu_s)
        elapsed_s, cpu_s, admitted, handshakes_s = (each - before for each, before in zip(now, self._last, strict=True))
        if elapsed_s < _SHORTEST_S:
            return
        self._last = now
        busy = min(1.0, max(0.0, (cpu_s - handshakes_s) / elapsed_s))
        self._busy += (busy - self._busy) * _WEIGHT
        self._taking_per_s = admitted / elapsed_s

    @property
    def offered_per_s(self) -> float:
        """Handshakes a second that others may send here."""
        policy = self._admission.policy
        rate_per_s = self._admission.rate_per_s
        return spare_per_s(rate_per_s, share=policy.share, busy=self._busy, least=policy.least_per_s)

    @property
    def taking_per_s(self) -> float:
        """Handshakes a second that were begun here lately: a storm when it is not far from what is admitted."""
        return self._taking_per_s
