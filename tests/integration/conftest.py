"""Installations for tests."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.clock import QuickClock
from tests.integration.installation import Installation, Template, make_template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """An initialised server that never ran."""
    made = make_template()
    yield made
    shutil.rmtree(made.data.parent)


@pytest.fixture
async def installation(tmp_path: Path, template: Template) -> AsyncIterator[Installation]:
    """A running server without nodes."""
    async with Installation(tmp_path, template) as running:
        yield running


@pytest.fixture
async def quick(tmp_path: Path, template: Template) -> AsyncIterator[Installation]:
    """A running server whose time, and whose nodes' time, runs ten times as fast."""
    async with Installation(tmp_path, template, clock=QuickClock(speed=10), heartbeat_interval_s=4) as running:
        yield running


@pytest.fixture
async def hasty(tmp_path: Path, template: Template) -> AsyncIterator[Installation]:
    """A running server whose time runs a hundred times as fast, so that limits per second stand in nobody's way."""
    async with Installation(tmp_path, template, clock=QuickClock(speed=100), heartbeat_interval_s=300) as running:
        yield running
