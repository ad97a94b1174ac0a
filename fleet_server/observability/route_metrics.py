"""Metrics of routes: see `metrics`, which has all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fleet.metrics import COMMIT_BUCKETS_S, Registry
from fleet.v1 import route_pb2

ROUTE_STATES = ("UNKNOWN", "HEALTHY", "DEGRADED", "DRIFT", "UNREACHABLE")
REFRESH_OUTCOMES = (
    "asked",
    "held_back",
    "replaced",
    "same_version",
    "no_change",
    "withdrawn",
    "timed_out",
    "refused",
)
LEASE_OUTCOMES = ("granted", "renewed", "withdrawn", "expired", "refused")
SHOWN_ROUTES = 200
"""Routes, by name, that have series of their own: these are not for thousands."""
_OUTCOMES = {
    number: route_pb2.RefreshOutcome.Name(number).removeprefix("REFRESH_OUTCOME_").lower()
    for number in route_pb2.RefreshOutcome.values()
    if number
}


class RouteMetrics:
    """Health of routes, decisions about them, and leases (docs/protocol.md, "Routes")."""

    def __init__(self, registry: Registry) -> None:
        self.routes = registry.gauges(
            "fleet_server_routes",
            "Enabled routes of the cluster, by the state of the path that each takes.",
            labels=("state",),
            values=ROUTE_STATES,
        )
        self.route_state = registry.gauges(
            "fleet_server_route_state",
            "State of a route's path: 0 unknown, 1 healthy, 2 degraded, 3 drift, 4 unreachable, -1 for a route that"
            " is disabled or gone; the first 200 routes by name.",
            labels=("route",),
            max_series=SHOWN_ROUTES,
        )
        self.route_rtt = registry.gauges(
            "fleet_server_route_rtt_seconds",
            "Smoothed round trip over a route's path; 0 when nothing answered; the first 200 routes by name.",
            labels=("route",),
            unit="seconds",
            max_series=SHOWN_ROUTES,
        )
        self.decisions = registry.counters(
            "fleet_server_route_decisions_total",
            "Decisions that gave a route another path or its relay another lease, by the rule that decided.",
            labels=("rule",),
        )
        self.leases = registry.counters(
            "fleet_server_route_leases_total",
            "Rendezvous leases by what became of them: granted, renewed, withdrawn, expired, or refused by a node.",
            labels=("outcome",),
            values=LEASE_OUTCOMES,
        )
        self.observations = registry.counter(
            "fleet_server_route_observations_total",
            "Observations of routes that were looked at.",
        )
        self.dropped = registry.counters(
            "fleet_server_route_observations_dropped_total",
            "Observations that were not recorded, by reason: why one is not believed, or superseded, full, malformed.",
            labels=("reason",),
        )
        self.refreshes = registry.counters(
            "fleet_server_route_refreshes_total",
            "Nodes' asks for their snapshot on behalf of routes: asked, held back by a cooldown, and what came of them;"
            " replaced and withdrawn were useful.",
            labels=("outcome",),
            values=REFRESH_OUTCOMES,
        )
        self.batch_duration = registry.histogram(
            "fleet_server_route_batch_seconds",
            "Time from a batch of observations that is taken to its commit, decisions included.",
            buckets=COMMIT_BUCKETS_S,
            unit="seconds",
        )
        self._shown: set[str] = set()

    def drop(self, reason: str, count: int) -> None:
        """So many observations were not recorded."""
        self.dropped.labels(reason).inc(count)

    def decided(self, rules: Mapping[str, int], leases: Mapping[str, int]) -> None:
        """What one transaction decided: how often each rule, and what became of leases."""
        for rule, count in rules.items():
            self.decisions.labels(rule).inc(count)
        for outcome, count in leases.items():
            self.leases.labels(outcome).inc(count)

    def note_refreshes(self, health: route_pb2.RouteHealth) -> None:
        """Count what a node says of its asks."""
        if health.refresh_routes:
            self.refreshes.labels("asked").inc(len(health.refresh_routes))
        if health.refreshes_held_back:
            self.refreshes.labels("held_back").inc(health.refreshes_held_back)
        for report in health.refreshes:
            if (outcome := _OUTCOMES.get(report.outcome)) is not None:
                self.refreshes.labels(outcome).inc()

    def measure(self, by_state: Mapping[str, int], shown: Iterable[tuple[str, str, int, bool]]) -> None:
        """Set what is only looked up.

        Args:
            shown: (name, state, round trip in microseconds, enabled) of routes.
        """
        for state in ROUTE_STATES:
            self.routes.labels(state).set(by_state.get(state, 0))
        gone = set(self._shown)
        for name, state, rtt_us, enabled in shown:
            if name not in self._shown and len(self._shown) >= SHOWN_ROUTES:
                continue
            self._shown.add(name)
            gone.discard(name)
            known = enabled and state in ROUTE_STATES
            self.route_state.labels(name).set(ROUTE_STATES.index(state) if known else -1)
            self.route_rtt.labels(name).set(rtt_us / 1_000_000 if known else 0)
        for name in gone:
            self.route_state.labels(name).set(-1)
            self.route_rtt.labels(name).set(0)
