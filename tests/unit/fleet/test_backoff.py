"""Delays that spread a fleet: full jitter, bounded, and never under a stranger's control."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.backoff import Backoff, BackoffPolicy

POLICY = BackoffPolicy(initial_s=0.5, maximum_s=60.0, stable_s=30.0)


@pytest.fixture(autouse=True)
def _same_chance_each_time() -> Iterator[None]:
    state = random.getstate()
    random.seed(20261122)
    yield
    random.setstate(state)


def delays(failures: int, samples: int = 2000) -> list[float]:
    """Delays of a fleet that failed `failures` times in a row."""
    drawn = []
    for _ in range(samples):
        backoff = Backoff(POLICY)
        for _ in range(failures - 1):
            backoff.next_delay_s()
        drawn.append(backoff.next_delay_s())
    return drawn


@pytest.mark.parametrize("failures", [1, 2, 4, 7, 8, 12, 5000])
def test_delays_fill_the_whole_window_evenly(failures: int) -> None:
    window_s = min(0.5 * 2.0 ** min(failures - 1, 20), 60.0)
    drawn = delays(failures, samples=2000 if failures < 100 else 50)
    assert all(0.0 <= delay <= window_s for delay in drawn)
    if failures < 100:
        quarters = [sum(q / 4 <= delay / window_s < (q + 1) / 4 for delay in drawn) for q in range(4)]
        assert min(quarters) > 400  # 500 each on average: nobody returns in the same second


@given(asked_s=st.floats(-1e9, 1e9))
def test_an_asked_delay_is_obeyed_within_bounds(asked_s: float) -> None:
    delay_s = Backoff(POLICY).next_delay_s(asked_s)
    assert 0.01 <= delay_s <= POLICY.maximum_s * 11
    if 0.02 <= asked_s <= POLICY.maximum_s * 10:
        assert asked_s <= delay_s <= asked_s * 1.1


def test_a_server_that_asks_for_no_delay_makes_no_node_spin() -> None:
    backoff = Backoff(POLICY)
    delays_s = [backoff.next_delay_s(0.0) for _ in range(8)]
    assert delays_s[:6] == sorted(delays_s[:6])
    assert min(delays_s[5:]) >= POLICY.initial_s


_ASKED = st.one_of(st.none(), st.floats(0.0, 1e6))


@given(refusals=st.lists(_ASKED, max_size=60))
def test_delays_that_were_asked_for_raise_no_other(refusals: list[float | None]) -> None:
    backoff = Backoff(POLICY)
    unasked = 0
    for asked_s in refusals:
        delay_s = backoff.next_delay_s(asked_s)
        if asked_s is None:
            assert 0.0 <= delay_s <= min(POLICY.initial_s * 2.0**unasked, POLICY.maximum_s)
            unasked += 1


@given(refusals=st.lists(_ASKED, min_size=5, max_size=60), last_s=st.floats(-1e9, 1e9))
def test_whatever_came_before_an_asked_delay_is_bounded_from_both_sides(
    refusals: list[float | None], last_s: float
) -> None:
    backoff = Backoff(POLICY)
    for asked_s in refusals:
        backoff.next_delay_s(asked_s)
    assert POLICY.initial_s <= backoff.next_delay_s(last_s) <= POLICY.maximum_s * 11


def test_a_server_that_puts_its_callers_off_and_crashes_again_and_again_gathers_no_herd() -> None:
    """What it asks for grows no bound, and takes none back either; nor does a stream that it soon ends."""
    backoff = Backoff(POLICY)
    for _ in range(5):
        backoff.next_delay_s()
        backoff.next_delay_s(3.0)
        backoff.ended(POLICY.stable_s - 0.1)
    assert backoff.failures == 5


def test_callers_with_the_same_asked_delay_stay_spread() -> None:
    assert len({Backoff(POLICY).next_delay_s(10.0) for _ in range(100)}) == 100


def test_only_a_stable_stream_starts_the_count_again() -> None:
    backoff = Backoff(POLICY)
    for _ in range(5):
        backoff.next_delay_s()
    backoff.ended(POLICY.stable_s - 0.1)
    assert backoff.failures == 5
    backoff.ended(POLICY.stable_s)
    assert backoff.failures == 0
    assert backoff.next_delay_s() <= POLICY.initial_s


def test_a_stable_stream_lets_asked_delays_begin_low_as_well() -> None:
    backoff = Backoff(POLICY)
    for _ in range(8):
        backoff.next_delay_s(0.0)
    backoff.ended(POLICY.stable_s)
    assert backoff.next_delay_s(0.0) < POLICY.initial_s / 2
