"""The rules and two simple policies on the same weather, in figures."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.simulation.policies import POLICIES
from tests.simulation.run import simulate
from tests.simulation.trace import Trace
from tests.simulation.weather import CALM_MS, Climate, draw

SEEDS = (101, 102)
WEATHERS = {
    "mixed": Climate(),
    "flapping": Climate(link_failures=60, flapping_links=150, slow_links=120),
    "congested": Climate(link_failures=60, flapping_links=5, slow_links=700, lossy_links=120),
}
"""Kinds of weather: some of everything; links that go up and down; links that get slow and fast again."""


@dataclass(slots=True)
class Figures:
    """Of one policy over all seeds of one weather, from the end of the calm on; before, routes find their first way.

    Args:
        heals_s: times on a path that did not work while another one did, each until it was left.
        route_s: seconds of all routes together.
        extra_ms: how much longer the round trip was than over the fastest way that worked, each sample of a route.
        losses: share of walks that get lost on the path in force, each sample of a route.
    """

    weather: str
    policy: str
    switches: int = 0
    worst_route: int = 0
    heals_s: list[float] = field(default_factory=list)
    bad_s: float = 0.0
    route_s: float = 0.0
    extra_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def switches_per_route_hour(self) -> float:
        return self.switches / (self.route_s / 3600)

    @property
    def bad_share(self) -> float:
        return self.bad_s / self.route_s

    def heal_s(self, percent: int) -> float:
        return percentile(self.heals_s, percent)

    @property
    def mean_extra_ms(self) -> float:
        return statistics.fmean(self.extra_ms)

    @property
    def lost_percent(self) -> float:
        return 100 * statistics.fmean(self.losses)


def percentile(values: Iterable[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0


def compare(seeds: Sequence[int] = SEEDS, *, minutes: int = 30, routes: int = 100) -> list[Figures]:
    """One line a weather and policy, in the order of the table; tells how far it is."""
    lines = []
    for weather, climate in WEATHERS.items():
        traces = [draw(seed, minutes=minutes, routes=routes, climate=climate) for seed in seeds]
        for policy in POLICIES:
            line = Figures(weather, policy)
            for trace in traces:
                print(f"{weather}, {policy}, seed {trace.plan.seed}", file=sys.stderr, flush=True)
                _add(line, trace)
            lines.append(line)
    return lines


def _add(line: Figures, trace: Trace) -> None:
    outcome = simulate(trace, POLICIES[line.policy])
    measure, begin_ms = outcome.measure, CALM_MS
    by_route = Counter(route_id for at_ms, route_id, _, _ in measure.switches if at_ms >= begin_ms)
    line.switches += by_route.total()
    line.worst_route = max(line.worst_route, *by_route.values())
    heals_s = [(each.ended_ms - each.began_ms) / 1000 for each in measure.stretches if each.began_ms >= begin_ms]
    line.heals_s += heals_s
    line.bad_s += sum(heals_s)
    line.route_s += (trace.plan.duration_ms - begin_ms) / 1000 * len(trace.plan.routes)
    line.extra_ms += [excess_us / 1000 for excess_us in measure.excess_us]
    line.losses += measure.losses
