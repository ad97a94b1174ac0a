"""A clock that only tests move.

`MockClock` satisfies `fleet.clock.Clock`. One timeline serves both sides of a test; `MockClock.seen_by`
gives a party whose wall clock is wrong, while its sleeps stay on the same timeline.

`advance` walks from one sleeper's due time to the next and lets the woken tasks run before time moves on,
so a task that sleeps again inside the window is woken again inside it, in order of due time, then of
falling asleep.
"""

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from tests.fakes.watch import Watch

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000
_SETTLE_TURNS = 25
"""Turns of the event loop given to woken tasks: a chain of awaits that long settles before time moves on."""


@dataclass(order=True)
class _Sleeper:
    due_ns: int
    order: int
    woken: asyncio.Future[None] = field(compare=False)


class MockClock:
    """Time as a test tells it: starts at `start_ms` (Unix milliseconds) and stands still until advanced."""

    def __init__(self, start_ms: int = 1_900_000_000_000) -> None:
        self._elapsed_ns = 0
        self._wall_base_ns = start_ms * _NS_PER_MS
        self._sleepers: list[_Sleeper] = []
        self._order = itertools.count()
        self._watch = Watch()

    def now_ms(self) -> int:
        """Wall time, Unix milliseconds."""
        return (self._wall_base_ns + self._elapsed_ns) // _NS_PER_MS

    def monotonic(self) -> float:
        """Seconds since this clock was made; never steps back."""
        return self._elapsed_ns / _NS_PER_S

    async def sleep(self, seconds: float) -> None:
        """Suspend until the test has advanced this clock by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        due_ns = self._elapsed_ns + round(seconds * _NS_PER_S)
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, _Sleeper(due_ns, next(self._order), woken))
        self._watch.changed()
        try:
            await woken
        finally:
            self._forget_finished()

    @property
    def sleepers(self) -> int:
        """How many tasks sleep on this clock now."""
        return sum(not sleeper.woken.done() for sleeper in self._sleepers)

    @property
    def next_due_s(self) -> float | None:
        """Seconds from now until the earliest sleeper wakes; None when nobody sleeps."""
        due_ns = min((s.due_ns for s in self._sleepers if not s.woken.done()), default=None)
        return None if due_ns is None else (due_ns - self._elapsed_ns) / _NS_PER_S

    async def wait_sleepers(self, count: int, timeout_s: float = 10.0) -> None:
        """Return once at least `count` tasks sleep on this clock.

        Raises:
            TimeoutError: after `timeout_s` of real time.
        """
        await self._watch.wait_until(
            lambda: self.sleepers >= count,
            lambda: f"{self.sleepers} of {count} expected sleepers",
            timeout_s,
        )

    async def advance(self, seconds: float) -> None:
        """Move time on by `seconds`, waking sleepers one due time after another."""
        target_ns = self._elapsed_ns + round(seconds * _NS_PER_S)
        await self._settle()
        while self._wake_next(target_ns):
            await self._settle()
        self._elapsed_ns = target_ns
        await self._settle()

    def advance_nowait(self, seconds: float) -> None:
        """Move time on at once and mark due sleepers as woken: for synchronous tests, and code without an
        event loop."""
        target_ns = self._elapsed_ns + round(seconds * _NS_PER_S)
        while self._wake_next(target_ns):
            pass
        self._elapsed_ns = target_ns

    def step_wall(self, seconds: float) -> None:
        """Jump wall time (back, when negative) without moving monotonic time: what NTP or an operator does
        to a host."""
        self._wall_base_ns += round(seconds * _NS_PER_S)

    def seen_by(self, offset_ms: int) -> "SkewedClock":
        """This timeline as seen by a party whose wall clock is `offset_ms` ahead (behind, when negative)."""
        return SkewedClock(self, offset_ms)

    def _wake_next(self, limit_ns: int) -> bool:
        """Move to the earliest due time up to `limit_ns` and wake all that are due then; False when nobody
        is."""
        self._forget_finished()
        if not self._sleepers or self._sleepers[0].due_ns > limit_ns:
            return False
        self._elapsed_ns = self._sleepers[0].due_ns
        while self._sleepers and self._sleepers[0].due_ns <= self._elapsed_ns:
            sleeper = heapq.heappop(self._sleepers)
            if not sleeper.woken.done():
                sleeper.woken.set_result(None)
        return True

    def _forget_finished(self) -> None:
        while self._sleepers and self._sleepers[0].woken.done():
            heapq.heappop(self._sleepers)

    @staticmethod
    async def _settle() -> None:
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)


class SkewedClock:
    """A party's view of a `MockClock`: same timeline, another wall clock."""

    def __init__(self, timeline: MockClock, offset_ms: int) -> None:
        self._timeline = timeline
        self.offset_ms = offset_ms

    def now_ms(self) -> int:
        """Wall time as this party believes it, Unix milliseconds."""
        return self._timeline.now_ms() + self.offset_ms

    def monotonic(self) -> float:
        """Seconds on the shared timeline."""
        return self._timeline.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Suspend on the shared timeline."""
        await self._timeline.sleep(seconds)
