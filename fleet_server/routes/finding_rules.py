"""What is remembered of a way after a finding about it, and who is charged when ways stop working. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fleet_server.routes import damping_rules
from fleet_server.routes.model import BAD, GOOD, Candidate, Finding, PathState, Policy, Route

LEASE_EXPIRED = "LEASE_EXPIRED"
"""How a walk fails whose relay holds no lease: the server's doing, not the relay's."""
MAX_RTT_US = 60_000_000
AHEAD_MS = 5_000
"""Replicas' clocks may be so far apart; what was observed later than that was observed before a clock went back."""
WENT_BACK_MS = 120_000
"""No finding is on its way for so long: it is not the finding that is old, but a clock that went back."""
_MOST_SAMPLES = 2**53
_SEVERITY = {state: rank for rank, state in enumerate(PathState)}


def state_now(known: Candidate | None, route: Route, now_ms: int, policy: Policy) -> PathState:
    """What a way counts for at a moment: UNKNOWN when the newest finding is too old, or the row makes no sense."""
    if known is None or not known.observed_at_ms or not is_sane(known):
        return PathState.UNKNOWN
    seen_ms = known.observed_at_ms
    if seen_ms > now_ms + AHEAD_MS:
        return PathState.UNKNOWN
    limit_ms = policy.stale_after_ms(route, known.relay_id)
    fresh = now_ms - seen_ms <= limit_ms
    if not fresh and known.relay_id == route.relay_id:
        # It was walked as seldom as a candidate until it was chosen: what was fresh then is not missed yet.
        was_fresh = route.decided_at_ms - seen_ms <= policy.candidate_stale_after_ms(route)
        fresh = was_fresh and now_ms - route.decided_at_ms <= limit_ms
    return known.state if fresh else PathState.UNKNOWN


def observe(known: Candidate | None, finding: Finding, policy: Policy) -> Candidate:
    """What is known of a way after one finding; one that is not newer than what is known changes nothing."""
    before = known or Candidate(finding.relay_id)
    learned = _learn(before, finding, policy)
    if before.state in GOOD and learned.state in BAD and finding.failure != LEASE_EXPIRED:
        return damping_rules.charge(learned, policy.charge, finding.at_ms, policy)
    return learned


def fold(
    known: Mapping[str, Candidate],
    findings: Sequence[Finding],
    policy: Policy,
    ways: Collection[str] | None = None,
) -> dict[str, Candidate]:
    """What is known of every way of a route after a batch of findings, in whatever order they came.

    When no way is left that works, the cause is at one of the ends: nobody is charged, but for a relay that evidence
    names, and who was charged a moment before for the same outage gets it back.

    Args:
        known: by relay id.
        findings: about this route alone.
        ways: those that its source walks (`Route.ways`); all that are known if not said.
    """
    ordered = sorted(
        findings, key=lambda each: (each.at_ms, -_SEVERITY[each.state], each.rtt_us, each.loss_permille, each.failure)
    )
    if ordered and _nothing_works_after(known, ordered, policy, ways):
        return _excused(known, ordered, policy)
    after = dict(known)
    for finding in ordered:
        after[finding.relay_id] = observe(after.get(finding.relay_id), finding, policy)
    return after


def _nothing_works_after(
    known: Mapping[str, Candidate], ordered: Sequence[Finding], policy: Policy, ways: Collection[str] | None
) -> bool:
    if not any(finding.state in BAD for finding in ordered):
        return False
    learned = dict(known)
    for finding in ordered:
        way = finding.relay_id
        learned[way] = _learn(learned.get(way) or Candidate(way), finding, policy)
    walked = learned.keys() if ways is None else {*ways, *(finding.relay_id for finding in ordered)}
    return not any(learned[way].state in GOOD for way in walked if way in learned)


def _learn(before: Candidate, finding: Finding, policy: Policy) -> Candidate:
    """The way with its new state and smoothed values, and the penalty that it had."""
    if before.observed_at_ms - WENT_BACK_MS < finding.at_ms <= before.observed_at_ms:
        return before
    if finding.state in BAD:
        since_ms = before.stale_since_ms or finding.at_ms
        rtt_us, loss, samples = before.rtt_us, before.loss, before.samples
    else:
        since_ms = 0
        forgotten = abs(finding.at_ms - before.observed_at_ms) > policy.forget_after_ms or not is_sane(before)
        samples = 1 if forgotten or before.state not in GOOD else before.samples + 1
        # Of the first few each counts alike; the very first one would have too much weight otherwise.
        weight = max(policy.ewma_weight, 1 / samples)
        rtt_us = _smoothed(before.rtt_us, finding.rtt_us, weight)
        loss = _smoothed(before.loss, finding.loss_permille / 1000, weight)
    return Candidate(
        relay_id=before.relay_id,
        state=finding.state,
        rtt_us=rtt_us,
        loss=loss,
        samples=samples,
        observed_at_ms=finding.at_ms,
        penalty=before.penalty,
        penalty_at_ms=before.penalty_at_ms,
        suppressed_since_ms=before.suppressed_since_ms,
        stale_since_ms=since_ms,
        failure=finding.failure,
        blamed=finding.blamed,
    )


def _smoothed(before: float, new: float, weight: float) -> float:
    return new if weight >= 1 else before + weight * (new - before)


def is_sane(row: Candidate) -> bool:
    """Whether its figures are some: rows of what was found carry no MAC, and may hold anything."""
    return (
        0 <= row.rtt_us <= MAX_RTT_US and 0 <= row.loss <= 1 and 0 <= row.samples < _MOST_SAMPLES and row.penalty >= 0
    )


def _excused(known: Mapping[str, Candidate], ordered: Sequence[Finding], policy: Policy) -> dict[str, Candidate]:
    after = dict(known)
    for finding in ordered:
        way = finding.relay_id
        step = observe if _convicted(finding.state, finding.blamed, way) else _learn
        after[way] = step(after.get(way) or Candidate(way), finding, policy)
    newest_ms = ordered[-1].at_ms
    return {way: _given_back(row, newest_ms, policy) for way, row in after.items()}


def _given_back(row: Candidate, now_ms: int, policy: Policy) -> Candidate:
    """The way without what it was charged for an outage that turned out to be everybody's."""
    charged_for_this = row.state in BAD and row.penalty > 0 and row.penalty_at_ms == row.stale_since_ms
    if (
        not charged_for_this
        or now_ms - row.stale_since_ms > policy.same_outage_ms
        or _convicted(row.state, row.blamed, row.relay_id)
    ):
        return row
    since_ms = 0 if row.suppressed_since_ms == row.stale_since_ms else row.suppressed_since_ms
    return row._replace(penalty=max(0.0, row.penalty - policy.charge), suppressed_since_ms=since_ms)


def _convicted(state: PathState, blamed: str, relay_id: str) -> bool:
    """Whether evidence names the relay itself, as a lie about its hops does: no outage excuses that."""
    return state is PathState.DRIFT and relay_id != "" and blamed == relay_id
