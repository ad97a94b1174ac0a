"""What is remembered of a way: smoothed values, since when it does not work, and what it pays for."""

from dataclasses import replace

import pytest

from fleet_server.routes import damping_rules
from fleet_server.routes.rules import DIRECT, Candidate, Finding, PathState, decide, fold, observe, state_now
from tests.unit.fleet_server.routes.known import NOW_MS, OVER_A, POLICY, RELAYS, ROUTE, SEEN_MS, bad, good, rows

HEALTHY, DEGRADED = PathState.HEALTHY, PathState.DEGRADED
DRIFT, UNREACHABLE = PathState.DRIFT, PathState.UNREACHABLE


def told(relay_id: str, state: PathState, rtt_ms: float = 0, loss: int = 0, at_ms: int = NOW_MS) -> Finding:
    return Finding(relay_id, state, round(rtt_ms * 1000), loss, at_ms)


def test_of_the_first_few_each_counts_alike_then_the_newest_counts_by_its_weight() -> None:
    row = None
    smoothed = []
    for number, rtt_ms in enumerate((10, 20, 30, 40, 50)):
        row = observe(row, told("n-a", HEALTHY, rtt_ms, 100 * number, NOW_MS + number), POLICY)
        smoothed.append(round(row.rtt_us))
    assert smoothed == [10_000, 15_000, 20_000, 26_000, 33_200]
    assert row is not None
    assert row.samples == 5
    assert row.loss == pytest.approx(0.232)


def test_a_way_that_does_not_answer_keeps_the_round_trip_that_it_had() -> None:
    row = observe(good("n-a", 12), replace(told("n-a", UNREACHABLE, 0, 300), failure="TIMED_OUT"), POLICY)
    assert (row.state, row.rtt_us, row.samples, row.failure) == (UNREACHABLE, 12_000, 5, "TIMED_OUT")
    assert row.stale_since_ms == NOW_MS


def test_one_that_comes_back_is_measured_anew_and_not_stale_any_more() -> None:
    row = observe(bad("n-a", penalty=1000, penalty_at_ms=SEEN_MS), told("n-a", DEGRADED, 90), POLICY)
    assert (row.state, row.rtt_us, row.samples, row.stale_since_ms, row.failure) == (DEGRADED, 90_000, 1, 0, "")
    assert row.penalty == 1000


def test_so_is_one_that_was_long_not_walked() -> None:
    old = good("n-a", 12, observed_at_ms=NOW_MS - POLICY.forget_after_ms - 1)
    assert observe(old, told("n-a", HEALTHY, 90), POLICY).rtt_us == 90_000


def test_it_is_stale_since_it_first_failed_however_it_fails_now() -> None:
    row = observe(bad("n-a"), told("n-a", DRIFT), POLICY)
    assert (row.state, row.stale_since_ms) == (DRIFT, SEEN_MS)


@pytest.mark.parametrize(
    ("before", "finding", "penalty"),
    [
        pytest.param(good("n-a", 9), told("n-a", UNREACHABLE), 1000, id="it-fell"),
        pytest.param(good("n-a", 9, state=DEGRADED), told("n-a", DRIFT), 1000, id="from-bad-to-worse"),
        pytest.param(good("n-a", 9), told("n-a", DEGRADED, 9), 0, id="it-is-only-slow"),
        pytest.param(bad("n-a"), told("n-a", DRIFT), 0, id="it-was-down-already"),
        pytest.param(bad("n-a"), told("n-a", HEALTHY, 9), 0, id="it-came-back"),
        pytest.param(Candidate("n-a"), told("n-a", UNREACHABLE), 0, id="it-was-never-up"),
        pytest.param(
            good("n-a", 9), replace(told("n-a", UNREACHABLE), failure="LEASE_EXPIRED"), 0, id="the-server-was-late"
        ),
        pytest.param(good("n-a", 9), told("n-a", UNREACHABLE, at_ms=SEEN_MS), 0, id="it-is-no-news"),
    ],
)
def test_what_a_fall_costs(before: Candidate, finding: Finding, penalty: float) -> None:
    assert observe(before, finding, POLICY).penalty == penalty


def test_the_third_fall_in_a_short_while_holds_it_out() -> None:
    row = good("n-a", 9)
    for fall in range(3):
        at_ms = NOW_MS + fall * 60_000
        assert not row.suppressed_since_ms
        row = observe(row, told("n-a", UNREACHABLE, at_ms=at_ms), POLICY)
        row = observe(row, told("n-a", HEALTHY, 9, at_ms=at_ms + 30_000), POLICY)
    assert row.suppressed_since_ms == NOW_MS + 120_000


def test_a_penalty_grows_up_to_its_ceiling_and_not_by_a_clock_that_went_back() -> None:
    row = Candidate("n-a")
    for _ in range(20):
        row = damping_rules.charge(row, POLICY.charge, NOW_MS, POLICY)
    assert row.penalty == damping_rules.ceiling(POLICY) == 12_000
    back = damping_rules.charge(row, 0, NOW_MS - 60_000, POLICY)
    assert (back.penalty, back.penalty_at_ms) == (12_000, NOW_MS)


def test_of_two_findings_of_one_moment_the_worse_counts_in_whatever_order() -> None:
    pair = [told("n-a", HEALTHY, 9), told("n-a", UNREACHABLE)]
    known = rows(good("n-a", 9), good(DIRECT, 9))
    assert fold(known, pair, POLICY) == fold(known, pair[::-1], POLICY)
    assert fold(known, pair, POLICY)["n-a"].state is UNREACHABLE


