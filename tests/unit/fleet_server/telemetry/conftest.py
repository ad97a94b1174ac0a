"""The room under test."""

from collections.abc import AsyncIterator

import pytest

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import open_room
from tests.unit.fleet_server.telemetry.room import TelemetryRoom, service


@pytest.fixture
async def room(database: Database, clock: MockClock) -> AsyncIterator[TelemetryRoom]:
    """A telemetry room on an empty database of either kind."""
    neighbours = await open_room(database, clock)
    opened = TelemetryRoom(service(neighbours), neighbours, clock)
    yield opened
    opened.telemetry.close()
