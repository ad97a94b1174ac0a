"""Jobs of the writer, and those of them that stand aside because somebody else holds a row that they need.

Who waits for a row keeps the one writer, and with it everything that its replica has to write. So the first to meet a
held row waits for as long as most transactions take, and then steps aside. While anybody stands aside, what comes anew
is not kept up by more than a glance at a held row, and between two groups one of those aside looks whether its row is
free: each in turn, for their rows may be of different holders, and when one gets through all others follow, for they
may be of the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fleet_server.database.dialects import LOCK_TIMEOUT_MS

if TYPE_CHECKING:
    from fleet_server.database.writer import Transaction

PATIENCE_S = LOCK_TIMEOUT_MS / 1000
"""From the first time that a job met a held row."""
GLANCE_MS = 5
LOOK_MS = 50
_PAUSE_S = (0.005, 0.02)
"""Between two looks, while nothing else is to be done: of chance, or two replicas that stand in each other's way would
go on doing so."""


@dataclass(slots=True, eq=False)
class Job:
    """Work of one caller."""

    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    rank: str | None = None
    result: Any = None
    patience_s: float | None = None  # `PATIENCE_S`
    gives_up_at: float = 0.0  # of `perf_counter`; 0 while it has met no held row

    def fail(self, error: Exception) -> None:
        """Tell the caller. Any thread."""
        call(self.loop, _reject, self.future, error)


def in_order(group: Sequence[Job]) -> list[Job]:
    """Jobs as they run: those that have a rank by that, in the places that they have among the others."""
    ranked = iter(sorted((job for job in group if job.rank is not None), key=lambda job: job.rank or ""))
    return [job if job.rank is None else next(ranked) for job in group]


class Aside:
    """Jobs that stand aside. The writer's thread alone calls; any thread may ask how many there are.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = perf_counter) -> None:
        self._monotonic = monotonic
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> list[Job]:
        """A job has met a held row: it stands behind all others. Those whose patience is over, and so stand here no
        more: it, and the others of these, for nobody can tell that their turn would come in time."""
        now = self._monotonic()
        job.gives_up_at = job.gives_up_at or now + (PATIENCE_S if job.patience_s is None else job.patience_s)
        self._jobs.append(job)
        if job.gives_up_at > now:
            return []
        over = [each for each in self._jobs if each.gives_up_at <= now]
        self._jobs = deque(each for each in self._jobs if each.gives_up_at > now)
        return over

    def next(self) -> Job:
        """Whose turn it is to look."""
        return self._jobs.popleft()

    def some(self, most: int) -> list[Job]:
        """Those that come next, in order."""
        return [self._jobs.popleft() for _ in range(min(most, len(self._jobs)))]

    def pause_s(self) -> float | None:
        """So long to wait for other work before the next look; None without anybody aside: for as long as it takes."""
        return random.uniform(*_PAUSE_S) if self._jobs else None  # noqa: S311 - no secret


def call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    """Call a function on a loop. Any thread; a loop that has closed has nobody left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _reject(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
