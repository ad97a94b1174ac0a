"""Which other ways the source of a route walks, so that they are known before they are needed. Pure.

A choice stands until there is a cause to change it: each change is a new snapshot for several nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fleet_server.routes import scoring_rules, way_rules
from fleet_server.routes.model import BAD, DIRECT, Candidate, Policy, Relay, Route
from fleet_server.routes.way_rules import Way


def choose(
    route: Route,
    relay_id: str,
    ways: Mapping[str, Way],
    known: Mapping[str, Candidate],
    relays: Sequence[Relay],
    now_ms: int,
    policy: Policy,
) -> tuple[str, ...]:
    """Candidates beside a path that was just decided: the direct one always, the path that was left, then relays.

    What has not worked for long makes room for what was not tried lately; at once when nothing works at all.

    Args:
        relay_id: the path that was decided.
        ways: as `way_rules.weigh` has them.
    """
    fit = {relay.node_id for relay in relays if not way_rules.obstacle(relay.node_id, relay, route)} - {relay_id}
    places = policy.max_candidates - (relay_id != DIRECT)
    before = (route.relay_id, *route.candidates) if relay_id != route.relay_id else route.candidates
    chosen = [way for way in dict.fromkeys(before) if way in fit]
    desperate = any(way.state in BAD for way in ways.values()) and not any(way.works for way in ways.values())
    interval_ms = policy.candidate_interval_ms(route)
    patience_ms = 0 if desperate else interval_ms * policy.rotate_after_intervals
    tired = [
        way
        for way in chosen
        if way in ways and ways[way].state in BAD and now_ms - known[way].stale_since_ms >= patience_ms
    ]
    retry_ms = interval_ms * policy.retry_after_intervals
    fresh = [
        relay.node_id
        for relay in sorted(relays, key=lambda each: scoring_rules.prior(each, route, policy))
        if relay.node_id in fit.difference(chosen) and not _failed_lately(known.get(relay.node_id), now_ms, retry_ms)
    ]
    for newcomer in fresh:
        if len(chosen) < places:
            chosen.append(newcomer)
        elif tired:
            chosen[chosen.index(tired.pop())] = newcomer
    if relay_id != route.relay_id:
        chosen.sort(key=lambda way: _best_first(way, ways))
    return (DIRECT, *chosen[:places]) if relay_id != DIRECT else tuple(chosen[:places])


def _failed_lately(row: Candidate | None, now_ms: int, retry_ms: int) -> bool:
    return row is not None and row.state in BAD and now_ms - row.observed_at_ms < retry_ms


def _best_first(way: str, ways: Mapping[str, Way]) -> tuple[int, int]:
    """What works by its score, then what nobody knows, then what does not work."""
    found = ways.get(way)
    if found is not None and found.scored.score_us is not None:
        return 0, found.scored.score_us
    return (2, 0) if found is not None and found.state in BAD else (1, 0)
