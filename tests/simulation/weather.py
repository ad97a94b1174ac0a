"""Draws a mesh and what happens to it: link failures, flaps, node failures, partitions, slow and lossy links."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.trace import Event, NodeAt, Plan, RelayAt, RouteFrom, SiteAt, Trace

MINUTE_MS = 60_000
CALM_MS = 2 * MINUTE_MS
"""Nothing happens before, so that every way has been seen once."""


@dataclass(frozen=True, slots=True)
class Climate:
    """How much happens: events per hour over the whole mesh.

    Args:
        blocked: share of pairs of a route that never reach each other directly.
    """

    link_failures: int = 240
    flapping_links: int = 25
    relay_failures: int = 5
    node_failures: int = 20
    partitions: int = 2
    slow_links: int = 120
    lossy_links: int = 60
    blocked: float = 0.25


def draw(
    seed: int,
    *,
    nodes: int = 200,
    sites: int = 8,
    relays: int = 12,
    routes: int = 150,
    minutes: int = 60,
    interval_ms: int = 10_000,
    climate: Climate | None = None,
) -> Trace:
    """The same for the same arguments."""
    draws = random.Random(seed)
    plan = _plan(draws, seed, nodes, sites, relays, routes, minutes, interval_ms, climate or Climate())
    events = _events(draws, plan, climate or Climate())
    return Trace(plan, tuple(sorted(events, key=lambda event: event.at_ms)))


def _plan(
    draws: random.Random,
    seed: int,
    nodes: int,
    sites: int,
    relays: int,
    routes: int,
    minutes: int,
    interval_ms: int,
    climate: Climate,
) -> Plan:
    places = tuple(
        SiteAt(f"site-{n}", round(draws.uniform(0, 60), 1), round(draws.uniform(0, 40), 1)) for n in range(sites)
    )
    everybody = tuple(NodeAt(f"n{n:03}", places[n % sites].name) for n in range(nodes))
    # Relays stand where sites come first, so that each site has about as many.
    pool = tuple(RelayAt(node.node_id, max(8, 3 * routes // relays)) for node in everybody[:relays])
    ends = [node.node_id for node in everybody[relays:]]
    paths = []
    while len(paths) < routes:
        source, destination = draws.sample(ends, 2)
        if (source, destination) not in paths:
            paths.append((source, destination))
    wanted = tuple(RouteFrom(f"route-{n:03}", *path) for n, path in enumerate(paths))
    blocked = tuple(path for path in paths if draws.random() < climate.blocked)
    return Plan(seed, minutes * MINUTE_MS, interval_ms, places, everybody, pool, wanted, blocked)


def _events(draws: random.Random, plan: Plan, climate: Climate) -> list[Event]:
    hours = plan.duration_ms / (60 * MINUTE_MS)
    pairs = [pair for route in plan.routes for pair in _pairs(plan, route)]
    pool = [relay.node_id for relay in plan.relays]
    ends = sorted({end for route in plan.routes for end in (route.source, route.destination)})
    events: list[Event] = []

    def when() -> int:
        return draws.randrange(CALM_MS, max(CALM_MS + 1, plan.duration_ms - MINUTE_MS))

    def span(what: str, end: str, who: tuple[str, ...], at_ms: int, low_s: int, high_s: int) -> int:
        until_ms = at_ms + draws.randrange(low_s * 1000, high_s * 1000)
        events.extend([Event(at_ms, what, who), Event(until_ms, end, who)])
        return until_ms

    for _ in range(round(climate.link_failures * hours)):
        span("link_down", "link_up", draws.choice(pairs), when(), 20, 400)
    for _ in range(round(climate.flapping_links * hours)):
        pair, at_ms = draws.choice(pairs), when()
        for _ in range(draws.randrange(4, 30)):
            at_ms = span("link_down", "link_up", pair, at_ms, 15, 60) + draws.randrange(15_000, 90_000)
    for _ in range(round(climate.relay_failures * hours)):
        span("node_down", "node_up", (draws.choice(pool),), when(), 40, 600)
    for _ in range(round(climate.node_failures * hours)):
        span("node_down", "node_up", (draws.choice(ends),), when(), 40, 600)
    for _ in range(round(climate.partitions * hours)):
        names = [site.name for site in plan.sites]
        cut = tuple(sorted(draws.sample(names, draws.randrange(1, len(names) // 2 + 1))))
        span("split", "join", cut, when(), 60, 240)
    for _ in range(round(climate.slow_links * hours)):
        pair, at_ms = draws.choice(pairs), when()
        events.append(Event(at_ms, "slow", pair, round(draws.uniform(1.5, 6), 2)))
        events.append(Event(at_ms + draws.randrange(30_000, 600_000), "slow", pair, 1.0))
    for _ in range(round(climate.lossy_links * hours)):
        pair, at_ms = draws.choice(pairs), when()
        events.append(Event(at_ms, "lossy", pair, round(draws.uniform(0.05, 0.4), 2)))
        events.append(Event(at_ms + draws.randrange(60_000, 600_000), "lossy", pair, 0.0))
    return [event for event in events if event.at_ms < plan.duration_ms]


def _pairs(plan: Plan, route: RouteFrom) -> list[tuple[str, str]]:
    """Links of a route's ways. The direct one as often as all others, for that is where routes begin."""
    over = [
        pair for relay in plan.relays for pair in ((route.source, relay.node_id), (relay.node_id, route.destination))
    ]
    return over + [(route.source, route.destination)] * len(plan.relays)
