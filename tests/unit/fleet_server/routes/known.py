"""A route, its relays and what is known of its ways, as tests of the rules like them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fleet_server.routes.model import DIRECT, Candidate, HeldLease, PathState, Policy, Relay, Route

POLICY = Policy()
NOW_MS = 1_800_000_000_000
SEEN_MS = NOW_MS - 1000
ROUTE = Route("r-1", "n-s", "", "n-d", "", probe_interval_ms=10_000, generation=1, candidates=("n-a", "n-b"))
OVER_A = replace(
    ROUTE, relay_id="n-a", candidates=(DIRECT, "n-b"), lease=HeldLease("n-a", 1, expires_at_ms=NOW_MS + 60_000)
)
HELD_OUT = {"penalty": 2500.0, "penalty_at_ms": SEEN_MS, "suppressed_since_ms": SEEN_MS}
"""Changes of a way that flaps."""


def relay(node_id: str, **changes: Any) -> Relay:
    """One that is empty and may be used."""
    return replace(Relay(node_id, "", capacity=10, weight=100, load=0, usable=True), **changes)


RELAYS = (relay("n-a"), relay("n-b"))


def good(relay_id: str, rtt_ms: float, **changes: Any) -> Candidate:
    """A way that works and was walked a second ago."""
    row = Candidate(relay_id, PathState.HEALTHY, rtt_ms * 1000, samples=5, observed_at_ms=SEEN_MS)
    return row._replace(**changes)


def bad(relay_id: str, state: PathState = PathState.UNREACHABLE, **changes: Any) -> Candidate:
    """A way that was found broken a second ago."""
    row = Candidate(relay_id, state, 20_000, samples=5, observed_at_ms=SEEN_MS, stale_since_ms=SEEN_MS)
    return row._replace(**changes)


def rows(*known: Candidate) -> dict[str, Candidate]:
    """By relay id."""
    return {row.relay_id: row for row in known}
