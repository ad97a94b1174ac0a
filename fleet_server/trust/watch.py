"""Whether another replica published a bundle: looked at often, and at once when a caller shows that there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fleet.clock import Clock
from fleet.errors import Refusal

WATCH_INTERVAL_S = 0.5
LOOK_PAUSE_S = 0.05
"""Between two looks that callers ask for: strangers are among them."""

Version = tuple[int, int]


class BundleWatch:
    """Notices what other replicas publish.

    Args:
        clock: for pauses.
        newest: version of the newest bundle in the database; None before the first. Raises `Refusal` while it is away.
        known: version of the newest bundle here; None before the first.
        take_up: takes up what is newer. It raises nothing.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        newest: Callable[[], Awaitable[Version | None]],
        known: Callable[[], Version | None],
        take_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._newest = newest
        self._known = known
        self._take_up = take_up
        self._looked_at: float | None = None
        self._next: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Look until cancelled: a key that another replica revoked signs nothing here either."""
        while True:
            await self._clock.sleep(WATCH_INTERVAL_S)
            await self._look()

    async def look(self) -> None:
        """Look now. Whoever asks meanwhile shares the next look, and two of them keep a pause; a database that is away
        has no news."""
        await asyncio.shield(self._next_look())

    def look_soon(self) -> None:
        """As `look`, for who does not wait for it."""
        self._next_look()

    def _next_look(self) -> asyncio.Task[None]:
        if self._next is None:
            self._next = asyncio.create_task(self._look_next())
        return self._next

    async def _look_next(self) -> None:
        if self._looked_at is not None:
            wait_s = self._looked_at + LOOK_PAUSE_S - self._clock.monotonic()
            if wait_s > 0:
                await self._clock.sleep(wait_s)
        self._looked_at, self._next = self._clock.monotonic(), None
        await self._look()

    async def _look(self) -> None:
        try:
            newest = await self._newest()
        except Refusal:
            return  # the database is away, which others say
        if newest is not None and newest != self._known():
            await self._take_up()
