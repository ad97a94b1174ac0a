"""What many ask at one moment is asked once, and each has its own answer."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Reason, Refusal
from fleet_server.database.together import MAX_WAITING, MOST_TOGETHER, Together


class Asking:
    """A database that is let go on by hand; `groups` is what was asked together."""

    def __init__(self, *, key: Callable[[int], Any] | None = None, bad: frozenset[int] = frozenset()) -> None:
        self.groups: list[list[int]] = []
        self.away: Refusal | None = None
        self._bad = bad
        self._turns: asyncio.Queue[None] = asyncio.Queue()
        self.together: Together[str, int, int] = Together(self._run, self._work, key=key)

    def let_go(self, times: int = 1) -> None:
        for _ in range(times):
            self._turns.put_nowait(None)

    async def _run(self, query: Callable[[str], Sequence[int]]) -> Sequence[int]:
        await self._turns.get()
        return query("a snapshot")

    def _work(self, on: str, asked: Sequence[int]) -> Sequence[int]:
        assert on == "a snapshot"
        self.groups.append(list(asked))
        if self.away is not None:
            raise self.away
        if self._bad & set(asked):
            raise ValueError(f"{sorted(self._bad & set(asked))} cannot be read")
        return [10 * each for each in asked]


async def ask(asking: Asking, *asked: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(asking.together.ask(each)) for each in asked]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_the_first_goes_at_once_and_those_that_come_meanwhile_go_together() -> None:
    asking = Asking()
    first = await ask(asking, 1)
    rest = await ask(asking, 2, 3, 4)
    asking.let_go(2)
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40]
    assert asking.groups == [[1], [2, 3, 4]]
    again = await ask(asking, 5)
    asking.let_go()
    assert await asyncio.gather(*again) == [50]


async def test_no_more_than_so_many_go_together() -> None:
    asking = Asking()
    first = await ask(asking, 0)
    rest = await ask(asking, *range(1, MOST_TOGETHER + 11))
    asking.let_go(3)
    assert await asyncio.gather(*first, *rest) == [10 * each for each in range(MOST_TOGETHER + 11)]
    assert list(map(len, asking.groups)) == [1, MOST_TOGETHER, 10]


async def test_one_that_fails_fails_alone() -> None:
    asking = Asking(bad=frozenset({3}))
    first = await ask(asking, 1)
    rest = await ask(asking, 2, 3, 4)
    asking.let_go(5)
    answers = await asyncio.gather(*first, *rest, return_exceptions=True)
    assert answers[:2] + answers[3:] == [10, 20, 40]
    assert isinstance(answers[2], ValueError)


async def test_a_database_that_is_away_is_asked_once_for_all() -> None:
    asking = Asking()
    asking.away = Refusal(Reason.UNAVAILABLE, "away")
    first = await ask(asking, 1)
    rest = await ask(asking, 2, 3)
    asking.let_go(2)
    answers = await asyncio.gather(*first, *rest, return_exceptions=True)
    assert [isinstance(answer, Refusal) for answer in answers] == [True] * 3
    assert asking.groups == [[1], [2, 3]]
    asking.away = None
    again = await ask(asking, 7)
    asking.let_go()
    assert await asyncio.gather(*again) == [70]


async def test_who_does_not_wait_any_more_keeps_nobody_from_an_answer() -> None:
    asking = Asking()
    [first] = await ask(asking, 1)
    gone, stays = await ask(asking, 2, 3)
    first.cancel()
    gone.cancel()
    asking.let_go(2)
    assert await stays == 30
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert asking.groups == [[1], [3]]


async def test_too_few_answers_are_everybodys_error_and_leave_nobody_waiting() -> None:
    together: Together[str, int, int] = Together(lambda query: asyncio.to_thread(query, ""), lambda _, asked: asked[1:])
    answers = await asyncio.gather(*map(together.ask, range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError] * 3


async def test_nobody_waits_for_what_was_cancelled() -> None:
    """As when the database closes: its threads take back what waits for one."""
    asking = Asking(bad=frozenset({2}))
    first = await ask(asking, 1)
    rest = await ask(asking, 2, 3)
    asking.let_go(2)  # the second group, too, whose asked are then asked one by one
    await asyncio.gather(*first)
    for _ in range(5):
        await asyncio.sleep(0)
    late = await ask(asking, 4)
    assert asking.groups == [[1], [2, 3]]
    assert asking.together._going is not None
    asking.together._going.cancel()
    answers = await asyncio.wait_for(asyncio.gather(*rest, *late, return_exceptions=True), 5)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 3
    again = await ask(asking, 5)
    asking.let_go()
    assert await asyncio.gather(*again) == [50]


async def test_no_more_than_so_many_wait() -> None:
    asking = Asking()
    first = await ask(asking, 0)
    rest = await ask(asking, *range(1, MAX_WAITING + 1))
    with pytest.raises(Refusal) as refused:
        await asking.together.ask(7)
    assert refused.value.reason is Reason.OVERLOADED
    for task in (*first, *rest):
        task.cancel()
    await asyncio.wait((*first, *rest))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_no_two_of_one_key_go_together_and_each_key_keeps_its_order(keys: list[int]) -> None:
    async def run() -> list[list[int]]:
        asking = Asking(key=lambda each: keys[each])
        tasks = await ask(asking, *range(len(keys)))
        asking.let_go(len(keys))
        assert await asyncio.gather(*tasks) == [10 * each for each in range(len(keys))]
        return asking.groups

    groups = asyncio.run(run())
    for group in groups:
        assert len({keys[each] for each in group}) == len(group)
    asked = [each for group in groups for each in group]
    assert sorted(asked) == list(range(len(keys)))
    for key in set(keys):
        of_key = [each for each in asked if keys[each] == key]
        assert of_key == sorted(of_key)
