"""What replicas have in common: the clock of their database, as each of them knows it."""

from fleet_server.database import clock as database_clock
from fleet_server.database.clock import DatabaseClock
from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock

HOUR_MS = 3_600_000


async def test_postgresql_says_its_time_and_sqlite_has_none_of_its_own(database: Database) -> None:
    said = await database.read(database_clock.read_ms)
    if database.dialect == "sqlite":
        assert said is None
        return
    again = await database.read(database_clock.read_ms)
    assert said is not None
    assert again is not None
    assert 1_700_000_000_000 < said <= again < said + HOUR_MS


def test_before_the_first_look_it_is_the_machines(clock: MockClock) -> None:
    shared = DatabaseClock()
    shared.note(None, clock.monotonic(), clock)
    assert (shared.now_ms(clock), shared.past_ms(clock), shared.offset_ms(clock)) == (clock.now_ms(), clock.now_ms(), 0)


async def test_it_goes_on_between_looks_and_a_step_of_the_machines_clock_does_not_reach_it(clock: MockClock) -> None:
    shared = DatabaseClock()
    shared.note(clock.now_ms() + 7, clock.monotonic(), clock)
    right_ms = clock.now_ms() + 7
    await clock.advance(5)
    clock.step_wall(3600)
    assert shared.now_ms(clock) == right_ms + 5_000
    assert shared.offset_ms(clock) == 7 - HOUR_MS


async def test_past_is_what_both_clocks_say_is_past(clock: MockClock) -> None:
    for ahead_ms in (HOUR_MS, -HOUR_MS):
        shared = DatabaseClock()
        shared.note(clock.now_ms() + ahead_ms, clock.monotonic(), clock)
        assert shared.past_ms(clock) == min(clock.now_ms(), clock.now_ms() + ahead_ms)


async def test_an_answer_that_took_long_replaces_none_that_did_not(clock: MockClock) -> None:
    shared = DatabaseClock()
    asked_s = clock.monotonic()
    await clock.advance(4)
    shared.note(clock.now_ms(), asked_s, clock)
    assert shared.offset_ms(clock) == 2_000, "somewhere on the way"
    shared.note(clock.now_ms(), clock.monotonic(), clock)
    assert shared.offset_ms(clock) == 0
    asked_s = clock.monotonic()
    await clock.advance(4)
    shared.note(clock.now_ms(), asked_s, clock)
    assert shared.offset_ms(clock) == 0
