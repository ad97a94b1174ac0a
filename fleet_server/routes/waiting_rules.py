"""Which routes need no decision yet, though something was told of them. docs/adr/0036. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fleet_server.routes import scoring_rules
from fleet_server.routes.lease_rules import has_ended
from fleet_server.routes.model import GOOD, Candidate, Policy, Route

LOOK_EVERY = 6
"""Intervals of a route within which one whose ways are as they were is decided about once: so often each of its other
ways is walked."""


class Looked(NamedTuple):
    """What a route was decided about by last: when, and what each of its ways cost."""

    at_ms: int
    walked_us: Mapping[str, float]


def looked(known: Mapping[str, Candidate], now_ms: int, policy: Policy) -> Looked:
    """What a decision made at this moment is made by."""
    return Looked(now_ms, {way: scoring_rules.walked_us(row, policy) for way, row in known.items()})


def may_wait(
    route: Route,
    before: Mapping[str, Candidate],
    known: Mapping[str, Candidate],
    last: Looked | None,
    now_ms: int,
    policy: Policy,
    *,
    relay_usable: bool,
) -> bool:
    """Whether a route can go without a decision: most reports say that a path works, as it did, and as fast.

    Args:
        before: what was known of its ways, by relay.
        known: the same after what was told; rows that nothing was told of are the same objects.
        last: None when this process never decided about it.
        relay_usable: whether the relay of its path may carry routes; of no matter for a direct one.
    """
    if last is None or not 0 <= now_ms - last.at_ms < LOOK_EVERY * route.probe_interval_ms:
        return False
    row = known.get(route.relay_id)
    if row is None or row.state not in GOOD or not (route.enabled and route.generation):
        return False
    if route.relay_id and not (relay_usable and not has_ended(route.lease, route.relay_id, now_ms)):
        return False
    return all(
        way in before
        and before[way].state is each.state
        and not before[way].samples < policy.min_samples <= each.samples  # from now on it may take the route
        and not scoring_rules.moved(last.walked_us.get(way, 0.0), scoring_rules.walked_us(each, policy), policy)
        for way, each in known.items()
        if each is not before.get(way)
    )
