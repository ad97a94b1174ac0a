from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_node.enrollment.folder import StateFolder
from tests.fakes.gateway import FakeGateway, FakeInstallation


@pytest.fixture
def installation() -> FakeInstallation:
    return FakeInstallation()


@pytest.fixture
async def gateway(installation: FakeInstallation) -> AsyncIterator[FakeGateway]:
    started = FakeGateway(installation)
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")
