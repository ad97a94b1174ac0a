"""One route among a few relays, driven by the rules alone: what its source walks and finds is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from fleet_server.routes.lease_rules import next_lease
from fleet_server.routes.model import BAD, DIRECT, Candidate, Decision, Finding, PathState, Policy, Relay, Route
from fleet_server.routes.rules import decide, fold

START_MS = 1_800_000_000_000
INTERVAL_MS = 10_000
RELAYS = tuple(f"n-{letter}" for letter in "abcdef")
WAYS = (DIRECT, *RELAYS)
ENDS = ("n-s", "n-t")

rtts_ms = st.sampled_from([1, 5, 14, 15, 16, 30, 45, 60, 200])
outcomes = st.one_of(
    st.tuples(st.sampled_from([PathState.HEALTHY, PathState.DEGRADED]), rtts_ms),
    st.tuples(st.sampled_from(sorted(BAD)), st.just(0)),
)
"""What a walk finds: a state, and a round trip in milliseconds."""


@dataclass(frozen=True)
class Step:
    """What happens between two decisions.

    Args:
        after_ms: since the one before.
        found: by way; ways that are not in it, or that the source does not walk, are not told of.
        gone: relays that may carry nothing.
        full: relays that have no room.
    """

    after_ms: int
    found: Mapping[str, tuple[PathState, int]]
    gone: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()


steps = st.builds(
    Step,
    after_ms=st.sampled_from([1, INTERVAL_MS, 4 * INTERVAL_MS, 20 * INTERVAL_MS]),
    found=st.dictionaries(st.sampled_from(WAYS), outcomes, max_size=len(WAYS)),
    gone=st.frozensets(st.sampled_from(RELAYS), max_size=3),
    full=st.frozensets(st.sampled_from(RELAYS), max_size=2),
)


@dataclass
class World:
    """The route, what is known of it, and the clock."""

    policy: Policy = field(default_factory=Policy)
    relays: Sequence[str] = RELAYS
    now_ms: int = START_MS
    known: dict[str, Candidate] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()
    route: Route = field(default_factory=lambda: Route("r-1", ENDS[0], "", ENDS[1], "", INTERVAL_MS))

    @property
    def pool(self) -> tuple[Relay, ...]:
        """Relays, and the ends of the route, which stand in the pool as well."""
        return tuple(
            Relay(each, "", 10, 100, self._load(each), each not in self.gone, "it is drained")
            for each in (*self.relays, *ENDS)
        )

    def _load(self, relay_id: str) -> int:
        return (10 if relay_id in self.full else 1) + (relay_id == self.route.relay_id)

    def findings(self, found: Mapping[str, tuple[PathState, int]]) -> list[Finding]:
        """As the source reports them: of the ways alone that it walks."""
        return [
            Finding(way, state, rtt_ms * 1000, 0, self.now_ms)
            for way, (state, rtt_ms) in found.items()
            if way in self.route.ways
        ]

    def observe(self, step: Step) -> None:
        """Time passes, and what is found is remembered; nothing is decided yet."""
        self.now_ms += step.after_ms
        self.gone, self.full = step.gone, step.full
        self.known = fold(self.known, self.findings(step.found), self.policy, self.route.ways)

    def decide(self) -> Decision:
        """What the rules say now; changes nothing."""
        return decide(self.route, self.known, self.pool, self.now_ms, self.policy)

    def apply(self, decision: Decision) -> None:
        """As the server stores it."""
        self.known |= {row.relay_id: row for row in decision.charged}
        lease = next_lease(self.route.lease, decision.relay_id, True, self.now_ms, self.policy.lease_ttl_ms).lease
        self.route = replace(
            self.route,
            relay_id=decision.relay_id,
            generation=self.route.generation + decision.switched,
            candidates=decision.candidates,
            waiting_rendezvous=decision.waiting_rendezvous,
            lease=lease,
            decided_at_ms=self.now_ms if decision.switched else self.route.decided_at_ms,
        )

    def take(self, step: Step) -> Decision:
        """A whole round."""
        self.observe(step)
        decision = self.decide()
        self.apply(decision)
        return decision
