"""How often one route may be given another path for what its source tells. Pure.

Evidence comes once an interval, or a few times in a row when one way after another breaks. A source that tells of ways
that break and heal with each report would have relays take a new configuration, and everybody's writes wait, each time.
"""

from __future__ import annotations

AT_ONCE = 8
"""Turns in a row; from then on one each interval."""


class Turns:
    """Turns that routes have left, by id; in memory, since a source tells one replica at a time."""

    def __init__(self) -> None:
        self._spent_until_ms: dict[str, int] = {}

    def may(self, route_id: str, interval_ms: int, now_ms: int) -> bool:
        """Whether a route has a turn left."""
        return self._ahead_ms(route_id, interval_ms, now_ms) <= (AT_ONCE - 1) * interval_ms

    def take(self, route_id: str, interval_ms: int, now_ms: int) -> None:
        """A route took another path."""
        self._spent_until_ms[route_id] = now_ms + self._ahead_ms(route_id, interval_ms, now_ms) + interval_ms

    def clear(self) -> None:
        """Forget all of them."""
        self._spent_until_ms.clear()

    def _ahead_ms(self, route_id: str, interval_ms: int, now_ms: int) -> int:
        ahead_ms = self._spent_until_ms.get(route_id, 0) - now_ms
        # More than can be spent ahead: a clock went back.
        return ahead_ms if 0 < ahead_ms <= AT_ONCE * interval_ms else 0
