"""Time as an argument: everything that reads a clock is handed one of these, so that tests own time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Wall time, monotonic time and sleep."""

    def now_ms(self) -> int:
        """Unix time in milliseconds. May jump: use it for statements and people, never for durations."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow within this boot. Compare with other readings of the same clock only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds` of monotonic time."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds since boot, those asleep included where the system counts them.

        CLOCK_MONOTONIC stands still while a machine is suspended: a node that woke up would take its commands for
        fresher than they are.
        """
        return time.clock_gettime(_SINCE_BOOT)

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(seconds)


class ServerTime:
    """Server time on a node: the server's wall clock, carried forward by the node's monotonic clock.

    Commands expire on server time (docs/protocol.md, "Time"), measured in this boot before anything is accepted. The
    estimate never runs backwards, so a server that turns its clock back keeps no expired command alive within one
    process.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._base_ms = 0
        self._base_monotonic = 0.0
        self._known = False

    @property
    def known(self) -> bool:
        """Whether the server's time was heard at all in this process."""
        return self._known

    def observe(self, server_time_ms: int) -> None:
        """Take a server timestamp that just arrived; ignored when it lies behind the estimate."""
        if self._known and server_time_ms <= self.now_ms():
            return
        self._base_ms = server_time_ms
        self._base_monotonic = self._clock.monotonic()
        self._known = True

    def now_ms(self) -> int:
        """Estimated Unix milliseconds on the server, a lower bound by the one-way delay."""
        if not self._known:
            return self._clock.now_ms()
        return self._base_ms + int((self._clock.monotonic() - self._base_monotonic) * 1000)

    def offset_ms(self) -> int:
        """Node clock minus server clock, in milliseconds; 0 while the server's time is unknown."""
        return self._clock.now_ms() - self.now_ms() if self._known else 0
