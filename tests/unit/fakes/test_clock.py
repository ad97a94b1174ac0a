"""The mock clock moves only when told, and wakes sleepers in one order."""

import asyncio

import pytest

from fleet.clock import Clock, ServerTime
from tests.fakes.clock import MockClock


async def test_time_stands_still_until_advanced() -> None:
    clock = MockClock(start_ms=1_000)
    assert (clock.now_ms(), clock.monotonic()) == (1_000, 0.0)
    await clock.advance(2.5)
    assert (clock.now_ms(), clock.monotonic()) == (3_500, 2.5)


async def test_sleepers_wake_by_due_time_then_by_order_of_falling_asleep() -> None:
    clock = MockClock()
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("late", 3.0), ("b", 1.0), ("c", 1.0), ("middle", 2.0)):
            tasks.create_task(sleep(name, seconds))
        await clock.wait_sleepers(4)
        await clock.advance(2.0)
        assert woken == [("b", 1.0), ("c", 1.0), ("middle", 2.0)]
        assert clock.sleepers == 1
        assert clock.next_due_s == 1.0
        await clock.advance(1.0)
    assert woken[-1] == ("late", 3.0)


async def test_a_periodic_task_runs_once_per_period_in_one_advance() -> None:
    clock = MockClock()
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await clock.sleep(0.1)
            ticks.append(round(clock.monotonic(), 3))

    task = asyncio.create_task(tick())
    await clock.wait_sleepers(1)
    await clock.advance(1.0)
    task.cancel()
    assert ticks == [round(0.1 * i, 3) for i in range(1, 11)]


async def test_cancelled_sleepers_are_forgotten() -> None:
    clock = MockClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.wait_sleepers(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    assert clock.next_due_s is None
    await clock.advance(10)


async def test_sleep_of_nothing_yields_and_returns() -> None:
    clock = MockClock()
    await clock.sleep(0)
    await clock.sleep(-1)
    assert clock.monotonic() == 0.0


async def test_wall_steps_leave_monotonic_alone() -> None:
    clock = MockClock(start_ms=10_000)
    clock.step_wall(-5)
    assert (clock.now_ms(), clock.monotonic()) == (5_000, 0.0)


async def test_a_skewed_party_shares_the_timeline() -> None:
    clock = MockClock(start_ms=10_000)
    node = clock.seen_by(offset_ms=-2_000)
    task = asyncio.create_task(node.sleep(1))
    await clock.wait_sleepers(1)
    await clock.advance(1)
    await task
    assert (clock.now_ms(), node.now_ms(), node.monotonic()) == (11_000, 9_000, 1.0)


@pytest.mark.parametrize("offset_ms", [0, 60_000])
async def test_a_party_of_the_product_takes_it_for_its_clock(offset_ms: int) -> None:
    timeline = MockClock(start_ms=1_000_000)
    node: Clock = timeline.seen_by(offset_ms)
    server: Clock = timeline
    heard = ServerTime(node)
    heard.observe(server.now_ms())
    await timeline.advance(5)
    assert heard.now_ms() == server.now_ms()
    assert heard.offset_ms() == offset_ms


async def test_waiting_for_sleepers_that_never_come_fails_with_their_number() -> None:
    with pytest.raises(TimeoutError, match="0 of 1 expected sleepers"):
        await MockClock().wait_sleepers(1, timeout_s=0.01)


async def test_time_can_be_moved_without_an_event_loop_turn() -> None:
    clock = MockClock(start_ms=0)
    clock.advance_nowait(1.5)
    assert clock.now_ms() == 1_500
