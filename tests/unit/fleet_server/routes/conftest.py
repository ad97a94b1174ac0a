"""The routes room over both databases."""

import pytest

from fleet_server.database.engine import Database
from tests.fakes.clock import MockClock
from tests.unit.fleet_server.routes.mesh import Mesh, build


@pytest.fixture
async def mesh(database: Database, clock: MockClock) -> Mesh:
    """Three nodes with probe listeners."""
    made = await build(database, clock)
    await made.add_nodes("a", "b", "r")
    return made
