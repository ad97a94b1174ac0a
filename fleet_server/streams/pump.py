"""Work that runs when there is some, and costs no task when there is none: an idle stream holds no coroutine per
lane."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fleet.clock import Clock
from fleet.errors import Reason, Refusal

_RETRY_S = (0.1, 0.25, 0.5, 1.0, 2.0)
_PASSING = frozenset({Reason.UNAVAILABLE, Reason.OVERLOADED})


class Pump:
    """Runs `work` whenever it was kicked: never twice at once, once more when it was kicked meanwhile.

    A database that is away (UNAVAILABLE, OVERLOADED) is waited out with growing pauses: streams stay up, work resumes.

    Args:
        work: one round.
        clock: for the pauses.
        failed: told about any other exception; the pump then stands still.
    """

    __slots__ = ("_again", "_clock", "_failed", "_stopped", "_task", "_work")

    def __init__(self, work: Callable[[], Awaitable[None]], clock: Clock, failed: Callable[[Exception], None]) -> None:
        self._work = work
        self._clock = clock
        self._failed = failed
        self._again = False
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def kick(self) -> None:
        """There may be work."""
        self._again = True
        if self._task is None and not self._stopped:
            self._task = asyncio.create_task(self._run())

    @property
    def running(self) -> bool:
        """Whether a round runs, or is about to."""
        return self._task is not None

    def stop(self) -> None:
        """Start no further round. One that runs is left to finish: it may hold a commit that somebody waits for."""
        self._stopped = True

    async def wait_idle(self) -> None:
        """Return once no round runs."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        failures = 0
        try:
            while self._again and not self._stopped:
                self._again = False
                try:
                    await self._work()
                    failures = 0
                except Refusal as refusal:
                    if refusal.reason not in _PASSING:
                        raise
                    self._again = True
                    await self._clock.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                    failures += 1
        except Exception as error:  # noqa: BLE001 - handed on, never lost
            self._stopped = True
            self._failed(error)
        finally:
            self._task = None
