"""How many handshakes are admitted: what one costs, what was got done, what is under way. Pure: time is an argument.

When those who are not admitted come back is `line`'s.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

WHOLE = 1.0 - 1e-4
"""A token: who comes at the very moment must find it, however sums of seconds are rounded."""


class TokenBucket:
    """Admits at most `rate_per_s` * time + `burst` in any stretch of time.

    Args:
        rate_per_s: tokens that come back in a second.
        burst: tokens that it holds when full, and now.
        now_s: monotonic seconds.
    """

    __slots__ = ("_at_s", "_tokens", "burst", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._tokens = burst
        self._at_s = now_s

    def tokens(self, now_s: float) -> float:
        """How many it holds."""
        self._refill(now_s)
        return self._tokens

    def pace(self, rate_per_s: float, burst: float, now_s: float) -> None:
        """From now on another rate and burst; it is as full as it was."""
        self._refill(now_s)
        self._tokens *= burst / self.burst
        self.rate_per_s = rate_per_s
        self.burst = burst

    def take(self, now_s: float) -> bool:
        """Take one token; False when there is none."""
        self._refill(now_s)
        if self._tokens < WHOLE:
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
        assumed_s: CPU seconds of what is not measured.
        guess_s: CPU seconds of a whole one, until each of `stages` was measured.
        weight: share of each new measurement.
    """

    __slots__ = ("_guess_s", "_missing", "_stages", "_weight", "assumed_s")

    def __init__(
        self, assumed_s: float, *, guess_s: float = 0.0, stages: Iterable[str] = (), weight: float = 0.05
    ) -> None:
        self.assumed_s = assumed_s
        self._guess_s = guess_s
        self._missing = set(stages)
        self._weight = weight
        self._stages: dict[str, float] = {}

    def observe(self, stage: str, seconds: float) -> None:
        """One more measurement of a stage."""
        self._missing.discard(stage)
        known = self._stages.get(stage)
        self._stages[stage] = seconds if known is None else known + (seconds - known) * self._weight

    def total_s(self) -> float:
        """CPU seconds of a whole handshake, the part that cannot be measured from here included."""
        measured_s = self.assumed_s + sum(self._stages.values())
        return max(measured_s, self._guess_s) if self._missing else measured_s


class Throughput:
    """What is got done by a server that is behind: what it can do, whatever it is that is short.

    What handshakes cost can be measured of the event loop alone; threads, the database and the processors that others
    use are not seen. Where they are too slow work piles up, and what leaves the pile in a second is the answer.

    Args:
        now_s: monotonic seconds.
        window_s: seconds of a measurement.
        growth: of the answer for each window in which it was not behind all the time.
    """

    __slots__ = ("_began_s", "_behind", "_done", "_growth", "_per_s", "_window_s")

    def __init__(self, now_s: float, *, window_s: float = 0.5, growth: float = 1.05) -> None:
        self._began_s = now_s
        self._window_s = window_s
        self._growth = growth
        self._done = 0
        self._behind = False
        self._per_s = math.inf

    def done(self) -> None:
        """One more is done."""
        self._done += 1

    def per_s(self, now_s: float, *, behind: bool, least: float, most: float) -> float:
        """At most so many can be done a second: not fewer than `least`, infinite once that is more than `most`. To be
        asked whenever `behind` may have changed: a window counts in which it was never seen false.
        """
        elapsed_s = now_s - self._began_s
        self._behind = self._behind and behind
        if elapsed_s < self._window_s:
            return self._per_s
        if self._behind:
            seen = self._done / elapsed_s
            self._per_s = max(least, seen if self._per_s == math.inf else (self._per_s + seen) / 2)
        else:
            windows = min(elapsed_s / self._window_s, 200.0)
            self._per_s *= self._growth**windows
            if self._per_s > most:
                self._per_s = math.inf
        self._began_s, self._done, self._behind = now_s, 0, behind
        return self._per_s


class UnderWay(Generic[Key]):
    """What was let in and has not come to an end, each key once.

    Args:
        stale_s: who is not heard of for so long has gone.
        max_keys: that are kept; then the oldest counts no more.
    """

    def __init__(self, *, stale_s: float, max_keys: int) -> None:
        self._stale_s = stale_s
        self._max_keys = max_keys
        self._since_s: OrderedDict[Key, float] = OrderedDict()

    def begin(self, key: Key, now_s: float) -> None:
        """It was let in, or let in anew."""
        self._since_s[key] = now_s
        self._since_s.move_to_end(key)
        if len(self._since_s) > self._max_keys:
            self._since_s.popitem(last=False)

    def end(self, key: Key) -> None:
        """It came to an end; one that is not under way does nothing."""
        self._since_s.pop(key, None)

    def count(self, now_s: float) -> int:
        """How many there are."""
        while self._since_s and next(iter(self._since_s.values())) <= now_s - self._stale_s:
            self._since_s.popitem(last=False)
        return len(self._since_s)


def admitted_per_s(cost_s: float, *, share: float, least: float, most: float) -> float:
    """Handshakes per second that may use `share` of one core.

    Args:
        cost_s: CPU seconds each.
        share: part of one core, 0 to 1.
        least: never fewer, so that a wrong measurement locks nobody out.
        most: never more.
    """
    return min(most, max(least, share / max(cost_s, 1e-6)))
