"""The rooms of one replica over both databases."""

import pytest

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.sessions.world import World


@pytest.fixture
async def world(database: Database, clock: MockClock) -> World:
    """Rooms that are ready to be called."""
    return await World(database, clock).start()
