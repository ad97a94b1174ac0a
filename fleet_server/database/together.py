"""What many ask of the database at one moment is asked once.

Mental model
    The first question goes at once. Those that come while it is under way wait, and go together as the next one: a
    busy server pays one way to the database for many callers, an idle one waits for nobody. It is to questions what
    group commit (`writer`) is to transactions.
    One that fails must not fail its neighbours: each is asked again by itself, unless the database is away from all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from fleet.errors import Reason, Refusal

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
On = TypeVar("On")
MOST_TOGETHER = 256
MAX_WAITING = 10_000
PAUSE_S = 0.025
PAUSE_OF_EACH_S = 0.003
"""Behind a group of several, for more to gather: so long for each of them, and never longer than the other. Where many
come at once the way to the database costs more than this wait, and takes the interpreter from the event loop each time.
A few wait a few milliseconds."""


class _Waiting(NamedTuple, Generic[Asked, Answer]):
    asked: Asked
    answer: asyncio.Future[Answer]


class Together(Generic[On, Asked, Answer]):
    """Asks together. Belongs to the event loop.

    Args:
        run: `Database.read` or `Database.write`.
        work: answers to all that is asked, in its order; runs in the thread of `run`, and perhaps more than once.
        key: no two with the same are asked together.
    """

    def __init__(
        self,
        run: Callable[[Callable[[On], Sequence[Answer]]], Awaitable[Sequence[Answer]]],
        work: Callable[[On, Sequence[Asked]], Sequence[Answer]],
        *,
        key: Callable[[Asked], Hashable] | None = None,
    ) -> None:
        self._run = run
        self._work = work
        self._key = key
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._going: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer.

        Raises:
            Refusal: the database is away, or too much waits for it.
            Exception: whatever `work` raises for this alone.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Refusal(Reason.OVERLOADED, "too many ask at this moment: try again", retry_after_s=1.0)
        waiting: _Waiting[Asked, Answer] = _Waiting(asked, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._going is None:
            # Not in the first one's context: what is logged under it is about all of them.
            self._going = asyncio.get_running_loop().create_task(self._go(), context=Context())
        return await waiting.answer

    async def _go(self) -> None:
        group: Sequence[_Waiting[Asked, Answer]] = ()
        try:
            while group := self._take():
                await self._ask_all(group)
                if len(group) > 1:
                    await asyncio.sleep(min(PAUSE_S, len(group) * PAUSE_OF_EACH_S))
        finally:
            self._going = None
            # Nobody of them has an answer where this was cancelled, with the loop or the database's threads.
            for waiting in (*group, *self._waiting):
                waiting.answer.cancel()
            self._waiting.clear()

    def _take(self) -> list[_Waiting[Asked, Answer]]:
        """Those who go next, without those who do not wait any more."""
        taken: list[_Waiting[Asked, Answer]] = []
        later: list[_Waiting[Asked, Answer]] = []
        keys: set[Hashable] = set()
        while self._waiting and len(taken) < MOST_TOGETHER:
            waiting = self._waiting.popleft()
            if waiting.answer.done():
                continue
            key = object() if self._key is None else self._key(waiting.asked)
            (later if key in keys else taken).append(waiting)
            keys.add(key)
        self._waiting.extendleft(reversed(later))
        return taken

    async def _ask_all(self, group: Sequence[_Waiting[Asked, Answer]]) -> None:
        try:
            answers = await self._run(partial(self._answer, [waiting.asked for waiting in group]))
        except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
            if len(group) == 1 or _is_everybodys(error):
                _reject(group, error)
                return
            for waiting in group:
                await self._ask_all([waiting])
        else:
            for waiting, answer in zip(group, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)

    def _answer(self, asked: Sequence[Asked], on: On) -> Sequence[Answer]:
        answers = self._work(on, asked)
        if len(answers) != len(asked):  # told to all, and undone; behind the commit somebody would wait for ever
            raise ValueError(f"{len(asked)} asked, and there are {len(answers)} answers")
        return answers


def _is_everybodys(error: Exception) -> bool:
    return isinstance(error, Refusal) and error.reason in (Reason.UNAVAILABLE, Reason.OVERLOADED)


def _reject(group: Iterable[_Waiting[Any, Any]], error: Exception) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
