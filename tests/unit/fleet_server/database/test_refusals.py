"""What is logged while the database is away: not a line for each of the many who ask meanwhile."""

import psycopg.errors
import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from fleet.errors import Refusal
from fleet_server.database import refusals
from fleet_server.database.refusals import SAID_EVERY_S, DatabaseLostError, Seldom, as_refusal
from tests.fakes.clock import MockClock


def error(kind: type[psycopg.Error]) -> OperationalError:
    return OperationalError(None, None, kind("as the driver says"))


async def test_a_thousand_that_are_refused_are_a_line_and_a_count(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_seldom", Seldom(clock.monotonic))
    with capture_logs() as logged:
        for _ in range(1000):
            assert isinstance(as_refusal(error(psycopg.errors.ConnectionTimeout)), Refusal)
        as_refusal(error(psycopg.errors.DiskFull))
        await clock.advance(SAID_EVERY_S)
        as_refusal(error(psycopg.errors.ConnectionTimeout))
    assert [line["left_out"] for line in logged if "DiskFull" not in line["error"]] == [0, 999]
    assert len(logged) == 3, "something else is said at once"


def test_a_commit_that_nobody_knows_of_is_always_told(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_seldom", Seldom(clock.monotonic))
    with capture_logs() as logged:
        for committing in (False, False, True, True):
            DatabaseLostError(error(psycopg.OperationalError), committing).tell(7)
    assert [(line["jobs"], line["committing"]) for line in logged] == [(7, False), (7, True), (7, True)]
