"""Server time on a node: carried forward in this boot, never turned back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.clock import FAR_AHEAD_MS, MAX_TIME_MS, NEAR_MS, Clock, ServerTime, SystemClock
from tests.fakes.clock import MockClock

SERVER_MS = 1_950_000_000_000


def test_unknown_until_heard(clock: MockClock) -> None:
    server_time = ServerTime(clock)
    assert not server_time.known
    assert server_time.offset_ms() == 0
    assert server_time.now_ms() == clock.now_ms()
    server_time.observe(SERVER_MS)
    assert server_time.known
    assert server_time.now_ms() == SERVER_MS
    assert server_time.offset_ms() == clock.now_ms() - SERVER_MS


def test_it_runs_on_the_nodes_monotonic_clock(clock: MockClock) -> None:
    server_time = ServerTime(clock)
    server_time.observe(SERVER_MS)
    clock.advance_nowait(90.5)
    assert server_time.now_ms() == SERVER_MS + 90_500


def test_the_first_word_counts_even_when_the_nodes_clock_runs_ahead(clock: MockClock) -> None:
    server_time = ServerTime(clock)
    server_time.observe(1_000)
    assert server_time.now_ms() == 1_000


def test_a_server_that_turns_its_clock_back_keeps_nothing_alive(clock: MockClock) -> None:
    server_time = ServerTime(clock)
    server_time.observe(SERVER_MS)
    clock.advance_nowait(60)
    server_time.observe(SERVER_MS)  # frozen
    server_time.observe(SERVER_MS - 3_600_000)  # turned back
    assert server_time.now_ms() == SERVER_MS + 60_000


@given(steps=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2**45)), max_size=20))
def test_it_never_runs_backwards_and_never_behind_what_was_heard(steps: list[tuple[int, int]]) -> None:
    clock = MockClock()
    server_time = ServerTime(clock)
    server_time.observe(0)
    before = server_time.now_ms()
    for elapsed_ms, heard_ms in steps:
        clock.advance_nowait(elapsed_ms / 1000)
        server_time.observe(heard_ms)
        assert server_time.now_ms() >= max(before, heard_ms)
        before = server_time.now_ms()


@pytest.mark.parametrize("far_ms", [MAX_TIME_MS + 1, 2**63 - 1])
def test_what_is_no_time_moves_nothing(clock: MockClock, far_ms: int) -> None:
    server_time = ServerTime(clock)
    server_time.observe(far_ms)
    assert not server_time.known
    server_time.observe(SERVER_MS)
    server_time.observe(far_ms)
    for claimed_ms in (far_ms, -1):
        with pytest.raises(ValueError, match="no time"):
            server_time.meet(claimed_ms)
    assert server_time.now_ms() == SERVER_MS


@pytest.mark.parametrize(
    ("estimate_ahead_ms", "claim_ahead_ms", "again"),
    [
        (FAR_AHEAD_MS + 1, 0, True),
        (FAR_AHEAD_MS + 1, NEAR_MS, True),
        (10**12, -NEAR_MS, True),
        (FAR_AHEAD_MS, 0, False),
        (10**12, NEAR_MS + 1, False),
        (10**12, -NEAR_MS - 1, False),
        (10**12, 10**12 + 5, False),
        (-1000, 0, False),
    ],
)
def test_a_server_that_proved_itself_and_the_nodes_clock_together_take_back_a_time_far_ahead(
    clock: MockClock, estimate_ahead_ms: int, claim_ahead_ms: int, again: bool
) -> None:
    server_time, own_ms = ServerTime(clock), clock.now_ms()
    server_time.observe(own_ms + estimate_ahead_ms)
    assert server_time.meet(own_ms + claim_ahead_ms) is again
    expected = claim_ahead_ms if again else max(estimate_ahead_ms, claim_ahead_ms)
    assert server_time.now_ms() == own_ms + expected
    server_time.observe(own_ms + expected - 1)  # and from there on it runs forwards only
    assert server_time.now_ms() == own_ms + expected


def test_the_first_server_that_is_met_is_believed(clock: MockClock) -> None:
    server_time = ServerTime(clock)
    assert not server_time.meet(SERVER_MS)
    assert server_time.now_ms() == SERVER_MS


async def test_the_machines_clock() -> None:
    machine: Clock = SystemClock()
    first = machine.monotonic()
    await machine.sleep(0)
    assert machine.monotonic() >= first
    assert machine.now_ms() > 1_700_000_000_000
