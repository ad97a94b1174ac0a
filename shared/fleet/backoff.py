"""Full-jitter backoff (field lesson: agents that all return in the same second), reset only after a stable stretch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tenacity import RetryCallState, wait_random_exponential

_FAILURES_TO_INITIAL = 6


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How long to stay away.

    Args:
        initial_s: upper bound of the first delay; doubles with each failure.
        maximum_s: upper bound of any delay.
        stable_s: a stream that lived this long resets the count.
    """

    initial_s: float = 0.5
    maximum_s: float = 60.0
    stable_s: float = 30.0


class Backoff:
    """Counts failed attempts and draws the next delay. One per connection."""

    def __init__(self, policy: BackoffPolicy) -> None:
        self._policy = policy
        self._wait = wait_random_exponential(multiplier=policy.initial_s, max=policy.maximum_s)
        self.failures = 0

    def next_delay_s(self, asked_s: float | None = None) -> float:
        """Seconds to wait now.

        A delay that the server asked for is obeyed, plus up to a tenth so that its callers stay spread. It is at most
        ten times the policy's maximum, and from failure to failure at least a growing part of its initial delay: an
        unauthenticated answer may delay a node, neither strand it nor make it spin.
        """
        self.failures += 1
        if asked_s is not None:
            least_s = self._policy.initial_s * 2.0 ** min(0, self.failures - _FAILURES_TO_INITIAL)
            bounded_s = min(max(asked_s, least_s), self._policy.maximum_s * 10)
            return bounded_s * random.uniform(1.0, 1.1)
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = self.failures
        return self._wait(state)

    def ended(self, lived_s: float) -> None:
        """A stream ended after `lived_s` seconds; a stable one starts the count again."""
        if lived_s >= self._policy.stable_s:
            self.failures = 0


def full_jitter_s(delay_s: float, window_s: float) -> float:
    """Seconds to wait for a slot that begins after `delay_s` and is `window_s` wide."""
    return delay_s + random.uniform(0, max(0.0, window_s))
