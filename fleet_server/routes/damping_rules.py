"""Flap damping after RFC 2439: each change from good to bad adds to a penalty that decays; what has too much of it is
held out until it has little again. Pure.
"""

from __future__ import annotations

import math

from fleet_server.routes.model import Candidate, Policy


def ceiling(policy: Policy) -> float:
    """Largest penalty: what decays to reuse in the longest time that a way may be held out (RFC 2439 section 4.2)."""
    return policy.reuse_below * float(2.0 ** (policy.max_suppress_ms / policy.half_life_ms))


def penalty_now(known: Candidate, now_ms: int, policy: Policy) -> float:
    """What is left of its penalty; a clock that went back does not make it grow."""
    age_ms = max(0, now_ms - known.penalty_at_ms)
    return _bounded(known.penalty, policy) * float(0.5 ** (age_ms / policy.half_life_ms))


def is_suppressed(known: Candidate, now_ms: int, policy: Policy) -> bool:
    """Whether it is held out: from `suppress_at` on, until it has come below `reuse_below`."""
    return known.suppressed_since_ms > 0 and penalty_now(known, now_ms, policy) >= policy.reuse_below


def suppressed_until_ms(known: Candidate, now_ms: int, policy: Policy) -> int:
    """When it is let in again if nothing more happens; 0 when it is not held out."""
    if not is_suppressed(known, now_ms, policy):
        return 0
    halvings = math.log2(_bounded(known.penalty, policy) / policy.reuse_below)
    return known.penalty_at_ms + math.floor(halvings * policy.half_life_ms) + 1


def charge(known: Candidate, amount: float, now_ms: int, policy: Policy) -> Candidate:
    """The same way with so much more penalty, and held out if that is too much."""
    penalty = min(penalty_now(known, now_ms, policy) + amount, ceiling(policy))
    since_ms = known.suppressed_since_ms if is_suppressed(known, now_ms, policy) else 0
    if not since_ms and penalty >= policy.suppress_at:
        since_ms = now_ms
    # A time that went back would have it decay twice.
    at_ms = max(now_ms, known.penalty_at_ms)
    return known._replace(penalty=penalty, penalty_at_ms=at_ms, suppressed_since_ms=since_ms)


def _bounded(penalty: float, policy: Policy) -> float:
    """A penalty as this module writes them: rows of what was found carry no MAC, and may hold anything."""
    return min(penalty, ceiling(policy)) if penalty > 0 else 0.0
