"""Paths and leases on a node only ever grow; what one failed walk shows has to be confirmed."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fleet_node.routes.health_rules import ObservationType, PathHealth, RouteState
from fleet_node.routes.rules import (
    CONTRADICTION,
    OLDER_GENERATION,
    OLDER_LEASE,
    EffectivePath,
    HeldLease,
    Policy,
    accept_lease,
    apply,
    may_use,
)
from fleet_node.routes.walk_rules import WalkResult, WalkState

POLICY = Policy(degraded_rtt_us=100_000, degraded_loss_permille=200)
PATHS = (("s", "d"), ("s", "r", "d"), ("s", "q", "d"))

routes = st.builds(
    EffectivePath,
    route_id=st.sampled_from(["a", "b", "c"]),
    generation=st.integers(1, 4),
    path=st.sampled_from(PATHS),
)
snapshots = st.lists(routes, unique_by=lambda route: route.route_id)
leases = st.builds(
    HeldLease,
    lease_id=st.just("l"),
    route_id=st.just("a"),
    relay_id=st.sampled_from(["r", "q"]),
    generation=st.integers(1, 3),
    expires_at_ms=st.integers(1, 100),
    withdrawn=st.booleans(),
)


@given(st.lists(snapshots, max_size=8))
def test_a_generation_never_goes_back_and_never_means_two_paths(history: list[list[EffectivePath]]) -> None:
    held: dict[str, EffectivePath] = {}
    for offered in history:
        applied = apply(held, offered)
        assert applied.routes.keys() == {route.route_id for route in offered}
        assert set(applied.withdrawn) == held.keys() - applied.routes.keys()
        for route in offered:
            before, after = held.get(route.route_id), applied.routes[route.route_id]
            if before is None:
                assert after == route
                continue
            assert after.generation >= before.generation
            if after.generation == before.generation:
                assert after.path == before.path
            reason = applied.refused.get(route.route_id)
            assert (reason == OLDER_GENERATION) == (route.generation < before.generation)
            assert (reason == CONTRADICTION) == (route.generation == before.generation and route.path != before.path)
            assert (route.route_id in applied.replaced) == (after.path != before.path)
        held = dict(applied.routes)


def test_other_candidates_come_without_a_new_generation() -> None:
    route = EffectivePath("a", 3, PATHS[0])
    offered = replace(route, candidates=(PATHS[1],))
    applied = apply({"a": route}, [offered])
    assert (applied.routes["a"], applied.replaced, applied.refused) == (offered, (), {})


@given(st.lists(leases, max_size=10))
def test_a_lease_never_goes_back_and_a_withdrawal_is_final(offers: list[HeldLease]) -> None:
    held: HeldLease | None = None
    for offered in offers:
        before = held
        held, refused = accept_lease(before, offered)
        assert held.generation >= offered.generation
        if before is not None:
            assert held.generation >= before.generation
            if held.generation == before.generation:
                assert held.relay_id == before.relay_id
                assert held.withdrawn >= before.withdrawn
                assert held.withdrawn or held.expires_at_ms >= before.expires_at_ms
            assert (refused == OLDER_LEASE) == (
                offered.generation < before.generation
                or (offered.generation == before.generation and offered.relay_id != before.relay_id)
            )


@given(lease=st.none() | leases, path=st.sampled_from(PATHS), now_ms=st.integers(0, 120))
def test_only_a_lease_of_this_route_and_relay_that_runs_lets_a_relay_be_used(
    lease: HeldLease | None, path: tuple[str, ...], now_ms: int
) -> None:
    route = EffectivePath("a", 1, path)
    runs = lease is not None and not lease.withdrawn and now_ms < lease.expires_at_ms
    assert may_use(route, lease, now_ms) == (
        len(path) == 2 or (runs and lease is not None and lease.relay_id == path[1])
    )
    if lease is not None and len(path) > 2:
        assert not may_use(route, replace(lease, route_id="other"), now_ms)


def walk(state: WalkState, rtt_us: int = 1_000) -> WalkResult:
    path = PATHS[1]
    if state is WalkState.ANSWERED:
        return WalkResult(path, path, rtt_us, rtt_us // 2, state)
    return WalkResult(path, path[:1], 0, 0, state, "TIMED_OUT", 1, "")


@given(st.lists(st.sampled_from(sorted(WalkState)), max_size=30))
def test_one_failure_is_a_suspicion_and_two_are_the_truth(states: list[WalkState]) -> None:
    health, now_ms, failed = PathHealth(PATHS[1], 0), 0, 0
    window: deque[bool] = deque(maxlen=10)
    for state in states:
        before = health.state
        health.note(walk(state), now_ms, 10**9, POLICY)
        now_ms += 10_000
        if state is WalkState.INCONCLUSIVE:
            assert health.state is before
            continue
        if state is WalkState.ANSWERED and before.bad:
            while window and window[-1]:
                window.pop()
        window.append(state is not WalkState.ANSWERED)
        failed = 0 if state is WalkState.ANSWERED else failed + 1
        assert health.suspect == (failed == 1)
        assert health.state.bad == (failed > 1 or (failed == 1 and before.bad))
        assert health.loss_permille == round(1000 * sum(window) / len(window))


def test_an_outage_that_is_over_is_no_loss_and_single_losses_before_it_are() -> None:
    health = PathHealth(PATHS[1], 0)
    lost, answered = WalkState.UNREACHABLE, WalkState.ANSWERED
    for state in [lost, answered, *[lost] * 6, answered]:
        health.note(walk(state), 0, 10_000, POLICY)
    assert (health.loss_permille, health.state) == (333, RouteState.HEALTHY)


def test_silence_of_three_intervals_is_unreachable() -> None:
    health = PathHealth(PATHS[1], 0)
    silent = walk(WalkState.INCONCLUSIVE)
    assert [health.note(silent, at, 10_000, POLICY) for at in (50_000, 60_000, 79_999)] == [False] * 3
    assert health.note(silent, 80_000, 10_000, POLICY)
    assert (health.state, health.suspect) == (RouteState.UNREACHABLE, False)
    health.new_generation()
    health.note(walk(WalkState.ANSWERED), 81_000, 10_000, POLICY)
    assert not health.note(silent, 200_000, 10_000, POLICY)


def test_slow_or_lossy_is_degraded() -> None:
    slow, lossy = PathHealth(PATHS[1], 0), PathHealth(PATHS[1], 0)
    slow.note(walk(WalkState.ANSWERED, 100_001), 0, 10_000, POLICY)
    assert slow.state is RouteState.DEGRADED
    for state in [WalkState.ANSWERED, WalkState.UNREACHABLE] * 3:
        lossy.note(walk(state), 0, 10_000, POLICY)
        assert lossy.state is RouteState.HEALTHY  # two of a whole window would be no heavy loss
    lossy.note(walk(WalkState.ANSWERED), 9, 10_000, POLICY)
    finding = lossy.finding("a", 4, ObservationType.CANDIDATE_PATH)
    assert (finding.state, finding.loss_permille, finding.rtt_us) == (RouteState.DEGRADED, 429, 1_000)
    assert (finding.generation, finding.failure, finding.failed_hop, finding.at_ms) == (4, "", 0, 9)
