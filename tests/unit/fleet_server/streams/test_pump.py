"""A lane's pump: never twice at once, never deaf to a kick, patient with a database that is away."""

import asyncio

from fleet.errors import Reason, Refusal
from fleet_server.streams.pump import Pump
from tests.fakes.clock import MockClock


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_kick_during_a_round_makes_one_more_round(clock: MockClock) -> None:
    gate, rounds, failures = asyncio.Event(), [], []

    async def work() -> None:
        rounds.append(len(rounds))
        await gate.wait()

    pump = Pump(work, clock, failures.append)
    pump.kick()
    await _settle()
    for _ in range(5):
        pump.kick()
    assert rounds == [0]
    gate.set()
    await _settle()
    assert rounds == [0, 1]
    assert failures == []


async def test_a_database_that_is_away_is_waited_out(clock: MockClock) -> None:
    answers = [Refusal(Reason.UNAVAILABLE, "away"), Refusal(Reason.OVERLOADED, "busy"), None]
    failures: list[Exception] = []
    done = asyncio.Event()

    async def work() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        done.set()

    pump = Pump(work, clock, failures.append)
    pump.kick()
    await clock.wait_sleepers(1)
    await clock.advance(0.1)
    await clock.wait_sleepers(1)
    await clock.advance(0.25)
    await asyncio.wait_for(done.wait(), 1)
    assert failures == []


async def test_any_other_failure_stops_the_pump_and_is_told(clock: MockClock) -> None:
    failures: list[Exception] = []
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        raise Refusal(Reason.SUPERSEDED, "a newer stream")

    pump = Pump(work, clock, failures.append)
    pump.kick()
    await _settle()
    pump.kick()
    await _settle()
    assert rounds == 1
    assert [type(failure) for failure in failures] == [Refusal]


async def test_stopping_lets_a_round_finish_and_starts_no_other(clock: MockClock) -> None:
    gate, ended = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        ended.append(1)

    pump = Pump(work, clock, ended.append)
    pump.kick()
    await _settle()
    pump.kick()
    pump.stop()
    gate.set()
    await pump.wait_idle()
    assert ended == [1]
