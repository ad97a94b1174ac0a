"""What the rules of routes speak of: ways, what is known of them, and decisions. Pure.

A way of a route is named by its relay: DIRECT stands for [source, destination], any other for [source, relay,
destination]. All times are Unix milliseconds on the server's clock; 0 stands for never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

DIRECT = ""
"""The way without a relay."""


class PathState(StrEnum):
    """What is known of one way."""

    UNKNOWN = "UNKNOWN"  # never walked, or not lately
    HEALTHY = "HEALTHY"
    DEGRADED = "DEGRADED"  # answers, with loss or latency over the limits
    DRIFT = "DRIFT"  # answers over other hops than expected
    UNREACHABLE = "UNREACHABLE"


GOOD = frozenset({PathState.HEALTHY, PathState.DEGRADED})
BAD = frozenset({PathState.DRIFT, PathState.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Finding:
    """What one report says of one way.

    Args:
        relay_id: the way that was walked.
        rtt_us: round trip in microseconds; 0 when there was no answer.
        loss_permille: lost probes per thousand, over the walks that the node remembers.
        at_ms: when it was walked, server time.
        failure: stable word for how it failed; empty when it did not.
        failed_hop: index in the path of the node that did not answer as it should; 0 when none failed.
        blamed: node that evidence names as the cause; empty when none does.
    """

    relay_id: str
    state: PathState
    rtt_us: int
    loss_permille: int
    at_ms: int
    failure: str = ""
    failed_hop: int = 0
    blamed: str = ""


class Candidate(NamedTuple):
    """What is remembered of one way of one route.

    Args:
        state: as the newest finding had it; `state_now` says what it counts for.
        rtt_us: smoothed round trip in microseconds; 0 when it never answered.
        loss: smoothed share of lost probes, 0 to 1.
        samples: findings in `rtt_us` and `loss`; counted anew when it comes back, or was long not walked.
        observed_at_ms: when it was last walked.
        penalty: for flapping, as it stood at `penalty_at_ms`; it decays from then on.
        suppressed_since_ms: since when it is held out for flapping; 0 when it is not.
        stale_since_ms: since when it is DRIFT or UNREACHABLE without a break; 0 when it is not.
        failure: see `Finding`.
        blamed: see `Finding`.
    """

    relay_id: str
    state: PathState = PathState.UNKNOWN
    rtt_us: float = 0.0
    loss: float = 0.0
    samples: int = 0
    observed_at_ms: int = 0
    penalty: float = 0.0
    penalty_at_ms: int = 0
    suppressed_since_ms: int = 0
    stale_since_ms: int = 0
    failure: str = ""
    blamed: str = ""


@dataclass(frozen=True, slots=True)
class Relay:
    """A node of the relay pool, as one decision sees it.

    Args:
        site: empty for unknown.
        capacity: routes that it may carry.
        weight: percent; 200 makes its score half as large, 100 leaves it.
        load: routes whose path leads over it now, the one that is decided included. Whoever decides several routes in
            one transaction counts again after each, or all of them go to the same relay.
        usable: whether it may carry routes at all: approved, online (but for a moment), not drained, with a probe
            listener.
        why_not: what keeps it from that, in words.
    """

    node_id: str
    site: str
    capacity: int
    weight: int
    load: int
    usable: bool
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """The rendezvous lease that a route has.

    Args:
        generation: fencing token; grows with each holder.
        expires_at_ms: a withdrawn one has expired.
    """

    relay_id: str
    generation: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route and the path that it has.

    Args:
        source_site: site of the source; empty for unknown.
        probe_interval_ms: milliseconds between two walks of the effective path.
        generation: 0 before the first decision.
        relay_id: the way that it takes now.
        candidates: the other ways that its source walks.
        waiting_rendezvous: whether its ends cannot reach each other, as last decided.
        lease: the newest one, whoever holds it; None when there never was one.
        decided_at_ms: when the path was last changed; a way that just became the effective one is not yet missed.
        enabled: what is disabled is left as it is.
    """

    route_id: str
    source_id: str
    source_site: str
    destination_id: str
    destination_site: str
    probe_interval_ms: int
    generation: int = 0
    relay_id: str = DIRECT
    candidates: tuple[str, ...] = ()
    waiting_rendezvous: bool = False
    lease: HeldLease | None = None
    decided_at_ms: int = 0
    enabled: bool = True

    @property
    def ways(self) -> tuple[str, ...]:
        """What its source walks: the effective path and the candidates."""
        return (self.relay_id, *self.candidates)

    def path(self, relay_id: str) -> tuple[str, ...]:
        """Node ids of one of its ways, from source to destination.

        Raises:
            ValueError: the relay is an end of the route. No decision names one: a row that somebody changed may.
        """
        if relay_id in (self.source_id, self.destination_id):
            raise ValueError(f"{relay_id} is an end of route {self.route_id}, so it cannot be its relay")
        between = () if relay_id == DIRECT else (relay_id,)
        return (self.source_id, *between, self.destination_id)


