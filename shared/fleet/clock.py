"""Time as an argument: everything that reads a clock is handed one of these, so that tests own time."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

MAX_TIME_MS = 253_402_300_799_999
"""The end of the year 9999: beyond it is no time, and arithmetic on it ends where columns of 64 bits do."""
FAR_AHEAD_MS = 24 * 3600 * 1000
NEAR_MS = 10 * 60 * 1000
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
    process; but for `meet`.
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

    def meet(self, server_time_ms: int) -> bool:
        """Take the timestamp of a server that just proved itself in a handshake. Whether the estimate began again.

        One wrong word of a server, far ahead, would let every command expire until somebody restarts the node. So the
        estimate begins again when two clocks speak against it: the node's own says more than a day less, and the server
        says the same as that. Who may sign for the cluster now could command anything, and gains at most what a restart
        would give it: the time that the node's own clock tells.

        Raises:
            ValueError: it is no time.
        """
        if not 0 <= server_time_ms <= MAX_TIME_MS:
            raise ValueError(f"{server_time_ms} is no time")
        own_ms = self._clock.now_ms()
        again = self._known and self.now_ms() - own_ms > FAR_AHEAD_MS and abs(server_time_ms - own_ms) <= NEAR_MS
        if again:
            self._known = False
        self.observe(server_time_ms)
        return again

    def observe(self, server_time_ms: int) -> None:
        """Take a server timestamp that just arrived; ignored when it lies behind the estimate, or is no time."""
        if server_time_ms > MAX_TIME_MS or (self._known and server_time_ms <= self.now_ms()):
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
