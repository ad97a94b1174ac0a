"""Which other ways the source of a route walks, so that they are known before they are needed. Pure.

A choice stands until there is a cause to change it: each change is a new snapshot for several nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

from fleet_server.routes import scoring_rules, way_rules
from fleet_server.routes.model import BAD, DIRECT, Candidate, Policy, Relay, Route
from fleet_server.routes.way_rules import Way


def choose(
    route: Route,
    relay_id: str,
    ways: Mapping[str, Way],
    known: Mapping[str, Candidate],
    pool: Mapping[str, Relay],
    now_ms: int,
    policy: Policy,
) -> tuple[str, ...]:
    """Candidates beside a path that was just decided: the direct one always, the path that was left, then relays.

    One that has not worked for long, or is full, makes room for one that did not fail lately; at once when nothing
    works at all, and what failed is tried again after as long as it had been broken by then. Best first when the path
    changes; otherwise each keeps its place.

    Args:
        relay_id: the path that was decided.
        ways: as `way_rules.weigh` has them.
        pool: every relay, by node id.
    """
    switched = relay_id != route.relay_id
    places = policy.max_candidates - (relay_id != DIRECT)
    before = dict.fromkeys((route.relay_id, *route.candidates) if switched else route.candidates)
    chosen = [
        way for way in before if way in pool and way != relay_id and not way_rules.unfitness(way, pool[way], route)
    ]
    nothing_works = not any(way.works for way in ways.values()) and any(way.state in BAD for way in ways.values())
    patience_ms = 0 if nothing_works else policy.rotate_after_ms(route)
    replaceable = [
        way for way in chosen if not _has_room(pool[way], route) or _broken_for_ms(ways.get(way), now_ms) >= patience_ms
    ]
    if len(chosen) < places or replaceable:
        least_ms, most_ms = policy.stale_after_ms(route, route.relay_id), policy.retry_after_ms(route)
        newcomers = [
            relay
            for node_id, relay in pool.items()
            if node_id not in before
            and node_id != relay_id
            and not way_rules.obstacle(node_id, relay, route)
            and not _failed_lately(known.get(node_id), now_ms, least_ms if nothing_works else most_ms, most_ms)
        ]
        # Whom the source walked longest ago is asked first, and nobody gives way to one that was walked after it: two
        # that failed would take each other's place with every decision.
        for relay in sorted(
            newcomers, key=lambda each: (_seen_ms(known, each.node_id), *scoring_rules.prior(each, route, policy))
        ):
            if len(chosen) < places:
                chosen.append(relay.node_id)
                continue
            seat = max(replaceable, key=lambda way: _gives_way_ms(way, pool[way], known, route), default=None)
            if seat is None or _gives_way_ms(seat, pool[seat], known, route) <= _seen_ms(known, relay.node_id):
                break
            replaceable.remove(seat)
            chosen[chosen.index(seat)] = relay.node_id
    if switched:
        # Whoever would make room anyway is what there is no room for now.
        chosen.sort(key=lambda way: (way in replaceable, *_best_first(ways.get(way))))
    return (DIRECT, *chosen[:places]) if relay_id != DIRECT else tuple(chosen[:places])


def _seen_ms(known: Mapping[str, Candidate], way: str) -> int:
    row = known.get(way)
    return row.observed_at_ms if row is not None else 0


def _gives_way_ms(way: str, relay: Relay, known: Mapping[str, Candidate], route: Route) -> int:
    """A replaceable candidate gives way to whoever was walked before this; a full one to everybody."""
    return _seen_ms(known, way) if _has_room(relay, route) else 2**62


def _has_room(relay: Relay, route: Route) -> bool:
    """Whether it could take the route over, once that is not among those that it carries."""
    return relay.load - (relay.node_id == route.relay_id) < relay.capacity


def _broken_for_ms(way: Way | None, now_ms: int) -> int:
    """How long it has not worked; below 0 when it does, or nobody knows."""
    return now_ms - way.scored.stale_since_ms if way is not None and way.state in BAD else -1


def _failed_lately(row: Candidate | None, now_ms: int, least_ms: int, most_ms: int) -> bool:
    """Whether it is too early to try what failed: after as long as it had been broken by then. So in a short outage the
    whole pool is gone through again and again, and a long one costs few snapshots."""
    if row is None or row.state not in BAD:
        return False
    broken_ms = row.observed_at_ms - row.stale_since_ms
    return now_ms - row.observed_at_ms < max(least_ms, min(broken_ms, most_ms))


def _best_first(way: Way | None) -> tuple[int, int]:
    """What works by its score, then what nobody knows, then what does not work."""
    if way is not None and way.scored.score_us is not None:
        return 0, way.scored.score_us
    return (2, 0) if way is not None and way.state in BAD else (1, 0)
