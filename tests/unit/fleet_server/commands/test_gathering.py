"""Callers that wait are written together; a bad one fails alone."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fleet.errors import Reason, Refusal
from fleet_server.commands.gathering import TOGETHER_S, Gatherer
from fleet_server.database.writer import Transaction

Job = Callable[[Transaction], None]
NO_CONNECTION: Any = None


class Writer:
    """A writer that the test lets go on, a job at a time."""

    def __init__(self, max_items: int) -> None:
        self.batches: list[list[int]] = []
        self.patience: list[float | None] = []
        self.refused: set[int] = set()
        self.gatherer: Gatherer[int] = Gatherer(self.submit, self.write, max_items=max_items)
        self._jobs: asyncio.Queue[tuple[Job, asyncio.Future[None]]] = asyncio.Queue()

    def call(self, item: int) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.gatherer.submit(item))

    def submit(self, work: Job, *, patience_s: float | None = None) -> asyncio.Future[None]:
        self.patience.append(patience_s)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((work, done))
        return done

    async def begin(self) -> Callable[[], None]:
        """Run the next job; how to end it, with its commit if it did not fail."""
        job, done = await self._jobs.get()
        transaction = Transaction(NO_CONNECTION)
        try:
            job(transaction)
        except (ValueError, Refusal) as error:
            failure = error
            return lambda: done.set_exception(failure)

        def commit() -> None:
            for effect in transaction.effects:
                effect()
            done.set_result(None)

        return commit

    async def go_on(self) -> None:
        (await self.begin())()

    def write(self, _: Transaction, items: Sequence[int]) -> None:
        self.batches.append(list(items))
        if -1 in items:
            raise ValueError("bad item")
        if self.refused.intersection(items):
            raise Refusal(Reason.UNAVAILABLE, "somebody holds a row of these")


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_comes_before_the_writer_begins_comes_along_and_who_comes_later_waits_for_the_next() -> None:
    writer = Writer(max_items=10)
    early = [writer.call(item) for item in (1, 2)]
    await turn()
    early.append(writer.call(3))
    await turn()
    commit = await writer.begin()
    late = [writer.call(item) for item in (4, 5)]
    await turn()
    assert writer.batches == [[1, 2, 3]]
    commit()
    await asyncio.gather(*early)
    assert not any(call.done() for call in late)
    await writer.go_on()
    await asyncio.gather(*late)
    assert writer.batches == [[1, 2, 3], [4, 5]]


async def test_a_full_batch_takes_nobody_more() -> None:
    writer = Writer(max_items=2)
    calls = [writer.call(item) for item in (1, 2, 3)]
    await turn()
    await writer.go_on()
    await writer.go_on()
    await asyncio.gather(*calls)
    assert writer.batches == [[1, 2], [3]]


async def test_a_bad_item_fails_its_own_caller_only() -> None:
    writer = Writer(max_items=10)
    calls = [writer.call(item) for item in (1, -1, 2)]
    await turn()
    for _ in range(4):
        await writer.go_on()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    assert writer.batches == [[1, -1, 2], [1], [-1], [2]]


async def test_whoever_waits_for_a_row_longer_than_a_batch_does_waits_alone() -> None:
    writer = Writer(max_items=10)
    writer.refused = {2}
    calls = [writer.call(item) for item in (1, 2, 3)]
    await turn()
    for _ in range(4):
        await writer.go_on()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Refusal, type(None)]
    assert writer.patience == [TOGETHER_S, None, None, None]


async def test_one_that_waits_with_nobody_has_all_the_patience_there_is() -> None:
    writer = Writer(max_items=10)
    writer.refused = {1}
    call = writer.call(1)
    await turn()
    await writer.go_on()
    writer.refused = set()
    await writer.go_on()
    await call
    assert writer.patience == [TOGETHER_S, None]


async def test_a_caller_that_gives_up_costs_nobody_else() -> None:
    writer = Writer(max_items=10)
    leaving, staying = writer.call(1), writer.call(2)
    await turn()
    leaving.cancel()
    await turn()
    await writer.go_on()
    await staying
    assert leaving.cancelled()
    assert writer.batches == [[1, 2]]


async def test_nobody_joins_a_batch_that_was_refused_unseen() -> None:
    writer = Writer(max_items=10)

    def refuse(work: Job, *, patience_s: float | None = None) -> asyncio.Future[None]:
        del work, patience_s
        raise ConnectionError("the database is away")

    writer.gatherer = Gatherer(refuse, writer.write, max_items=10)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(writer.gatherer.submit(1), 1)
    assert writer.batches == []


async def test_a_job_that_is_run_again_writes_the_same() -> None:
    writer = Writer(max_items=10)
    jobs: list[Job] = []

    def submit(work: Job, *, patience_s: float | None = None) -> asyncio.Future[None]:
        del patience_s
        transaction = Transaction(NO_CONNECTION)
        jobs.append(work)
        work(transaction)
        for effect in transaction.effects:
            effect()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    gatherer: Gatherer[int] = Gatherer(submit, writer.write, max_items=10)
    await gatherer.submit(1)
    await gatherer.submit(2)
    jobs[0](Transaction(NO_CONNECTION))
    assert writer.batches == [[1], [2], [1]]
