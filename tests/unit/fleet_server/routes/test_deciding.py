"""What is decided for a route: the rule in each situation, and which way it takes."""

from dataclasses import replace

import pytest

from fleet_server.routes.rules import (
    DIRECT,
    Candidate,
    DecisionRule,
    HeldLease,
    PathState,
    Policy,
    Relay,
    Route,
    decide,
)

POLICY = Policy()
NOW_MS = 1_800_000_000_000
ROUTE = Route("r-1", "n-s", "", "n-d", "", probe_interval_ms=10_000, generation=1, candidates=("n-a", "n-b"))
OVER_A = replace(
    ROUTE, relay_id="n-a", candidates=(DIRECT, "n-b"), lease=HeldLease("n-a", 1, expires_at_ms=NOW_MS + 60_000)
)
RELAYS = tuple(Relay(name, "", capacity=10, weight=100, load=0, usable=True) for name in ("n-a", "n-b"))


def good(relay_id: str, rtt_ms: float, **changes: float) -> Candidate:
    """A way that works and was walked a second ago."""
    row = Candidate(relay_id, PathState.HEALTHY, rtt_ms * 1000, samples=5, observed_at_ms=NOW_MS - 1000)
    return replace(row, **changes)


def bad(relay_id: str, state: PathState = PathState.UNREACHABLE) -> Candidate:
    """A way that was found broken a second ago."""
    return Candidate(relay_id, state, 20_000, samples=5, observed_at_ms=NOW_MS - 1000, stale_since_ms=NOW_MS - 1000)


def rows(*known: Candidate) -> dict[str, Candidate]:
    return {row.relay_id: row for row in known}


HELD_OUT = {"penalty": 2500.0, "penalty_at_ms": NOW_MS - 1000, "suppressed_since_ms": NOW_MS - 1000}


@pytest.mark.parametrize(
    ("route", "known", "rule", "relay_id"),
    [
        pytest.param(replace(ROUTE, generation=0), rows(), DecisionRule.FIRST, DIRECT, id="nothing-is-known-yet"),
        pytest.param(ROUTE, rows(good(DIRECT, 5), good("n-a", 9)), DecisionRule.KEPT, DIRECT, id="it-is-the-best"),
        pytest.param(ROUTE, rows(bad(DIRECT), good("n-a", 9)), DecisionRule.UNHEALTHY, "n-a", id="cut"),
        pytest.param(
            ROUTE, rows(bad(DIRECT, PathState.DRIFT), good("n-b", 9)), DecisionRule.UNHEALTHY, "n-b", id="drift"
        ),
        pytest.param(OVER_A, rows(bad("n-a"), bad(DIRECT)), DecisionRule.NO_USABLE_PATH, "n-a", id="nothing-works"),
        pytest.param(OVER_A, rows(), DecisionRule.UNOBSERVED, "n-a", id="a-silent-source"),
        pytest.param(
            OVER_A, rows(good("n-a", 40), good(DIRECT, 5)), DecisionRule.FASTER, DIRECT, id="the-direct-path-is-back"
        ),
        pytest.param(
            OVER_A,
            rows(good("n-a", 40), good(DIRECT, 5, **HELD_OUT)),
            DecisionRule.SUPPRESSED_KEPT,
            "n-a",
            id="it-is-back-and-flaps",
        ),
        pytest.param(
            OVER_A,
            rows(bad("n-a"), bad("n-b"), good(DIRECT, 5, **HELD_OUT)),
            DecisionRule.LAST_USABLE,
            DIRECT,
            id="only-what-flaps-works",
        ),
        pytest.param(
            replace(OVER_A, lease=None),
            rows(good("n-a", 5), good("n-b", 30)),
            DecisionRule.LEASE_ENDED,
            "n-a",
            id="another-lease-for-the-same-relay",
        ),
    ],
)
def test_the_rule_of_each_situation(
    route: Route, known: dict[str, Candidate], rule: DecisionRule, relay_id: str
) -> None:
    decision = decide(route, known, RELAYS, NOW_MS, POLICY)
    assert (decision.rule, decision.relay_id) == (rule, relay_id)
    assert decision.switched == (relay_id != route.relay_id or rule is DecisionRule.FIRST)
