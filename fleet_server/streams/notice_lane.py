"""What a node tells beside reports and telemetry: refusals, answers to cancels, bundles taken, drains done, proofs.

Recorded one after the other, as they came. While the database is away they wait here, bounded in number and in bytes
for each stream, and in bytes together with the reports of all streams; the reader stops taking frames before these
bounds break: a node in wrong hands can fill neither the memory nor the writer's queue, which all others share.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fleet.clock import Clock
from fleet_server.streams.pump import Pump
from fleet_server.streams.report_lane import HeldReports

MAX_WAITING = 32
MAX_WAITING_BYTES = 64 * 1024  # a notice has some hundred bytes; a frame that is as large as frames may be is one

Work = Callable[[], Awaitable[object]]


class NoticeLane:
    """Records one node's notices in order.

    Args:
        held: shared by all streams.
        failed: told when one cannot be recorded; the stream ends then.
    """

    __slots__ = ("_failed", "_held", "_held_bytes", "_pump", "_standing_still", "_waiting")

    def __init__(self, clock: Clock, held: HeldReports, failed: Callable[[Exception], None]) -> None:
        self._waiting: list[tuple[Work, int]] = []
        self._held = held
        self._held_bytes = 0
        self._failed = failed
        self._standing_still = False
        self._pump = Pump(self._record, clock, self._stand_still)

    def put(self, work: Work, size_bytes: int = 0) -> None:
        """Queue what records a notice; it may run twice when the database goes away under it.

        Args:
            size_bytes: of the frame that it came in; 0 for what no frame asked for.
        """
        if self._standing_still:
            return
        self._waiting.append((work, size_bytes))
        self._held.add(self._held_bytes, size_bytes)
        self._held_bytes += size_bytes
        self._pump.kick()

    @property
    def full(self) -> bool:
        """Whether no further frame may be taken for now."""
        return (
            len(self._waiting) >= MAX_WAITING
            or self._held_bytes >= MAX_WAITING_BYTES
            or self._held.crowded(self._held_bytes)
        )

    async def wait_idle(self) -> None:
        """Return once everything is recorded."""
        await self._pump.wait_idle()

    async def _record(self) -> None:
        while self._waiting:
            work, size_bytes = self._waiting[0]
            await work()
            del self._waiting[0]
            self._let_go(size_bytes)

    def _stand_still(self, error: Exception) -> None:
        self._standing_still = True
        self._waiting.clear()
        self._let_go(self._held_bytes)
        self._failed(error)

    def _let_go(self, size_bytes: int) -> None:
        self._held.remove(self._held_bytes, size_bytes)
        self._held_bytes -= size_bytes
