"""The room under test."""

import pytest

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.commands.room import Room, open_room


@pytest.fixture
async def room(database: Database, clock: MockClock) -> Room:
    """A commands room on an empty database of either kind."""
    return await open_room(database, clock)
