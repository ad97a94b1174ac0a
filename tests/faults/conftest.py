"""Installations whose parts tests kill."""

import pytest

from tests.integration.conftest import hasty, installation, quick, template

__all__ = ["hasty", "installation", "quick", "template"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first: one worker is at it while the other does many, and nobody waits at the end."""
    items.sort(key=lambda item: item.path.name != "test_chaos.py")
