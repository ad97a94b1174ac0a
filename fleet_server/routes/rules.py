"""What is decided for a route: the way that it takes from now on, and why. Pure.

The face of this room's rules: what others need of them is named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fleet_server.routes import candidate_rules, damping_rules, lease_rules, reason_rules, scoring_rules, way_rules
from fleet_server.routes.finding_rules import fold, observe, state_now
from fleet_server.routes.model import (
    BAD,
    DIRECT,
    GOOD,
    Candidate,
    Decision,
    DecisionRule,
    Finding,
    HeldLease,
    PathState,
    Policy,
    Reason,
    Relay,
    Route,
    Scored,
)
from fleet_server.routes.reason_rules import Choice
from fleet_server.routes.way_rules import Way

__all__ = [
    "BAD",
    "DIRECT",
    "GOOD",
    "Candidate",
    "Decision",
    "DecisionRule",
    "Finding",
    "HeldLease",
    "PathState",
    "Policy",
    "Reason",
    "Relay",
    "Route",
    "Scored",
    "decide",
    "fold",
    "observe",
    "state_now",
]
_UNSCORED_US = 2**62


def decide(
    route: Route, known: Mapping[str, Candidate], relays: Sequence[Relay], now_ms: int, policy: Policy
) -> Decision:
    """The way that a route takes from now on.

    The same for the same arguments, in whatever order they come, at whichever replica and whenever it is replayed.

    Args:
        known: what `fold` remembers, by relay id.
        relays: the pool.
        now_ms: server time.
    """
    pool = {relay.node_id: relay for relay in relays}
    ways = way_rules.weigh(route, known, pool, now_ms, policy)
    choice = _choose(route, ways, pool, now_ms, policy)
    candidates = (
        candidate_rules.choose(route, choice.relay_id, ways, known, pool, now_ms, policy) if route.enabled else ()
    )
    return Decision(
        relay_id=choice.relay_id,
        switched=choice.relay_id != route.relay_id or choice.rule is DecisionRule.FIRST,
        rule=choice.rule,
        reasons=reason_rules.explain(route, choice, candidates, ways, pool, now_ms, policy),
        scores=_listed(ways.values(), choice.relay_id),
        candidates=candidates,
        waiting_rendezvous=_waits_for_rendezvous(route, ways[DIRECT]),
        charged=_charged(known.get(route.relay_id), choice, now_ms, policy),
    )


def _choose(route: Route, ways: Mapping[str, Way], pool: Mapping[str, Relay], now_ms: int, policy: Policy) -> Choice:
    if not route.enabled:
        return Choice(route.relay_id, DecisionRule.ROUTE_DISABLED)
    cause = _cause_to_leave(route, ways, now_ms, policy)
    if cause is None:
        return _compare(route, ways, policy)
    if cause is DecisionRule.UNOBSERVED:
        return Choice(route.relay_id, cause)
    if cause is DecisionRule.LEASE_ENDED and ways[route.relay_id].is_open:
        # That it ran out is the server's doing: the relay is there, so a route does not leave it for a trifle.
        compared = _compare(route, ways, policy)
        return compared if compared.rule is DecisionRule.FASTER else Choice(route.relay_id, cause)
    if best := _best_now([way for way in ways.values() if way.is_open], route, now_ms, policy):
        return Choice(best.relay_id, cause)
    if flapping := [way for way in ways.values() if way.works]:
        calmest = min(flapping, key=lambda way: (way.scored.penalty, way.relay_id != route.relay_id, way.relay_id))
        same = calmest.relay_id == route.relay_id
        return Choice(calmest.relay_id, cause if same or cause is DecisionRule.FIRST else DecisionRule.LAST_USABLE)
    if cause is DecisionRule.FIRST:
        return Choice(DIRECT, cause)
    if cause is DecisionRule.RELAY_GONE:
        return Choice(_untried(route, ways, pool, policy), cause)
    unknown = ways[route.relay_id].state is PathState.UNKNOWN
    return Choice(route.relay_id, DecisionRule.UNOBSERVED if unknown else DecisionRule.NO_USABLE_PATH)


def _cause_to_leave(route: Route, ways: Mapping[str, Way], now_ms: int, policy: Policy) -> DecisionRule | None:
    """Why the path that a route has does not count as one that works; None when it does."""
    current = ways[route.relay_id]
    if not route.generation:
        return DecisionRule.FIRST
    if current.obstacle:
        return DecisionRule.RELAY_GONE
    if lease_rules.has_ended(route.lease, route.relay_id, now_ms):
        return DecisionRule.LEASE_ENDED
    if current.state in BAD:
        return DecisionRule.UNHEALTHY
    if current.state in GOOD:
        return None
    return DecisionRule.UNOBSERVED if _is_silent(route, ways, now_ms, policy) else DecisionRule.STALE


def _is_silent(route: Route, ways: Mapping[str, Way], now_ms: int, policy: Policy) -> bool:
    """Whether the source has told of no way lately. What it told of candidates counts for longer than what it told of
    the effective path, and must not draw a route away from a path of which nobody can say that it broke."""
    newest_ms = max(way.scored.observed_at_ms for way in ways.values())
    return now_ms - max(newest_ms, route.decided_at_ms) > policy.stale_after_ms(route, route.relay_id)


def _compare(route: Route, ways: Mapping[str, Way], policy: Policy) -> Choice:
    """The switch rule, for a path that works. What was known when it was chosen was weighed then: only who was walked
    since may take the route from it."""
    current = ways[route.relay_id]
    old_us = _score_us(current)
    better = [way for way in ways.values() if way.works and _score_us(way) < old_us]
    worth_it = [
        way
        for way in better
        if way.samples >= policy.min_samples
        and way.scored.observed_at_ms > route.decided_at_ms
        and scoring_rules.gains_enough(_score_us(way), old_us, policy)
    ]
    if best := _best(way for way in worth_it if not way.suppressed):
        return Choice(best.relay_id, DecisionRule.FASTER, current.relay_id)
    if best := _best(worth_it):
        return Choice(current.relay_id, DecisionRule.SUPPRESSED_KEPT, best.relay_id)
    if best := _best(better):
        return Choice(current.relay_id, DecisionRule.NOT_ENOUGH_GAIN, best.relay_id)
    return Choice(current.relay_id, DecisionRule.KEPT)


def _charged(left: Candidate | None, choice: Choice, now_ms: int, policy: Policy) -> tuple[Candidate, ...]:
    """What becomes of the row of a path that is left for what it is, not for what it was found to be."""
    if left is None:
        return ()
    if choice.rule is DecisionRule.FASTER:
        return (damping_rules.charge(left, policy.slower_charge, now_ms, policy),)
    if choice.rule is DecisionRule.STALE:
        # As a candidate it would be missed later only, and count for what it was when it was last seen.
        return (left._replace(state=PathState.UNKNOWN),)
    return ()


def _best(ways: Iterable[Way]) -> Way | None:
    return min(ways, key=lambda way: scoring_rules.order(way.relay_id, _score_us(way)), default=None)


def _best_now(ways: Sequence[Way], route: Route, now_ms: int, policy: Policy) -> Way | None:
    """The best of those that were walked as lately as the path is, else of all: what broke the path may have broken
    what was last seen before."""
    since_ms = now_ms - policy.stale_after_ms(route, route.relay_id)
    return _best([way for way in ways if way.scored.observed_at_ms >= since_ms] or ways)


def _score_us(way: Way) -> int:
    """Of a way that works, which always has one."""
    return _UNSCORED_US if way.scored.score_us is None else way.scored.score_us


def _untried(route: Route, ways: Mapping[str, Way], pool: Mapping[str, Relay], policy: Policy) -> str:
    """Where to go when the relay is gone and nothing is known to work: the direct path unless it is known to be broken,
    else a relay of which nothing bad is known, else the direct path, which points at nobody who is gone."""
    if ways[DIRECT].state not in BAD:
        return DIRECT
    hopes = [
        relay
        for relay in pool.values()
        if not way_rules.obstacle(relay.node_id, relay, route)
        and (relay.node_id not in ways or ways[relay.node_id].state not in BAD)
    ]
    return min(hopes, key=lambda relay: scoring_rules.prior(relay, route, policy)).node_id if hopes else DIRECT


def _waits_for_rendezvous(route: Route, direct: Way) -> bool:
    """Whether the ends cannot reach each other; while nobody looks, what was last known stands."""
    if direct.state is PathState.UNKNOWN:
        return route.waiting_rendezvous
    return direct.state in BAD


def _listed(ways: Iterable[Way], relay_id: str) -> tuple[Scored, ...]:
    return tuple(
        sorted(
            (way.scored for way in ways),
            key=lambda scored: (
                scored.relay_id != relay_id,
                bool(scored.held_out),
                _UNSCORED_US if scored.score_us is None else scored.score_us,
                scored.relay_id,
            ),
        )
    )
