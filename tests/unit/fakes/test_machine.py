"""Where the tests' files stand, and by how many they are run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import machine

GIB = 1024**3


def has(monkeypatch: pytest.MonkeyPatch, *, cores: int = 2, memory: int = 64 * GIB, room: int = 64 * GIB) -> None:
    """Run on such a machine."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=memory))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=room))


@pytest.mark.parametrize(
    ("cores", "memory", "expected"), [(1, 64, 2), (2, 64, 3), (4, 64, 5), (64, 64, 8), (8, 3, 3), (2, 0.5, 1)]
)
def test_one_worker_more_than_cores_as_far_as_memory_goes(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory: float, expected: int
) -> None:
    has(monkeypatch, cores=cores, memory=int(memory * GIB))
    assert machine.workers() == expected


def test_files_stand_in_memory_where_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has(monkeypatch)
    monkeypatch.setattr("os.statvfs", lambda place: SimpleNamespace(f_flag=0))
    assert machine.folder_in_memory(tmp_path) == tmp_path
    assert machine.folder_in_memory(tmp_path / "none") is None
    for small in ({"memory": GIB}, {"room": GIB}):
        has(monkeypatch, **small)
        assert machine.folder_in_memory(tmp_path) is None


def test_files_stand_where_a_program_of_a_test_may_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has(monkeypatch)
    monkeypatch.setattr("os.statvfs", lambda place: SimpleNamespace(f_flag=machine.os.ST_NOEXEC))
    assert machine.folder_in_memory(tmp_path) is None
