"""Waiting for a condition over changing state: no polling, no sleeping."""

import asyncio
from collections.abc import Callable


class Watch:
    """Wakes coroutines that wait for a predicate whenever the owner says that its state changed.

    Belongs to one event loop; `changed` must be called on it.
    """

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def changed(self) -> None:
        """Have every waiter look at its predicate again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, predicate: Callable[[], bool]) -> None:
        """Return once `predicate()` holds, however long that takes."""
        while not predicate():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def wait_until(self, predicate: Callable[[], bool], what: Callable[[], str], timeout_s: float) -> None:
        """Return once `predicate()` holds.

        Raises:
            TimeoutError: after `timeout_s`, with `what()` as its text, so that a failed test tells the
            state it saw.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait(predicate)
        except TimeoutError:
            raise TimeoutError(f"after {timeout_s:g} s: {what()}") from None
