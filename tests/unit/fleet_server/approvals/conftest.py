"""The plant under test."""

import pytest

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.approvals.plant import Plant, build


@pytest.fixture
async def plant(database: Database, clock: MockClock) -> Plant:
    """A cluster without people, on a database of either kind."""
    return await build(database, clock)
