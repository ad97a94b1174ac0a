"""A restored node gets into its place whole or not at all, wherever that is and whatever ends it."""

import os
import stat
from pathlib import Path

import pytest

from fleet_node.backup.placement import LAST, PlacementError, draft_of

FILES = {"identity.key": b"i", "journal.db": b"j", LAST: b"m", "rotation.json": b"r"}


def fill(draft: Path) -> None:
    for name, content in FILES.items():
        (draft / name).write_bytes(content)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent" / "state"


@pytest.mark.parametrize("there", [False, True])
def test_a_whole_node_takes_its_place(place: Path, there: bool) -> None:
    if there:
        place.mkdir(mode=0o755)
    with draft_of(place) as draft:
        fill(draft)
        assert stat.S_IMODE(draft.stat().st_mode) == 0o700
    assert held(place) == FILES
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert [path.name for path in place.parent.iterdir()] == ["state"]
    assert len(list(place.iterdir())) == len(FILES)


def test_a_folder_that_is_there_stays_and_nothing_is_written_beside_it(place: Path) -> None:
    place.mkdir()
    (place / "lost+found").mkdir()  # the root of a disk of its own has one
    before = place.stat().st_ino, place.parent.stat().st_mtime_ns
    with draft_of(place) as draft:
        fill(draft)
    assert (place.stat().st_ino, place.parent.stat().st_mtime_ns) == before
    assert held(place) == FILES


@pytest.mark.parametrize("there", [False, True])
def test_a_restore_that_fails_leaves_nothing(place: Path, there: bool) -> None:
    if there:
        place.mkdir()
    with pytest.raises(KeyboardInterrupt), draft_of(place) as draft:
        fill(draft)
        raise KeyboardInterrupt
    assert place.exists() == there
    assert not there or not list(place.iterdir())
    assert len(list(place.parent.iterdir())) == there


@pytest.mark.parametrize("moves", range(len(FILES)))
def test_a_half_restore_never_looks_whole(place: Path, moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    rename, moved = Path.rename, []

    def failing(path: Path, to: Path) -> Path:
        assert LAST not in held(place)
        if len(moved) == moves:
            raise OSError("the disk fails")
        moved.append(to.name)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk fails"), draft_of(place) as draft:
        fill(draft)
    assert len(moved) == moves
    assert not list(place.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_restore_left_is_cleared_away(place: Path, there: bool) -> None:
    left = place / ".restoring-0123" if there else place.parent / ".state.01234567.restoring"
    others = place.parent / ".state-2.01234567.restoring", place.parent / ".state.old.restoring"
    for folder in (left, *others):
        folder.mkdir(parents=True)
        (folder / "identity.key").write_bytes(b"other")
    with draft_of(place) as draft:
        fill(draft)
    assert not left.exists(), "there are keys in it"
    assert [folder.exists() for folder in others] == [True, True]
    assert held(place) == FILES


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_in_the_folder_is_not_touched(place: Path, interrupted: bool) -> None:
    place.mkdir()
    (place / "identity.key").write_bytes(b"other")
    if interrupted:
        (place / ".restoring-0123").mkdir()
    said = "a restore was interrupted here" if interrupted else "move what is there away"
    with pytest.raises(PlacementError, match=said), draft_of(place):
        pass
    assert held(place) == {"identity.key": b"other"}
    assert (place / ".restoring-0123").exists() == interrupted


def test_a_symbolic_link_is_not_followed(place: Path) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to(place.parent / "real")
    with pytest.raises(PlacementError, match="symbolic link"), draft_of(place):
        pass


def test_nobody_restores_into_another_users_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    owner = place.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PlacementError, match=r"sudo -u .* fleet-node restore"), draft_of(place):
        pass
    assert not list(place.iterdir())
