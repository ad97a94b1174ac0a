"""One job of the writer for all callers that wait: until the writer begins it, further callers join it.

Nothing waits to fill a batch: an idle room writes a single item at once, a busy one pays for one job, one statement and
one audit row, for many callers.

A row that somebody holds keeps up a whole batch, but not for long: then each of its items goes by itself, and whose row
it is waits alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from fleet.errors import Refusal
from fleet_server.database.writer import Transaction

Item = TypeVar("Item")
TOGETHER_S = 0.5
"""So long the items of a batch wait together for a row that somebody holds: longer than most transactions take, and
shorter than anybody is to wait for a row that is another's."""


class Submit(Protocol):
    """Hands a job to the writer."""

    def __call__(self, work: Callable[[Transaction], None], *, patience_s: float | None = None) -> asyncio.Future[None]:
        """See `Database.write_nowait`."""
        ...


class _Batch(Generic[Item]):
    """Items of one job, each with its caller's future. The event loop adds to it, the writer's thread begins it.

    Args:
        alone: it has one item that was written with others in vain.
    """

    def __init__(self, max_items: int, *, alone: bool = False) -> None:
        self.waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self.alone = alone
        self._max_items = max_items
        self._begun = False
        self._lock = threading.Lock()

    def join(self, item: Item, written: asyncio.Future[None]) -> bool:
        """Whether the item still comes along."""
        with self._lock:
            if self._begun or len(self.waiting) >= self._max_items:
                return False
            self.waiting.append((item, written))
            return True

    def begin(self) -> list[Item]:
        """All items there will ever be; a job that is run again begins again with the same."""
        with self._lock:
            self._begun = True
        return [item for item, _ in self.waiting]

    def written(self) -> None:
        """Tell the callers: on the event loop, with the effects of the commit."""
        for _, future in self.waiting:
            if not future.done():
                future.set_result(None)


class Gatherer(Generic[Item]):
    """Gathers items for `write`.

    Args:
        submit: see `Submit`.
        write: writes a batch inside a transaction. When it raises, each item is written by itself, so that a bad one
            fails its own caller only.
        max_items: most items of one batch.
    """

    def __init__(
        self,
        submit: Submit,
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
        written = asyncio.get_running_loop().create_future()
        if self._open is None or not self._open.join(item, written):
            self._open = _Batch(self._max_items)
            self._open.join(item, written)
            self._hand_in(self._open)
        await written

    def _hand_in(self, batch: _Batch[Item]) -> None:
        def work(tx: Transaction) -> None:
            self._write(tx, batch.begin())
            tx.after_commit(batch.written)

        try:
            writing = self._submit(work, patience_s=None if batch.alone else TOGETHER_S)
        except Exception as error:  # noqa: BLE001 - as below
            self._failed(batch, error)
        else:
            writing.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: _Batch[Item], writing: asyncio.Future[None]) -> None:
        error = writing.exception()
        if error is not None:
            self._failed(batch, error)

    def _failed(self, batch: _Batch[Item], error: BaseException) -> None:
        """Every failure belongs to the caller whose item it is."""
        batch.begin()  # the writer may have refused it unseen: nobody joins it any more
        # Of a refusal nobody can tell whether it came of a short patience.
        if batch.alone or (len(batch.waiting) == 1 and not isinstance(error, Refusal)):
            _fail(batch.waiting[0][1], error)
            return
        for item, written in batch.waiting:
            alone: _Batch[Item] = _Batch(1, alone=True)
            alone.join(item, written)
            self._hand_in(alone)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
