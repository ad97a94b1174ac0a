"""Ends a call on which nothing comes any more: a server that stands still hangs up nowhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Silence:
    """Watches one call. Used in a `with` around reading it.

    Args:
        limit_s: seconds of silence that end it; None for any.
        end: ends the call, from another thread.
    """

    def __init__(self, limit_s: float | None, end: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._end = end
        self._heard = threading.Event()
        self._over = False
        self.ended_it = False
        """Whether silence ended the call."""

    def __enter__(self) -> Self:
        if self._limit_s is not None:
            threading.Thread(target=self._listen, name="silence", daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._over = True
        self._heard.set()

    def broken(self) -> None:
        """Something came."""
        self._heard.set()

    def _listen(self) -> None:
        while self._heard.wait(self._limit_s):
            self._heard.clear()
            if self._over:
                return
        self.ended_it = True
        self._end()
