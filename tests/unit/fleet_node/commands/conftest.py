from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.fakes.clock import MockClock
from tests.unit.fleet_node.commands.node import TestNode


@pytest_asyncio.fixture
async def node(tmp_path: Path, clock: MockClock) -> AsyncIterator[TestNode]:
    """A node with an empty journal and an open stream."""
    node = TestNode(tmp_path, clock)
    node.open_stream()
    yield node
    await node.close()