def test_a_way_that_is_not_walked_any_more_vouches_for_nothing() -> None:
    """That one worked weeks ago does not make today's outage the fault of the others."""
    known = rows(good(DIRECT, 9), good("n-a", 9), good("n-old", 9))
    fallen = [told(DIRECT, UNREACHABLE), told("n-a", UNREACHABLE)]
    assert {way: row.penalty for way, row in fold(known, fallen, POLICY, ways=(DIRECT, "n-a")).items()} == {
        DIRECT: 0, "n-a": 0, "n-old": 0
    }  # fmt: skip
    assert fold(known, fallen, POLICY)[DIRECT].penalty == 1000


def test_an_old_outage_is_not_given_back() -> None:
    early = rows(bad("n-a", penalty=1000, penalty_at_ms=SEEN_MS), good(DIRECT, 9))
    late = fold(early, [told(DIRECT, UNREACHABLE, at_ms=SEEN_MS + POLICY.same_outage_ms + 1)], POLICY)
    assert (late["n-a"].penalty, late[DIRECT].penalty) == (1000, 0)


def test_what_was_held_out_by_the_charge_alone_is_let_in_with_it() -> None:
    early = rows(
        bad("n-a", penalty=2100, penalty_at_ms=SEEN_MS, suppressed_since_ms=SEEN_MS),
        bad("n-b", penalty=5000, penalty_at_ms=SEEN_MS, suppressed_since_ms=SEEN_MS - 1),
        good(DIRECT, 9),
    )
    late = fold(early, [told(DIRECT, UNREACHABLE)], POLICY)
    assert (late["n-a"].penalty, late["n-a"].suppressed_since_ms) == (1100, 0)
    assert (late["n-b"].penalty, late["n-b"].suppressed_since_ms) == (4000, SEEN_MS - 1)


@pytest.mark.parametrize(
    ("row", "age_ms", "interval_ms", "state"),
    [
        pytest.param(good("n-a", 9), 30_000, 10_000, HEALTHY, id="the-effective-path-for-three-intervals"),
        pytest.param(good("n-a", 9), 30_001, 10_000, PathState.UNKNOWN, id="and-no-longer"),
        pytest.param(good("n-b", 9), 180_000, 10_000, HEALTHY, id="a-candidate-for-three-of-its-own"),
        pytest.param(good("n-b", 9), 180_001, 10_000, PathState.UNKNOWN, id="and-no-longer-either"),
        pytest.param(bad("n-b"), 180_001, 10_000, PathState.UNKNOWN, id="nor-is-it-known-to-be-broken"),
        pytest.param(good("n-a", 9), 5_000, 200, HEALTHY, id="findings-are-on-their-way-for-a-while"),
        pytest.param(good("n-a", 9), 5_001, 200, PathState.UNKNOWN, id="not-longer-than-that"),
    ],
)
def test_for_how_long_a_finding_counts(row: Candidate, age_ms: int, interval_ms: int, state: PathState) -> None:
    route = replace(OVER_A, probe_interval_ms=interval_ms)
    assert state_now(row, route, row.observed_at_ms + age_ms, POLICY) is state


def test_when_the_clock_went_back_what_was_seen_in_the_future_does_not_stand_for_ever() -> None:
    ahead = good("n-a", 9, observed_at_ms=NOW_MS + 86_400_000)
    assert state_now(ahead, OVER_A, NOW_MS, POLICY) is PathState.UNKNOWN
    after = observe(ahead, told("n-a", UNREACHABLE), POLICY)
    assert (after.state, after.observed_at_ms) == (UNREACHABLE, NOW_MS)
    # Clocks of replicas are a little apart, and findings overtake one another.
    assert state_now(good("n-a", 9, observed_at_ms=NOW_MS + 5_000), OVER_A, NOW_MS, POLICY) is HEALTHY
    assert observe(good("n-a", 9, observed_at_ms=NOW_MS + 60_000), told("n-a", UNREACHABLE), POLICY).state is HEALTHY


@pytest.mark.parametrize("garbled", [float("nan"), float("inf"), float("-inf"), -1.0, 1e300])
@pytest.mark.parametrize("column", ["rtt_us", "loss", "penalty"])
def test_a_row_that_somebody_garbled_stops_nothing_and_heals(column: str, garbled: float) -> None:
    known = rows(good("n-a", 9), good(DIRECT, 9), good("n-b", 9)._replace(**{column: garbled}))
    decision = decide(OVER_A, known, RELAYS, NOW_MS, POLICY)
    assert decision.relay_id in ("n-a", DIRECT)
    assert all(0 <= each.penalty <= 12_000 for each in decision.scores)
    healed = fold(known, [told("n-b", HEALTHY, 9), told(DIRECT, UNREACHABLE)], POLICY)["n-b"]
    assert (healed.rtt_us, healed.loss) == (9_000, 0)


def test_a_decision_keeps_fresh_what_was_fresh_then_and_revives_nothing() -> None:
    chosen = replace(OVER_A, decided_at_ms=NOW_MS)
    seen, forgotten = good("n-a", 9, observed_at_ms=NOW_MS - 180_000), bad("n-a", observed_at_ms=NOW_MS - 180_001)
    assert state_now(seen, chosen, NOW_MS + 30_000, POLICY) is HEALTHY
    assert state_now(seen, chosen, NOW_MS + 30_001, POLICY) is PathState.UNKNOWN
    assert state_now(forgotten, chosen, NOW_MS, POLICY) is PathState.UNKNOWN


def test_nothing_is_known_of_what_was_never_walked() -> None:
    assert state_now(None, ROUTE, NOW_MS, POLICY) is PathState.UNKNOWN
    assert state_now(Candidate("n-a"), ROUTE, NOW_MS, POLICY) is PathState.UNKNOWN
