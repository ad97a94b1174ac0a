"""Every way of a route as it stands at one moment: what it is worth, and what keeps it from being chosen. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fleet_server.routes import damping_rules, finding_rules, scoring_rules
from fleet_server.routes.model import BAD, DIRECT, GOOD, Candidate, PathState, Policy, Relay, Route, Scored


@dataclass(frozen=True, slots=True)
class Way:
    """One way of a route at one moment.

    Args:
        scored: what a decision tells of it.
        obstacle: why its relay cannot carry the route, whatever its state; empty when it can.
        ailment: why it does not count as one that works; empty when it does.
        suppressed: whether it is held out for flapping.
        samples: see `Candidate`.
    """

    scored: Scored
    obstacle: str
    ailment: str
    suppressed: bool
    samples: int

    @property
    def relay_id(self) -> str:
        """Its name."""
        return self.scored.relay_id

    @property
    def state(self) -> PathState:
        """What it counts for."""
        return self.scored.state

    @property
    def works(self) -> bool:
        """Whether it could carry the route now, flapping or not."""
        return not self.obstacle and self.state in GOOD

    @property
    def is_open(self) -> bool:
        """Whether it may be chosen freely."""
        return self.works and not self.suppressed


def weigh(
    route: Route, known: Mapping[str, Candidate], pool: Mapping[str, Relay], now_ms: int, policy: Policy
) -> dict[str, Way]:
    """Ways that have to do with a decision, by relay id: what the source walks, the direct one, relays of the pool that
    were walked lately, and those that are an end of the route, which nobody can choose."""
    ends = {route.source_id, route.destination_id}
    seen = {
        way
        for way, row in known.items()
        if way in pool and finding_rules.state_now(row, route, now_ms, policy) is not PathState.UNKNOWN
    }
    return {
        way: _weigh_one(way, pool.get(way), known.get(way) or Candidate(way), route, now_ms, policy)
        for way in sorted({DIRECT, *route.ways, *seen, *(ends & pool.keys())})
    }


def left_out(ways: Collection[str], relays: Sequence[Relay], route: Route) -> tuple[Scored, ...]:
    """Relays of the pool that cannot carry a route and were not weighed for it, by id: for whoever asks why not.

    Args:
        ways: those that were weighed.
    """
    missing = sorted((relay for relay in relays if relay.node_id not in ways), key=lambda relay: relay.node_id)
    held_out = ((relay.node_id, obstacle(relay.node_id, relay, route)) for relay in missing)
    return tuple(Scored(relay_id, None, {}, why_not) for relay_id, why_not in held_out if why_not)


def obstacle(relay_id: str, relay: Relay | None, route: Route) -> str:
    """Why a relay cannot carry a route, whatever the state of the way; empty when it can."""
    if unfit := unfitness(relay_id, relay, route):
        return unfit
    if relay is not None and not has_room(relay, route):
        return f"it is full: {relay.load} of {relay.capacity} routes"
    return ""


def unfitness(relay_id: str, relay: Relay | None, route: Route) -> str:
    """Why a relay can be no relay of a route, however little it carries; empty when it can."""
    if relay_id == DIRECT:
        return ""
    if relay_id in (route.source_id, route.destination_id):
        return "it is an end of the route"
    if relay is None:
        return "it is not in the relay pool"
    return "" if relay.usable else relay.why_not or "it may not carry routes now"


def has_room(relay: Relay, route: Route) -> bool:
    """Whether it may take this route; one that has it keeps it, even when its capacity was made smaller."""
    return relay.node_id == route.relay_id or relay.load < relay.capacity


def seconds(duration_ms: int) -> str:
    """A duration, for a person."""
    return f"{max(0, duration_ms) / 1000:.0f} s" if duration_ms >= 10_000 else f"{max(0, duration_ms) / 1000:.1f} s"


def _weigh_one(way: str, relay: Relay | None, row: Candidate, route: Route, now_ms: int, policy: Policy) -> Way:
    state = finding_rules.state_now(row, route, now_ms, policy)
    blocked = obstacle(way, relay, route)
    suppressed_until_ms = damping_rules.suppressed_until_ms(row, now_ms, policy)
    ailment = "" if blocked and not row.observed_at_ms else _ailment(row, state, now_ms)
    parts = scoring_rules.parts_of(row, relay, route, now_ms, policy) if state in GOOD else {}
    scored = Scored(
        relay_id=way,
        score_us=scoring_rules.total(parts) if parts else None,
        parts=parts,
        held_out="; ".join(
            why for why in (blocked, ailment, _flapping(row, suppressed_until_ms, now_ms, policy)) if why
        ),
        state=state,
        penalty=damping_rules.penalty_now(row, now_ms, policy),
        suppressed_until_ms=suppressed_until_ms,
        stale_since_ms=row.stale_since_ms,
        observed_at_ms=row.observed_at_ms,
    )
    return Way(scored, blocked, ailment, suppressed_until_ms > 0, row.samples)


def _ailment(row: Candidate, state: PathState, now_ms: int) -> str:
    if state in BAD:
        failure = "" if row.failure == row.state else row.failure
        cause = ", ".join(part for part in (failure, row.blamed and f"evidence names {row.blamed}") if part)
        return f"{state} for {seconds(now_ms - row.stale_since_ms)}" + (f" ({cause})" if cause else "")
    if state is PathState.UNKNOWN:
        if not row.observed_at_ms:
            return "never walked"
        return f"not seen for {seconds(now_ms - row.observed_at_ms)}"
    return ""


def _flapping(row: Candidate, until_ms: int, now_ms: int, policy: Policy) -> str:
    if not until_ms:
        return ""
    penalty = damping_rules.penalty_now(row, now_ms, policy)
    return (
        f"flaps: penalty {penalty:.0f}, held out for another {seconds(until_ms - now_ms)},"
        f" until it is below {policy.reuse_below:.0f}"
    )
