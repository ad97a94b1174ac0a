"""Policies to compare the rules with. They get the same findings, candidates, relays and leases; only the choice is
theirs, and none of them damps anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fleet_server.routes.rules import (
    DIRECT,
    GOOD,
    Candidate,
    Decision,
    DecisionRule,
    Policy,
    Relay,
    Route,
    decide,
    state_now,
)
from tests.simulation.server import Decide

GAIN_US = 10_000
Choose = Callable[[dict[str, float], str], str]


def best_latency(rtts_us: dict[str, float], current: str) -> str:
    """Whatever is fastest now."""
    return min(rtts_us, key=lambda way: (rtts_us[way], way != current, way))


def better_by_a_third(rtts_us: dict[str, float], current: str) -> str:
    """Whatever is fastest, if what there is does not work, or is slower by 10 ms and by half: the switch rule alone."""
    best = best_latency(rtts_us, current)
    now_us = rtts_us.get(current)
    if now_us is None or (now_us - rtts_us[best] >= GAIN_US and rtts_us[best] <= now_us * 2 / 3):
        return best
    return current


def by(choose: Choose) -> Decide:
    """A policy that looks at round trips alone. What the candidates are is decided by the rules, for everybody."""

    def decider(
        route: Route, known: dict[str, Candidate], relays: Sequence[Relay], now_ms: int, policy: Policy
    ) -> Decision:
        usable = {DIRECT} | {relay.node_id for relay in relays if relay.usable}
        ends = {route.source_id, route.destination_id}
        rtts_us = {
            way: row.rtt_us
            for way, row in known.items()
            if way in usable - ends and state_now(row, route, now_ms, policy) in GOOD
        }
        way = choose(rtts_us, route.relay_id) if rtts_us else route.relay_id
        if way not in usable:
            way = DIRECT
        switched = way != route.relay_id or not route.generation
        # As if that way had been decided already: the rules keep it in the list of what is walked.
        then = replace(route, relay_id=way, generation=max(1, route.generation), candidates=_others(route, way))
        judged = decide(then, known, relays, now_ms, policy)
        rule = DecisionRule.FASTER if switched else DecisionRule.KEPT
        kept = tuple(each for each in _others(then, way) if each in (DIRECT, *judged.candidates, judged.relay_id))
        fresh = tuple(each for each in judged.candidates if each not in kept and each != way)
        candidates = (*kept, *fresh)[: policy.max_candidates]
        return replace(judged, relay_id=way, switched=switched, rule=rule, candidates=candidates, charged=())

    return decider


def _others(route: Route, way: str) -> tuple[str, ...]:
    return tuple(each for each in dict.fromkeys((DIRECT, route.relay_id, *route.candidates)) if each != way)


POLICIES: dict[str, Decide] = {
    "rules": decide,
    "fastest": by(best_latency),
    "10 ms and 2/3": by(better_by_a_third),
}
