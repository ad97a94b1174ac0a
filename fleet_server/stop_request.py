"""Why this process ends: signals and drain requests, and what they ask for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from fleet.v1 import gateway_pb2


class StopRequest:
    """The first signal drains, each further one shortens the drain.

    Args:
        signals_shorten: whether signals after the first do. Not those of a worker: service managers send them to all
            processes, and its supervisor passes them on.

    `deadline_s` and `reason` are set by a drain request; unset, the settings and the situation decide.
    """

    def __init__(self, *, signals_shorten: bool = True) -> None:
        self._signals_shorten = signals_shorten
        self._hurried = False
        self.first = asyncio.Event()
        self.deadline_s: float | None = None
        self.also: frozenset[str] = frozenset()
        self.reason: gateway_pb2.GoawayReason.ValueType = gateway_pb2.GOAWAY_REASON_UNSPECIFIED
        self._shorten: list[Callable[[], None]] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def ordered(self, reason: gateway_pb2.GoawayReason.ValueType, deadline_s: float | None) -> None:
        """Take what a drain request asks for.

        Args:
            deadline_s: from now on; None leaves it to the settings.
        """
        self.deadline_s = deadline_s
        self.reason = reason

    def again(self, shorten: Callable[[], None]) -> None:
        """What a second signal does."""
        self._shorten.append(shorten)
        if self._hurried:
            shorten()

    def stop(self, also: frozenset[str] = frozenset()) -> None:
        """Drain and end; asked again, nothing changes.

        Args:
            also: replicas that end too, so that nodes find nobody there.
        """
        self.also |= also
        self.first.set()

    def hurry(self) -> None:
        """Shorten the drain, now or when it begins."""
        self._hurried = True
        for shorten in self._shorten:
            shorten()

    def _signalled(self) -> None:
        if not self.first.is_set():
            self.stop()
        elif self._signals_shorten:
            self.hurry()
