"""One job of the writer for all callers that wait: until the writer begins it, further callers join it.

Nothing waits to fill a batch: an idle room writes a single item at once, a busy one pays for one job, one statement and
one audit row, for many callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from fleet_server.database.writer import Transaction

Item = TypeVar("Item")


class _Batch(Generic[Item]):
    """Items of one job. The event loop adds to it, the writer's thread begins it."""

    def __init__(self, max_items: int) -> None:
        self.items: list[Item] = []
        self.written: asyncio.Future[None]
        self._max_items = max_items
        self._begun = False
        self._lock = threading.Lock()

    def join(self, item: Item) -> bool:
        """Whether the item still comes along."""
        with self._lock:
            if self._begun or len(self.items) >= self._max_items:
                return False
            self.items.append(item)
            return True

    def begin(self) -> Sequence[Item]:
        """All items there will ever be; a job that is run again begins again with the same."""
        with self._lock:
            self._begun = True
        return self.items


class Gatherer(Generic[Item]):
    """Gathers items for `write`.

    Args:
        submit: hands a job to the writer (`Database.write`).
        write: writes a batch inside a transaction. When it raises, each item is written by itself, so that a bad one
            fails its own caller only.
        max_items: most items of one batch.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[Transaction], None]], Awaitable[None]],
        write: Callable[[Transaction, Sequence[Item]], None],
        *,
        max_items: int,
    ) -> None:
        self._submit = submit
        self._write = write
        self._max_items = max_items
        self._open: _Batch[Item] | None = None

    async def submit(self, item: Item) -> None:
        """Write `item`, with whatever else waits.

        Raises:
            Exception: whatever writing it raised.
        """
        batch = self._open
        if batch is None or not batch.join(item):
            batch = self._open = _Batch(self._max_items)
            batch.join(item)
            batch.written = asyncio.ensure_future(self._write_batch(batch))
        try:
            await asyncio.shield(batch.written)  # a caller that gives up must not take the others along
        except Exception:
            if len(batch.items) == 1:
                raise
            await self._submit(lambda tx: self._write(tx, [item]))

    async def _write_batch(self, batch: _Batch[Item]) -> None:
        await self._submit(lambda tx: self._write(tx, batch.begin()))
