"""Draining this node: whether it takes new work, and what it says about it (docs/protocol.md, "Drain").

What runs goes on, bounded by the deadline if there is one. What was accepted and has not started stays ACCEPTED, and so
does what still arrives while the order is on its way: it runs after the resume, unless it expired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet_node.observability.metrics import CommandMetrics

log = get_logger(__name__)


class Drain:
    """Whether the node drains, and the deadline for what runs.

    Args:
        clock: for the deadline.
        overdue: called at the deadline.
    """

    def __init__(self, *, clock: Clock, metrics: CommandMetrics, overdue: Callable[[], None]) -> None:
        self._clock = clock
        self._metrics = metrics
        self._overdue = overdue
        self._deadline: asyncio.Task[None] | None = None
        self.draining = False

    def order(self, draining: bool, *, deadline_s: float = 0.0) -> bool:
        """Drain or resume; returns whether that is news.

        Args:
            draining: take no new work.
            deadline_s: how long what runs may go on; 0 means without limit. A repeated order without one leaves an
                earlier deadline alone.
        """
        news = draining != self.draining
        self.draining = draining
        self._metrics.drained.set(1 if draining else 0)
        if not draining or deadline_s > 0:
            self.close()
        if draining and deadline_s > 0:
            self._deadline = asyncio.get_running_loop().create_task(self._wait_deadline(deadline_s))
        if news:
            log.info("drain_ordered" if draining else "drain_ended", deadline_s=deadline_s)
        return news

    def close(self) -> None:
        """Forget the deadline."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def _wait_deadline(self, deadline_s: float) -> None:
        await self._clock.sleep(deadline_s)
        self._overdue()
