from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from fleet_node.commands.protection import Verifier
from tests.fakes.clock import MockClock
from tests.properties.persons import FINGERPRINT, NAME, NODE
from tests.unit.fleet_node.commands.node import TestNode
from tests.unit.fleet_node.commands.protected import Persons


@pytest_asyncio.fixture
async def node(tmp_path: Path, clock: MockClock) -> AsyncIterator[TestNode]:
    """A node with an empty journal and an open stream."""
    node = TestNode(tmp_path, clock)
    node.open_stream()
    yield node
    await node.close()


@pytest.fixture
def persons() -> Persons:
    return Persons()


@pytest.fixture
def verifier(persons: Persons) -> Verifier:
    return Verifier(NODE, NAME, lambda: FINGERPRINT, persons, ("probe.gate", "probe.large"))
