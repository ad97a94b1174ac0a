"""Signs of life, kept in memory and handed over in bulk: a storm of pings is never a storm of writes.

Belongs to the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass

_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """What the last pong told, and the epoch of the stream that it came on. `seen_ms` in Unix milliseconds on the
    server; `accepted_seq` is the highest seq that the node has answered so far."""

    epoch: int
    seen_ms: int
    rtt_us: int
    clock_offset_ms: int
    accepted_seq: int


class Liveness:
    """Newest sign of life of each node since the last flush."""

    def __init__(self) -> None:
        self._news: dict[str, SignOfLife] = {}

    def note(
        self, node_id: str, *, epoch: int, now_ms: int, rtt_us: int, clock_offset_ms: int, accepted_seq: int
    ) -> None:
        """Keep the newest, of the newest stream. Both figures come from a node's clock, so they are cut to what the
        views can carry."""
        known = self._news.get(node_id)
        if known is not None and known.epoch > epoch:
            return
        offset = max(-_INT32, min(_INT32, clock_offset_ms))
        self._news[node_id] = SignOfLife(epoch, now_ms, max(0, min(_INT32, rtt_us)), offset, accepted_seq)

    def forget(self, node_id: str, epoch: int) -> None:
        """Its stream of that epoch has ended: a late flush must not show it online."""
        known = self._news.get(node_id)
        if known is not None and known.epoch <= epoch:
            del self._news[node_id]

    def peek(self, node_id: str) -> SignOfLife | None:
        """What has not been flushed yet."""
        return self._news.get(node_id)

    def take(self) -> dict[str, SignOfLife]:
        """Hand over everything and start anew."""
        news, self._news = self._news, {}
        return news

    def give_back(self, signs: dict[str, SignOfLife]) -> None:
        """Signs that could not be written; newer ones win."""
        self._news = signs | self._news