class DecisionRule(StrEnum):
    """The rule that decided."""

    # The path changes.
    FIRST = "FIRST"  # there was none
    UNHEALTHY = "UNHEALTHY"  # the old one is DRIFT or UNREACHABLE
    STALE = "STALE"  # nobody has seen the old one lately, though others
    RELAY_GONE = "RELAY_GONE"  # its relay left, or may carry nothing
    LEASE_ENDED = "LEASE_ENDED"  # its relay holds no lease any more; it may get another one
    LAST_USABLE = "LAST_USABLE"  # what is held out for flapping, for nothing else works
    FASTER = "FASTER"  # the old one works, and the new one gains enough
    # It stays.
    KEPT = "KEPT"  # it is the best
    NOT_ENOUGH_GAIN = "NOT_ENOUGH_GAIN"  # another one is better, but by too little, or was seen too seldom
    SUPPRESSED_KEPT = "SUPPRESSED_KEPT"  # another one would gain enough, but is held out for flapping
    UNOBSERVED = "UNOBSERVED"  # nobody has seen it lately, and no other way is known to work
    NO_USABLE_PATH = "NO_USABLE_PATH"  # nothing works: changing would help nobody
    ROUTE_DISABLED = "ROUTE_DISABLED"


@dataclass(frozen=True, slots=True)
class Reason:
    """One sentence of a decision, and the numbers in it."""

    text: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scored:
    """One way, as a decision saw it.

    Args:
        score_us: lower is better; None when there is nothing to score it by.
        parts: what the score is made of, in microseconds, before `weight`; and `weight` in percent.
        held_out: why it could not be chosen; empty when it could.
        state: what it counts for at that moment.
        penalty: for flapping, at that moment.
        suppressed_until_ms: until when it is held out for flapping if nothing more happens; 0 when it is not.
        stale_since_ms: since when it does not work; 0 when it does.
        observed_at_ms: when it was last walked.
    """

    relay_id: str
    score_us: int | None
    parts: Mapping[str, int]
    held_out: str = ""
    state: PathState = PathState.UNKNOWN
    penalty: float = 0.0
    suppressed_until_ms: int = 0
    stale_since_ms: int = 0
    observed_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is decided for one route.

    Args:
        relay_id: the way that it takes from now on.
        switched: whether that is another one than before; the first one counts.
        reasons: the rule in a sentence first, then whatever else had to do with it.
        scores: every way that was considered, the chosen one first, then best first.
        candidates: other ways that the source walks from now on; stable, so that a snapshot changes only for a cause.
        waiting_rendezvous: whether the ends cannot reach each other.
        charged: what is remembered of a way and changes by this decision, for whoever stores it. A way that is left
            because another became faster pays for that, so that two ways whose latency swings do not pass a route to
            and fro for ever; one that is left because nobody saw it any more is UNKNOWN until it is walked again.
    """

    relay_id: str
    switched: bool
    rule: DecisionRule
    reasons: tuple[Reason, ...]
    scores: tuple[Scored, ...]
    candidates: tuple[str, ...]
    waiting_rendezvous: bool
    charged: tuple[Candidate, ...] = ()

    @property
    def sentence(self) -> str:
        """Why this path, for a person (`RouteConfig.reason`)."""
        return self.reasons[0].text


@dataclass(frozen=True, slots=True)
class Policy:
    """Constants of every decision. docs/routes.md explains them.

    Args:
        min_gain_us: what a working path must be bettered by, microseconds.
        gain_numerator: over `gain_denominator`: the share of the old score that the new one may be at most.
        min_samples: findings that a way needs before it can take a route from a working path.
        ewma_weight: of a new round trip or loss in the smoothed one.
        forget_after_ms: after as long without a finding the smoothed values begin anew.
        loss_factor: a lost probe costs this many round trips.
        loss_floor_us: of at least this long each, for a lost packet is waited for.
        relay_us: what any relay costs: it is borrowed, so that a direct path that works again is gone back to.
        load_us: what a full relay costs more than an empty one.
        other_site_us: what a relay costs that stands at the site of neither end.
        age_us: what knowledge costs that is about to be too old.
        charge: penalty for each change from good to bad.
        slower_charge: penalty for being left because another way became faster.
        same_outage_ms: findings so close to one another may tell of one cause.
        half_life_ms: in which a penalty decays to half.
        suppress_at: penalty from which a way is held out.
        reuse_below: penalty below which it is let in again.
        max_suppress_ms: longest time that it can be held out after its last charge; the penalty's ceiling follows.
        max_candidates: other ways that a source walks at most.
        candidate_interval_factor: intervals between two walks of a candidate.
        stale_after_intervals: after as many intervals without a finding a way is UNKNOWN.
        stale_floor_ms: but not before: findings are gathered and committed on their way.
        rotate_after_intervals: a candidate that has not worked for so many of its intervals makes room for another.
        rotate_floor_ms: but not before, so that short intervals do not make for many snapshots.
        retry_after_intervals: one that did not work is not offered anew for so many of its intervals.
        retry_floor_ms: nor before this.
        lease_ttl_ms: life of a rendezvous lease.
        degraded_rtt_us: for the nodes, as the next four: see `RoutePolicy` in route.proto.
    """

    min_gain_us: int = 10_000
    gain_numerator: int = 2
    gain_denominator: int = 3
    min_samples: int = 2
    ewma_weight: float = 0.3
    forget_after_ms: int = 15 * 60_000
    loss_factor: int = 10
    loss_floor_us: int = 20_000
    relay_us: int = 10_000
    load_us: int = 5_000
    other_site_us: int = 5_000
    age_us: int = 3_000
    charge: float = 1000.0
    slower_charge: float = 500.0
    same_outage_ms: int = 60_000
    half_life_ms: int = 15 * 60_000
    suppress_at: float = 2000.0
    reuse_below: float = 750.0
    max_suppress_ms: int = 60 * 60_000
    max_candidates: int = 4
    candidate_interval_factor: int = 6
    stale_after_intervals: int = 3
    stale_floor_ms: int = 5_000
    rotate_after_intervals: int = 3
    rotate_floor_ms: int = 30_000
    retry_after_intervals: int = 10
    retry_floor_ms: int = 120_000
    lease_ttl_ms: int = 120_000
    degraded_rtt_us: int = 400_000
    degraded_loss_permille: int = 100
    min_refresh_interval_ms: int = 5_000
    no_change_cooldown_ms: int = 30_000
    no_change_cooldown_max_ms: int = 15 * 60_000

    def candidate_interval_ms(self, route: Route) -> int:
        """Milliseconds between two walks of one candidate."""
        return route.probe_interval_ms * self.candidate_interval_factor

    def stale_after_ms(self, route: Route, relay_id: str) -> int:
        """Age from which a finding about a way says nothing of it any more."""
        if relay_id != route.relay_id:
            return self.candidate_stale_after_ms(route)
        return max(self.stale_floor_ms, route.probe_interval_ms * self.stale_after_intervals)

    def candidate_stale_after_ms(self, route: Route) -> int:
        """The same for a way that is walked as a candidate."""
        return max(self.stale_floor_ms, self.candidate_interval_ms(route) * self.stale_after_intervals)

    def rotate_after_ms(self, route: Route) -> int:
        """How long a candidate may be broken before it makes room for another."""
        return max(self.rotate_floor_ms, self.candidate_interval_ms(route) * self.rotate_after_intervals)

    def retry_after_ms(self, route: Route) -> int:
        """Age of a failure from which a relay may be offered to the source anew."""
        return max(self.retry_floor_ms, self.candidate_interval_ms(route) * self.retry_after_intervals)
