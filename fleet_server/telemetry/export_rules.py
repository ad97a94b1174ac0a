"""Decisions about telemetry that goes out: what still has to go, and what an answer of the receiver means. Pure.

Chunks are numbered when they are inserted and appear when they are committed, so one may appear behind a later one. A
cursor that only remembered the highest would lose it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

WINDOW_S = 60.0
"""So long after a number was seen, no lower one appears any more: twice what a transaction may take (dialects)."""


class Cursor:
    """Which chunks have been exported. Everything up to `settled` has, or never will be seen.

    Args:
        settled: position that an earlier run had settled. What it exported beyond goes out again.
    """

    def __init__(self, settled: int) -> None:
        self.settled = settled
        self.newest = settled
        self._done: dict[int, int] = {}
        self._seen: deque[tuple[float, int]] = deque()

    def exported(self, chunks: Iterable[tuple[int, int]]) -> None:
        """The receiver took these, each its position and its time, or they are of no use."""
        for position, end_ms in chunks:
            self._done[position] = end_ms
            self.newest = max(self.newest, position)

    def missing(self, chunks: Iterable[tuple[int, int]]) -> list[int]:
        """Positions of those that have not been exported. One with another time than was exported is another chunk: a
        standby that took over had not heard of the first, and SQLite gives the highest away again once it is free."""
        done = self._done
        return [position for position, end_ms in chunks if position > self.settled and done.get(position) != end_ms]

    def settle(self, began_s: float) -> None:
        """A look at everything between `settled` and `newest` found nothing that is missing.

        Args:
            began_s: monotonic seconds when the look began.
        """
        if self.newest > self.settled and (not self._seen or self._seen[-1][1] != self.newest):
            self._seen.append((began_s, self.newest))
        settled = self.settled
        while self._seen and self._seen[0][0] <= began_s - WINDOW_S:
            settled = self._seen.popleft()[1]
        if settled != self.settled:
            self.settled = settled
            self._done = {position: end_ms for position, end_ms in self._done.items() if position > settled}

    def restart(self, position: int) -> None:
        """Positions began anew, below what was settled."""
        self.settled = self.newest = position
        self._done.clear()
        self._seen.clear()


def so_many(sizes: Sequence[int], most: int) -> int:
    """How many of the first sizes make up at most `most`; one, if there is any, whatever its size."""
    within = sum(total <= most for total in accumulate(sizes))
    return max(within, min(1, len(sizes)))


class Standing(StrEnum):
    """What a receiver's answer asks for."""

    TAKEN = "taken"
    REFUSED = "refused"
    LATER = "later"
    FAULT = "fault"
    SETUP = "setup"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Args:
        standing: TAKEN; REFUSED for good, with these points; LATER when it is to be sent again; FAULT when it failed at
            it, and may at whatever it is sent; SETUP when somebody has to change the exporter's settings or the
            receiver's, until when it is sent again.
        detail: the receiver's words, for people.
        rejected: points that it did not take of a request that it took.
        retry_after_s: seconds that it asks to wait.
    """

    standing: Standing
    detail: str = ""
    rejected: int = 0
    retry_after_s: float | None = None


_LATER_STATUS = frozenset({408, 429})
_SETUP_STATUS = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 415, 501, 505})
_LATER_CODES = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "RESOURCE_EXHAUSTED"}
)
_SETUP_CODES = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"})


def of_http_status(status: int) -> Standing:
    """What an HTTP status says (OTLP 1.10, "OTLP/HTTP Response"; proxies have 52x and 56x for a receiver that is
    away)."""
    if 200 <= status < 300:
        return Standing.TAKEN
    if status == 500:
        return Standing.FAULT
    if status in _SETUP_STATUS:
        return Standing.SETUP
    return Standing.LATER if status in _LATER_STATUS or status >= 500 else Standing.REFUSED


def of_grpc_code(code: str) -> Standing:
    """What the name of a gRPC status code says (OTLP 1.10, "Failures")."""
    if code in _LATER_CODES:
        return Standing.LATER
    return Standing.SETUP if code in _SETUP_CODES else Standing.REFUSED


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, at most an hour; a date counts as none."""
    try:
        return None if value is None else min(max(0.0, float(value)), 3600.0)
    except ValueError:
        return None
