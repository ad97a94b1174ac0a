"""What a node tells beside reports and telemetry: refusals, answers to cancels, bundles taken, drains done, proofs.

Recorded one after the other, as they came. While the database is away they wait here, bounded, and the reader stops
taking frames before that bound breaks: a node in wrong hands cannot fill the writer's queue, which all others share.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fleet.clock import Clock
from fleet_server.streams.pump import Pump

MAX_WAITING = 32

Work = Callable[[], Awaitable[object]]


class NoticeLane:
    """Records one node's notices in order.

    Args:
        failed: told when one cannot be recorded; the stream ends then.
    """

    __slots__ = ("_pump", "_waiting")

    def __init__(self, clock: Clock, failed: Callable[[Exception], None]) -> None:
        self._waiting: list[Work] = []
        self._pump = Pump(self._record, clock, failed)

    def put(self, work: Work) -> None:
        """Queue what records a notice; it may run twice when the database goes away under it."""
        self._waiting.append(work)
        self._pump.kick()

    @property
    def full(self) -> bool:
        """Whether no further frame may be taken for now."""
        return len(self._waiting) >= MAX_WAITING

    async def wait_idle(self) -> None:
        """Return once everything is recorded."""
        await self._pump.wait_idle()

    async def _record(self) -> None:
        while self._waiting:
            await self._waiting[0]()
            del self._waiting[0]
