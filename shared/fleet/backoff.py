"""Full-jitter backoff (field lesson: agents that all return in the same second), reset only after a stable stretch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tenacity import RetryCallState, wait_random_exponential

_REFUSALS_TO_INITIAL = 6


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How long to stay away.

    Args:
        initial_s: upper bound of the first delay; doubles with each failure that nobody set a delay for.
        maximum_s: upper bound of any delay.
        stable_s: a stream that lived this long resets the counts.
    """

    initial_s: float = 0.5
    maximum_s: float = 60.0
    stable_s: float = 30.0


class Backoff:
    """Counts failed attempts and draws the next delay. One per connection.

    Two counts: of failures that left the wait to this side, and of refusals that said how long it is. Who says so is up
    and spreads its callers itself, and waits that nobody asked for must not grow by it: after a storm, in which each
    caller was put off several times, the next loss of a connection would cost up to the maximum (as with the pushback
    of gRFC A6). It does not start the count again either: a server that says so and crashes would gather a herd.
    """

    def __init__(self, policy: BackoffPolicy) -> None:
        self._policy = policy
        self._wait = wait_random_exponential(multiplier=policy.initial_s, max=policy.maximum_s)
        self.failures = 0
        self._put_off = 0

    def next_delay_s(self, asked_s: float | None = None) -> float:
        """Seconds to wait now.

        A delay that the server asked for is obeyed, plus up to a tenth so that its callers stay spread. It is at most
        ten times the policy's maximum, and from refusal to refusal at least a growing part of its initial delay: an
        unauthenticated answer may delay a node, neither strand it nor make it spin.
        """
        if asked_s is not None:
            self._put_off += 1
            refusals = self.failures + self._put_off
            least_s = self._policy.initial_s * 2.0 ** min(0, refusals - _REFUSALS_TO_INITIAL)
            bounded_s = min(max(asked_s, least_s), self._policy.maximum_s * 10)
            return bounded_s * random.uniform(1.0, 1.1)
        self.failures += 1
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = self.failures
        return self._wait(state)

    def ended(self, lived_s: float) -> None:
        """A stream ended after `lived_s` seconds; a stable one starts both counts again."""
        if lived_s >= self._policy.stable_s:
            self.failures = self._put_off = 0


def full_jitter_s(delay_s: float, window_s: float) -> float:
    """Seconds to wait for a slot that begins after `delay_s` and is `window_s` wide."""
    return delay_s + random.uniform(0, max(0.0, window_s))
