"""One fault at a time on a small mesh: how fast, how often and where to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

from tests.simulation.policies import POLICIES
from tests.simulation.run import Outcome, simulate
from tests.simulation.test_mesh_of_200 import allowed_returns, worst_returns
from tests.simulation.trace import Decided, Event, NodeAt, Plan, RelayAt, RouteFrom, SiteAt, Trace

MINUTE_MS = 60_000
CALM_MS = 3 * MINUTE_MS


def small(relays: int, routes: int, minutes: int, *, capacity: int = 100, blocked: bool = False) -> Plan:
    """Relays n000 on, then a source and a destination per route, at two sites 10 ms apart; relays at the first."""
    first = relays
    ends = [(f"n{first + 2 * n:03}", f"n{first + 2 * n + 1:03}") for n in range(routes)]
    pool = [f"n{n:03}" for n in range(relays)]
    nodes = [NodeAt(relay, "here") for relay in pool]
    nodes += [each for source, destination in ends for each in (NodeAt(source, "here"), NodeAt(destination, "there"))]
    return Plan(
        seed=5,
        duration_ms=minutes * MINUTE_MS,
        interval_ms=10_000,
        sites=(SiteAt("here", 0, 0), SiteAt("there", 10, 0)),
        nodes=tuple(nodes),
        relays=tuple(RelayAt(relay, capacity) for relay in pool),
        routes=tuple(RouteFrom(f"route-{n:03}", *pair) for n, pair in enumerate(ends)),
        blocked=tuple(ends) if blocked else (),
    )


def heal_ms(outcome: Outcome) -> list[int]:
    return [stretch.ended_ms - stretch.began_ms for stretch in outcome.measure.stretches if stretch.began_ms >= CALM_MS]


def test_a_cut_link_is_left_after_little_more_than_one_interval() -> None:
    plan = small(3, 20, 8)
    cuts = [Event(CALM_MS + 700 * n, "link_down", (r.source, r.destination)) for n, r in enumerate(plan.routes)]
    outcome = simulate(Trace(plan, tuple(cuts)))
    assert len(heal_ms(outcome)) >= 18, "all but those that a relay serves better"
    assert max(heal_ms(outcome)) < 2 * plan.interval_ms


def test_routes_of_a_relay_that_died_spread_over_the_others() -> None:
    """A herd: all of them move within an interval, many in one batch."""
    plan = small(5, 50, 5, blocked=True)
    first = simulate(Trace(replace(plan, duration_ms=CALM_MS), ()))
    load = Counter(decided.relay_id for decided in last_decisions(first).values())
    victim = load.most_common(1)[0][0]
    outcome = simulate(Trace(plan, (Event(CALM_MS, "node_down", (victim,)),)))
    after = Counter(decided.relay_id for decided in last_decisions(outcome).values())
    assert after[victim] == 0
    assert max(heal_ms(outcome)) <= 2 * plan.interval_ms
    assert max(after.values()) <= 2 * min(after.values())
    moved = [d for d in outcome.server.decisions if d.at_ms >= CALM_MS]
    assert len(moved) <= 1.2 * load[victim], "nobody moves twice, and those who were elsewhere stay"


def test_when_the_whole_pool_died_the_first_that_is_back_is_found() -> None:
    """No later than after as long again as the outage took: what failed is tried again at growing distances."""
    plan = small(8, 6, 14, blocked=True)
    back_ms = CALM_MS + 90_000
    downs = [Event(CALM_MS, "node_down", (relay.node_id,)) for relay in plan.relays]
    outcome = simulate(Trace(plan, (*downs, Event(back_ms, "node_up", ("n005",)))))
    assert {decided.relay_id for decided in last_decisions(outcome).values()} == {"n005"}
    assert max(heal_ms(outcome)) <= back_ms - CALM_MS + 3 * plan.interval_ms


def test_full_relays_take_nobody_else() -> None:
    plan = small(4, 40, 8, capacity=14, blocked=True)
    outcome = simulate(Trace(plan, (Event(CALM_MS, "node_down", ("n001",)),)))
    assert max(outcome.server.busiest.values()) <= 14
    assert max(heal_ms(outcome), default=0) <= 3 * plan.interval_ms


def test_a_link_that_flaps_for_an_hour_is_left_alone_in_the_end() -> None:
    plan = small(3, 1, 66)
    route = plan.routes[0]
    pair = (route.source, route.destination)
    edges = range(CALM_MS, 60 * MINUTE_MS, 45_000)
    events = [Event(at, "link_down" if n % 2 == 0 else "link_up", pair) for n, at in enumerate(edges)]
    # Relays are slow, so that the direct path is wanted back each time.
    slow = [Event(2_000, "slow", (relay.node_id, route.destination), 8.0) for relay in plan.relays]
    trace = Trace(plan, tuple(sorted([*slow, *events], key=lambda event: event.at_ms)))
    switches = {name: len(simulate(trace, policy).measure.switches) for name, policy in POLICIES.items()}
    assert worst_returns(simulate(trace).server.decisions, 60) <= allowed_returns(60)
    naive = [count for name, count in switches.items() if name != "rules"]
    assert switches["rules"] * 3 < min(naive)


def test_a_lease_is_renewed_and_replaced_with_its_relay() -> None:
    plan = small(3, 5, 12, blocked=True)
    events = (Event(CALM_MS, "node_down", ("n000",)), Event(CALM_MS + 5 * MINUTE_MS, "node_up", ("n000",)))
    outcome = simulate(Trace(plan, events))
    # Four lives of a lease have passed; no route was ever withdrawn for want of one, but for those of the dead relay.
    withdrawn = [switch for switch in outcome.measure.switches if switch[3] is None]
    assert withdrawn == []
    last = last_decisions(outcome)
    assert all(decided.relay_id for decided in last.values())


def test_asks_that_change_nothing_get_rarer() -> None:
    """A destination that is gone for long: there is no other path, and the node may not keep asking for one."""
    plan = replace(small(2, 1, 40), seed=3)
    outcome = simulate(Trace(plan, (Event(CALM_MS, "node_down", (plan.routes[0].destination,)),)))
    times = [at for at, _ in outcome.nodes[plan.routes[0].source].asked if at >= CALM_MS]
    assert 3 <= len(times) <= 8
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(later > earlier for earlier, later in pairwise(gaps[:4]))
    assert {refresh.outcome.value for refresh in outcome.nodes[plan.routes[0].source].refreshes} <= {
        "SAME_VERSION",
        "NO_CHANGE",
    }


def last_decisions(outcome: Outcome) -> dict[str, Decided]:
    return {decided.route_id: decided for decided in outcome.server.decisions}
