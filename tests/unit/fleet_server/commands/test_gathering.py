"""Callers that wait are written together; a bad one fails alone."""

import asyncio
from collections.abc import Sequence

import pytest

from fleet_server.commands.gathering import Gatherer


class Writes:
    """A writer that the test lets go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    async def write(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.gate.wait()
        if -1 in items:
            raise ValueError("bad item")
        return [item * 10 for item in items]


async def test_one_alone_is_written_at_once_and_the_rest_together() -> None:
    writes = Writes()
    gatherer: Gatherer[int, int] = Gatherer(writes.write, max_items=3)
    calls = [asyncio.ensure_future(gatherer.submit(1))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert writes.batches == [[1]]
    calls += [asyncio.ensure_future(gatherer.submit(item)) for item in (2, 3, 4, 5)]
    await asyncio.sleep(0)
    writes.gate.set()
    assert await asyncio.gather(*calls) == [10, 20, 30, 40, 50]
    assert writes.batches == [[1], [2, 3, 4], [5]]


async def test_a_bad_item_fails_its_own_caller_only() -> None:
    writes = Writes()
    writes.gate.set()
    gatherer: Gatherer[int, int] = Gatherer(writes.write, max_items=10)
    results = await asyncio.gather(*(gatherer.submit(item) for item in (1, -1, 2)), return_exceptions=True)
    assert results[0] == 10
    assert isinstance(results[1], ValueError)
    assert results[2] == 20


async def test_a_caller_that_gives_up_costs_nobody_else() -> None:
    writes = Writes()
    gatherer: Gatherer[int, int] = Gatherer(writes.write, max_items=10)
    leaving, staying = (asyncio.ensure_future(gatherer.submit(item)) for item in (1, 2))
    await asyncio.sleep(0)
    leaving.cancel()
    writes.gate.set()
    assert await staying == 20
    with pytest.raises(asyncio.CancelledError):
        await leaving
