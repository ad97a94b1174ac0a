"""200 nodes in bad weather: routes are on a living way in time, do not flap, and do not ask in circles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import pytest

from fleet_server.routes.rules import Policy
from tests.simulation.run import Outcome, simulate
from tests.simulation.trace import Decided, Trace
from tests.simulation.weather import draw

pytestmark = pytest.mark.xdist_group("simulation")
POLICY = Policy()
SEEDS = (1, 7)
CALM_RULES = {"FIRST", "LAST_USABLE"}
"""What damping has no say in: the beginning, and the last way that works."""


@pytest.fixture(scope="module", params=SEEDS)
def run(request: pytest.FixtureRequest) -> tuple[Trace, Outcome]:
    trace = draw(request.param, routes=60, minutes=10)
    return trace, simulate(trace)


def test_a_route_with_a_way_that_works_is_on_one_within_three_intervals(run: tuple[Trace, Outcome]) -> None:
    trace, outcome = run
    late = [
        stretch
        for stretch in outcome.measure.stretches
        if stretch.ended_ms - max(stretch.began_ms, stretch.steady_ms) > 3 * trace.plan.interval_ms
    ]
    assert late == []
    assert len(outcome.measure.stretches) > 20, "too fine a weather to prove anything"


def test_no_route_flaps_more_than_the_damping_allows(run: tuple[Trace, Outcome]) -> None:
    assert worst_returns(run[1].server.decisions, 60) <= allowed_returns(60)


def test_asks_stay_under_the_bound(run: tuple[Trace, Outcome]) -> None:
    assert any(node.asked for node in run[1].nodes.values())
    for node in run[1].nodes.values():
        by_route = defaultdict(list)
        for at_ms, route_id in node.asked:
            by_route[route_id].append(at_ms)
        for times in by_route.values():
            gaps = [later - earlier for earlier, later in pairwise(times)]
            assert min(gaps, default=POLICY.min_refresh_interval_ms) >= POLICY.min_refresh_interval_ms


def allowed_returns(minutes: int) -> int:
    """How often a path may come back to one way in that time (RFC 2439 section 4.2).

    Each time costs the way at least the smaller charge when it is left. Held out from `suppress_at` on it has to decay
    to `reuse_below`, so that after a first round there is one of as many charges as fit between the two per decay.
    """
    decay_min = POLICY.half_life_ms / 60_000 * math.log2(POLICY.suppress_at / POLICY.reuse_below)
    smallest = min(POLICY.charge, POLICY.slower_charge)
    first = math.ceil(POLICY.suppress_at / smallest) + 1
    per_decay = math.ceil((POLICY.suppress_at - POLICY.reuse_below) / smallest)
    return first + math.ceil(minutes / decay_min) * per_decay


def worst_returns(decisions: Iterable[Decided], minutes: int) -> int:
    """The most often that any route came to one way within that time."""
    times = defaultdict(list)
    for decided in decisions:
        if decided.rule not in CALM_RULES:
            times[decided.route_id, decided.relay_id].append(decided.at_ms)
    return max(
        (sum(at <= other < at + minutes * 60_000 for other in each) for each in times.values() for at in each),
        default=0,
    )
