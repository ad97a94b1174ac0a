from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet_node.enrollment.folder import StateFolder
from tests.fakes.gateway import FakeGateway, FakeInstallation
from tests.unit.fleet_node.enrolled import enrolled_folder


@pytest.fixture
def installation() -> FakeInstallation:
    """Keys and CA of a cluster."""
    return FakeInstallation()


@pytest.fixture
async def gateway(installation: FakeInstallation) -> AsyncIterator[FakeGateway]:
    """A gateway of that cluster."""
    started = FakeGateway(installation)
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
def member(installation: FakeInstallation, gateway: FakeGateway, tmp_path: Path) -> StateFolder:
    """The state folder of an enrolled node."""
    return enrolled_folder(installation, tmp_path / "state")
