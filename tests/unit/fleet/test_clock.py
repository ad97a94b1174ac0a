"""Server time on a node: carried forward in this boot, never turned back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet.clock import Clock, ServerTime, SystemClock
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


async def test_the_machines_clock() -> None:
    machine: Clock = SystemClock()
    first = machine.monotonic()
    await machine.sleep(0)
    assert machine.monotonic() >= first
    assert machine.now_ms() > 1_700_000_000_000
