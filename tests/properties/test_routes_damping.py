"""Flap damping: penalties decay and are bounded, hold out what flaps and never the last that works, and an outage that
is nobody's costs nobody anything."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_server.routes import damping_rules
from fleet_server.routes.finding_rules import WENT_BACK_MS
from fleet_server.routes.model import BAD, GOOD, Candidate, Finding, PathState, Policy
from fleet_server.routes.rules import DIRECT, fold, observe
from tests.properties.route_world import INTERVAL_MS, START_MS, Step, World, steps

POLICY = Policy()
histories = st.lists(steps, min_size=1, max_size=12)
penalties = st.floats(1, 12_000)
pauses_ms = st.integers(0, 3 * POLICY.max_suppress_ms)
charges = st.lists(st.tuples(pauses_ms, st.sampled_from([500.0, 1000.0])), min_size=1, max_size=30)


def charged(pauses: Sequence[tuple[int, float]]) -> tuple[Candidate, int]:
    """A way after charges, each so long after the one before, and when the last one was."""
    row, now_ms = Candidate("n-a"), START_MS
    for pause_ms, amount in pauses:
        now_ms += pause_ms
        row = damping_rules.charge(row, amount, now_ms, POLICY)
    return row, now_ms


@given(penalty=penalties, half_lives=st.integers(0, 10))
def test_a_penalty_halves_with_each_half_life(penalty: float, half_lives: int) -> None:
    row = Candidate("n-a", penalty=penalty, penalty_at_ms=START_MS)
    later_ms = START_MS + half_lives * POLICY.half_life_ms
    assert damping_rules.penalty_now(row, later_ms, POLICY) == pytest.approx(penalty / 2**half_lives)


@given(pauses=charges, back_ms=st.integers(0, 10**7))
def test_a_penalty_is_bounded_and_does_not_grow_by_itself(pauses: Sequence[tuple[int, float]], back_ms: int) -> None:
    row, now_ms = charged(pauses)
    assert 0 < row.penalty <= damping_rules.ceiling(POLICY) == pytest.approx(12_000)
    # Not even when the clock goes back.
    assert damping_rules.penalty_now(row, now_ms - back_ms, POLICY) <= row.penalty
    assert damping_rules.charge(row, 1000, now_ms - back_ms, POLICY).penalty <= row.penalty + 1000


@given(pauses=charges)
def test_who_is_held_out_is_let_in_exactly_when_it_was_said_and_within_the_maximum(
    pauses: Sequence[tuple[int, float]],
) -> None:
    row, now_ms = charged(pauses)
    until_ms = damping_rules.suppressed_until_ms(row, now_ms, POLICY)
    assert (until_ms > 0) == damping_rules.is_suppressed(row, now_ms, POLICY)
    if until_ms:
        assert now_ms < until_ms <= now_ms + POLICY.max_suppress_ms + 1
        assert damping_rules.is_suppressed(row, until_ms - 2, POLICY)
        assert not damping_rules.is_suppressed(row, until_ms, POLICY)
    if row.penalty >= POLICY.suppress_at:
        assert until_ms


@given(pauses=charges)
def test_between_reuse_and_suppress_it_stays_as_it_was(pauses: Sequence[tuple[int, float]]) -> None:
    row, now_ms = Candidate("n-a"), START_MS
    for pause_ms, amount in pauses:
        now_ms += pause_ms
        before = damping_rules.is_suppressed(row, now_ms, POLICY)
        row = damping_rules.charge(row, amount, now_ms, POLICY)
        assert damping_rules.is_suppressed(row, now_ms, POLICY) == (before or row.penalty >= POLICY.suppress_at)


@given(history=histories)
def test_each_fall_is_charged_once_unless_nothing_works_any_more(history: Sequence[Step]) -> None:
    world = World()
    for step in history:
        before = world.known
        world.observe(step)
        told = {finding.relay_id for finding in world.findings(step.found)}
        something_works = any(world.known[way].state in GOOD for way in world.route.ways if way in world.known)
        for way in told:
            old, new = before.get(way, Candidate(way)), world.known[way]
            had = damping_rules.penalty_now(old, world.now_ms, POLICY)
            fell = old.state in GOOD and new.state in BAD
            if fell and something_works:
                assert new.penalty == pytest.approx(min(had + POLICY.charge, damping_rules.ceiling(POLICY)))
            else:
                assert damping_rules.penalty_now(new, world.now_ms, POLICY) <= had + 1e-6
        world.apply(world.decide())


@given(history=histories, last=st.sampled_from(sorted(BAD)))
def test_when_every_way_fails_at_once_nobody_is_charged(history: Sequence[Step], last: PathState) -> None:
    world = World()
    for step in history:
        world.take(step)
    before = world.known
    world.observe(Step(INTERVAL_MS, dict.fromkeys(world.route.ways, (last, 0))))
    for way, row in world.known.items():
        had = damping_rules.penalty_now(before.get(way, Candidate(way)), world.now_ms, POLICY)
        assert damping_rules.penalty_now(row, world.now_ms, POLICY) <= had + 1e-6


@given(gap_ms=st.integers(1, POLICY.same_outage_ms))
def test_who_was_found_first_in_an_outage_of_all_gets_its_charge_back(gap_ms: int) -> None:
    known = {way: Candidate(way, PathState.HEALTHY, 5000, observed_at_ms=START_MS) for way in (DIRECT, "n-a")}
    early = fold(known, [Finding("n-a", PathState.UNREACHABLE, 0, 0, START_MS + 1)], POLICY)
    assert early["n-a"].penalty == 1000
    late = fold(early, [Finding(DIRECT, PathState.UNREACHABLE, 0, 0, START_MS + 1 + gap_ms)], POLICY)
    assert [row.penalty for row in late.values()] == [0, 0]


@given(gap_ms=st.integers(1, POLICY.same_outage_ms))
def test_a_liar_is_not_excused_by_anybodys_outage(gap_ms: int) -> None:
    known = {way: Candidate(way, PathState.HEALTHY, 5000, observed_at_ms=START_MS) for way in (DIRECT, "n-a")}
    lie = Finding("n-a", PathState.DRIFT, 0, 0, START_MS + 1, "BAD_RECORD", 1, blamed="n-a")
    early = fold(known, [lie], POLICY)
    late = fold(early, [Finding(DIRECT, PathState.UNREACHABLE, 0, 0, START_MS + 1 + gap_ms)], POLICY)
    assert late["n-a"].penalty == 1000
    together = fold(known, [lie, Finding(DIRECT, PathState.UNREACHABLE, 0, 0, START_MS + 1)], POLICY)
    assert {way: row.penalty for way, row in together.items()} == {DIRECT: 0, "n-a": 1000}


@given(later_ms=st.integers(-(10**7), 10**7))
def test_what_is_not_newer_changes_nothing_unless_a_clock_went_back(later_ms: int) -> None:
    row = Candidate("n-a", PathState.HEALTHY, 5000, observed_at_ms=START_MS)
    after = observe(row, Finding("n-a", PathState.UNREACHABLE, 0, 1000, START_MS + later_ms), POLICY)
    assert (after == row) == (-WENT_BACK_MS < later_ms <= 0)


def most_switches(duration_ms: int) -> float:
    """How often one way can be left while another one stays open: each time costs it 500 at least, it is not chosen
    while it is held out, and what it is charged decays no faster than the half-life lets it."""
    highest = POLICY.suppress_at + POLICY.charge
    decayed = highest * 0.6932 * duration_ms / POLICY.half_life_ms
    return (highest + decayed) / POLICY.slower_charge


@settings(max_examples=20)
@given(
    pattern=st.lists(
        st.sampled_from(
            [(PathState.HEALTHY, 1), (PathState.HEALTHY, 300), (PathState.UNREACHABLE, 0), (PathState.DRIFT, 0)]
        ),
        min_size=2,
        max_size=12,
    )
)
def test_no_pattern_makes_a_route_flap_more_than_the_damping_allows(pattern: Sequence[tuple[PathState, int]]) -> None:
    """One relay plays its pattern for two hours; the direct path always works, not well."""
    world, arrivals, rounds = World(relays=("n-a",)), 0, 2 * 3600_000 // INTERVAL_MS
    for turn in range(rounds):
        found = {DIRECT: (PathState.HEALTHY, 80), "n-a": pattern[turn // 6 % len(pattern)]}
        arrivals += world.take(Step(INTERVAL_MS, found)).relay_id == "n-a" and world.route.decided_at_ms == world.now_ms
    assert arrivals <= 1 + most_switches(rounds * INTERVAL_MS)


def test_without_damping_the_same_pattern_flaps_all_the_time() -> None:
    """Shows that the bound is one: the damping keeps it, not the world."""
    undamped = replace(POLICY, charge=0.0, slower_charge=0.0)
    switches = {}
    for policy in (POLICY, undamped):
        world, count = World(policy=policy, relays=("n-a",)), 0
        for turn in range(720):
            way = (PathState.HEALTHY, 1) if turn // 6 % 2 else (PathState.UNREACHABLE, 0)
            count += world.take(Step(INTERVAL_MS, {DIRECT: (PathState.HEALTHY, 80), "n-a": way})).switched
        switches[policy] = count
    assert switches[POLICY] * 5 < switches[undamped]
