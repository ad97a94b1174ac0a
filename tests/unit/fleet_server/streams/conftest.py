"""A stream with fakes around it."""

import pytest

from tests.fakes.clock import MockClock
from tests.unit.fleet_server.streams.wire import Wire


@pytest.fixture
async def wire(clock: MockClock) -> Wire:
    running = Wire(clock)
    await running.settle()
    assert running.kinds() == ["welcome"]
    return running
