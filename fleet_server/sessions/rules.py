"""How many handshakes are admitted, and when the others are to come back. Pure: time is an argument.

Two rules work together. A token bucket never admits more than rate * time + burst. Whoever it turns away is given a
slot of its own in
the line, one slot each 1/rate seconds: a storm comes back as fast as it can be served, and no two of it at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class TokenBucket:
    """Admits at most `rate_per_s` * time + `burst` in any stretch of time.

    Args:
        rate_per_s: tokens that come back in a second; may be changed while it runs.
        burst: tokens that it holds when full, and now.
        now_s: monotonic seconds.
    """

    __slots__ = ("_at_s", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = burst
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one token; False when there is none."""
        self._refill(now_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def give_back(self) -> None:
        """Put a token back that was taken for nothing."""
        self._tokens = min(self.burst, self._tokens + 1.0)

    def wait_s(self, now_s: float) -> float:
        """Seconds until there is a token."""
        self._refill(now_s)
        return max(0.0, (1.0 - self._tokens) / self.rate_per_s)

    def _refill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._at_s) * self.rate_per_s
        self._tokens = min(self.burst, self._tokens + gained)
        self._at_s = max(self._at_s, now_s)


class ReturnSlots:
    """Gives each refused caller the next free slot in the line.

    Args:
        max_delay_s: nobody is sent away for longer. Past it callers are spread over its second half.
    """

    __slots__ = ("_max_delay_s", "_next_s")

    def __init__(self, max_delay_s: float) -> None:
        self._max_delay_s = max_delay_s
        self._next_s = 0.0

    def next_delay_s(self, now_s: float, rate_per_s: float, chance: float) -> float:
        """Seconds after which this caller is to come back.

        Args:
            now_s: monotonic seconds.
            rate_per_s: callers that can be served in a second.
            chance: random number in [0, 1), used when the line is longer than `max_delay_s`.
        """
        slot_s = max(self._next_s, now_s) + 1.0 / rate_per_s
        if slot_s - now_s > self._max_delay_s:
            return self._max_delay_s * (0.5 + 0.5 * chance)
        self._next_s = slot_s
        return slot_s - now_s


class BucketTable(Generic[Key]):
    """A token bucket for each key, at most `max_keys` of them; the one that was used longest ago is forgotten first.

    A forgotten bucket starts full again: a stranger who makes up keys frees nobody but himself, for each key costs
    him a request.
    """

    def __init__(self, *, rate_per_s: float, burst: float, max_keys: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[Key, TokenBucket] = OrderedDict()

    def delay_s(self, key: Key, now_s: float) -> float:
        """0 when the key may go on, and a token is taken; seconds to stay away otherwise."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate_per_s, self._burst, now_s)
            if len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return 0.0 if bucket.take(now_s) else max(bucket.wait_s(now_s), 0.001)

    def give_back(self, key: Key) -> None:
        """Put the key's token back; a bucket that was forgotten is full anyway."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.give_back()

    def __len__(self) -> int:
        return len(self._buckets)


class CostAverage:
    """What one handshake costs, from measurements of its stages.

    Args:
        assumed_s: CPU seconds to start with.
        weight: share of each new measurement.
    """

    __slots__ = ("_stages", "_weight", "assumed_s")

    def __init__(self, assumed_s: float, weight: float = 0.05) -> None:
        self.assumed_s = assumed_s
        self._weight = weight
        self._stages: dict[str, float] = {}

    def observe(self, stage: str, seconds: float) -> None:
        """One more measurement of a stage."""
        known = self._stages.get(stage)
        self._stages[stage] = seconds if known is None else known + (seconds - known) * self._weight

    def total_s(self) -> float:
        """CPU seconds of a whole handshake, the part that cannot be measured from here included."""
        return self.assumed_s + sum(self._stages.values())


def admitted_per_s(cost_s: float, *, share: float, least: float, most: float) -> float:
    """Handshakes per second that may use `share` of one core.

    Args:
        cost_s: CPU seconds each.
        share: part of one core, 0 to 1.
        least: never fewer, so that a wrong measurement locks nobody out.
        most: never more.
    """
    return min(most, max(least, share / max(cost_s, 1e-6)))
