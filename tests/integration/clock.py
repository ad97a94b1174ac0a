"""A real clock that runs faster than the machine's, and can be set forward."""

import asyncio
import time


class QuickClock:
    """Satisfies `fleet.clock.Clock`. Tasks truly sleep, so real gRPC and real files keep up; waits of the product
    that are many seconds long pass in a fraction of one.

    Args:
        speed: seconds that pass on this clock in one second.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._wall_ms = time.time() * 1000
        self._began_s = time.monotonic()

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return int(self._wall_ms + self.monotonic() * 1000)

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return (time.monotonic() - self._began_s) * self.speed

    async def sleep(self, seconds: float) -> None:
        """Suspend."""
        await asyncio.sleep(seconds / self.speed)

    def step_wall(self, seconds: float) -> None:
        """Set wall time forward, or back: monotonic time does not notice."""
        self._wall_ms += seconds * 1000
