"""What of routes survives the end of a process, and what damage to the file takes away."""

from pathlib import Path

import pytest

from fleet.envelope import Signer
from fleet.v1 import trust_pb2
from fleet_node.routes.snapshot_file import Kept, SnapshotFile
from fleet_node.routes.snapshot_rules import NEVER, Authority, Floor, Snapshot, judge_snapshot
from tests.unit.fleet_node.routes.snapshots import authority, route, signed, statement


def saved(path: Path, version: int = 7, by: Authority | None = None) -> tuple[SnapshotFile, Snapshot]:
    by = by or authority()
    snapshot = judge_snapshot(signed(statement(route(), version=version)), by, NEVER)
    file = SnapshotFile(path)
    file.save(snapshot, by)
    return file, snapshot


def test_a_snapshot_comes_back_with_its_version_as_floor(tmp_path: Path) -> None:
    path = tmp_path / "routes.bin"
    assert SnapshotFile(path).load(authority()) == Kept()
    file, snapshot = saved(path)
    assert file.load(authority()) == Kept(snapshot, Floor(1, 7))
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_former_authority_signed_stays_until_there_is_something_newer(tmp_path: Path) -> None:
    file, snapshot = saved(tmp_path / "routes.bin")
    successor = Signer.generate()
    kept = file.load(authority(successor, 2))
    assert kept.snapshot == snapshot
    assert kept.floor.under(authority(successor, 2)) == 0


def test_a_damaged_snapshot_leaves_the_floor(tmp_path: Path) -> None:
    path = tmp_path / "routes.bin"
    file, _ = saved(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", whole[:-9] + bytes(8) + whole[-1:]):
        path.write_bytes(damaged)
        kept = file.load(authority())
        assert (kept.snapshot, kept.floor) == (None, Floor(1, 7))
        assert "is damaged: version 7 was the last one taken" in kept.problem


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 5000, b'{"format": 9}\n', b"\xff\xfe\n", b"\0" * 4096])
def test_a_file_that_tells_nothing_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "routes.bin"
    path.write_bytes(content)
    path.chmod(0o600)
    kept = SnapshotFile(path).load(authority())
    assert (kept.snapshot, kept.floor) == (None, NEVER)
    assert "is damaged" in kept.problem


def test_the_floor_that_the_file_names_must_be_the_snapshots(tmp_path: Path) -> None:
    path = tmp_path / "routes.bin"
    file, _ = saved(path)
    path.write_bytes(path.read_bytes().replace(b'"version": 7', b'"version": 6'))
    kept = file.load(authority())
    assert (kept.snapshot, kept.floor) == (None, Floor(1, 6))


def test_a_file_that_is_open_to_others_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "routes.bin"
    file, _ = saved(path)
    path.chmod(0o644)
    kept = file.load(authority())
    assert (kept.snapshot, kept.floor) == (None, NEVER)
    assert f"chmod 600 {path}" in kept.problem


def test_what_nobody_signed_is_forgotten_once_a_signature_is_required(tmp_path: Path) -> None:
    path, careless = tmp_path / "routes.bin", authority(required=False)
    file = SnapshotFile(path)
    unsigned = trust_pb2.Signed(statement=statement(route(), version=7).SerializeToString())
    file.save(judge_snapshot(unsigned, careless, NEVER), careless)
    assert file.load(careless).snapshot is not None
    kept = file.load(authority())
    assert (kept.snapshot, kept.floor) == (None, NEVER)
    assert "nobody signed" in kept.problem


def test_a_disk_that_takes_nothing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, snapshot = saved(tmp_path / "routes.bin")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fleet_node.routes.snapshot_file.write_private", full)
    newer = judge_snapshot(signed(statement(route(), version=8)), authority(), NEVER)
    with pytest.raises(OSError, match="No space left"):
        file.save(newer, authority())
    assert file.load(authority()).snapshot == snapshot
