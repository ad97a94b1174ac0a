from pathlib import Path

import pytest

from fleet_node.enrollment.folder import StateFolder


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    """An empty state folder."""
    return StateFolder(tmp_path / "state")
