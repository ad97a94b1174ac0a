"""What is decided for a route: the way that it takes from now on, and why. Pure.

The face of this room's rules: what others need of them is named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Choice:
    relay_id: str
    rule: DecisionRule


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
    ways = way_rules.weigh(route, known, relays, now_ms, policy)
    choice = _choose(route, ways, relays, now_ms, policy) if route.enabled else _disabled(route)
    switched = choice.relay_id != route.relay_id or choice.rule is DecisionRule.FIRST
    candidates = (
        candidate_rules.choose(route, choice.relay_id, ways, known, relays, now_ms, policy) if route.enabled else ()
    )
    left = known.get(route.relay_id)
    charged = (
        (damping_rules.charge(left, policy.slower_charge, now_ms, policy),)
        if choice.rule is DecisionRule.FASTER and left
        else ()
    )
    return Decision(
        relay_id=choice.relay_id,
        switched=switched,
        rule=choice.rule,
        reasons=reason_rules.explain(route, choice.relay_id, choice.rule, ways, policy),
        scores=_listed(ways.values(), choice.relay_id),
        candidates=candidates,
        waiting_rendezvous=_waits_for_rendezvous(route, ways[DIRECT]),
        charged=charged,
    )


def _disabled(route: Route) -> _Choice:
    return _Choice(route.relay_id, DecisionRule.ROUTE_DISABLED)


def _choose(route: Route, ways: Mapping[str, Way], relays: Sequence[Relay], now_ms: int, policy: Policy) -> _Choice:
    cause = _cause_to_leave(route, ways[route.relay_id], now_ms)
    if cause is None:
        return _compare(ways[route.relay_id], ways, policy)
    if best := _best(way for way in ways.values() if way.is_open):
        return _Choice(best.relay_id, cause)
    # The last that works is taken however much it flaps.
    flapping = [way for way in ways.values() if way.works]
    if flapping:
        calmest = min(flapping, key=lambda way: (way.scored.penalty, way.relay_id != route.relay_id, way.relay_id))
        same = calmest.relay_id == route.relay_id
        return _Choice(calmest.relay_id, cause if same or cause is DecisionRule.FIRST else DecisionRule.LAST_USABLE)
    if cause is DecisionRule.FIRST:
        return _Choice(DIRECT, cause)
    if cause is DecisionRule.RELAY_GONE:
        return _Choice(_untried(route, ways, relays, policy), cause)
    seen_bad = any(way.state in BAD for way in ways.values())
    return _Choice(route.relay_id, DecisionRule.NO_USABLE_PATH if seen_bad else DecisionRule.UNOBSERVED)


def _cause_to_leave(route: Route, current: Way, now_ms: int) -> DecisionRule | None:
    """Why the path that a route has does not count as one that works; None when it does."""
    if not route.generation:
        return DecisionRule.FIRST
    if current.obstacle:
        return DecisionRule.RELAY_GONE
    if lease_rules.has_ended(route.lease, route.relay_id, now_ms):
        return DecisionRule.LEASE_ENDED
    if current.state in BAD:
        return DecisionRule.UNHEALTHY
    return None if current.state in GOOD else DecisionRule.STALE


def _compare(current: Way, ways: Mapping[str, Way], policy: Policy) -> _Choice:
    """The switch rule, for a path that works."""
    old_us = current.scored.score_us or 0
    rivals = [way for way in ways.values() if way.works and way.relay_id != current.relay_id]
    better = [way for way in rivals if way.scored.score_us is not None and way.scored.score_us < old_us]
    worth_it = [
        way
        for way in better
        if way.samples >= policy.min_samples and scoring_rules.gains_enough(way.scored.score_us or 0, old_us, policy)
    ]
    if best := _best(way for way in worth_it if not way.suppressed):
        return _Choice(best.relay_id, DecisionRule.FASTER)
    if worth_it:
        return _Choice(current.relay_id, DecisionRule.SUPPRESSED_KEPT)
    return _Choice(current.relay_id, DecisionRule.NOT_ENOUGH_GAIN if better else DecisionRule.KEPT)


def _best(ways: Iterable[Way]) -> Way | None:
    return min(ways, key=lambda way: scoring_rules.order(way.relay_id, way.scored.score_us or 0), default=None)


def _untried(route: Route, ways: Mapping[str, Way], relays: Sequence[Relay], policy: Policy) -> str:
    """Where to go when the relay is gone and nothing is known to work: the direct path unless it is known to be broken,
    else a relay of which nothing bad is known, else the direct path, which points at nobody who is gone."""
    if ways[DIRECT].state not in BAD:
        return DIRECT
    hopes = [
        relay
        for relay in relays
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
    unscored = 2**62
    return tuple(
        sorted(
            (way.scored for way in ways),
            key=lambda scored: (
                scored.relay_id != relay_id,
                bool(scored.held_out),
                unscored if scored.score_us is None else scored.score_us,
                scored.relay_id,
            ),
        )
    )
