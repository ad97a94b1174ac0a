"""Installations whose parts tests kill."""

import pytest

from fleet_server.database import engine, writer
from tests.integration.conftest import hasty, installation, quick, template

__all__ = ["hasty", "installation", "quick", "template"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first: one worker is at it while the other does many, and nobody waits at the end."""
    items.sort(key=lambda item: item.path.name != "test_chaos.py")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up after a second, where it takes fifteen."""
    monkeypatch.setattr(writer, "STALL_S", 1.0)
    monkeypatch.setattr(engine, "READ_TIMEOUT_S", 1.0)
