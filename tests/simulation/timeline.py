"""Simulated time: what happens next happens now."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]


class Timeline:
    """Milliseconds since the beginning; of two events at one moment the one that was planned first comes first."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._planned = 0
        self._queue: list[tuple[int, int, Action, tuple[Any, ...]]] = []

    def at(self, at_ms: int, action: Action, *args: Any) -> None:
        self._planned += 1
        heapq.heappush(self._queue, (max(at_ms, self.now_ms), self._planned, action, args))

    def after(self, delay_ms: int, action: Action, *args: Any) -> None:
        self.at(self.now_ms + delay_ms, action, *args)

    def run(self, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, action, args = heapq.heappop(self._queue)
            action(*args)
        self.now_ms = until_ms
