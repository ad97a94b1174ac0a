from collections.abc import AsyncIterator

import pytest

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
