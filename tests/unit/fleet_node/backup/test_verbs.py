"""`fleet-node backup` and `restore` as a person uses them."""

import stat
from pathlib import Path

import pytest

from fleet_node.commands.opening import inspect_journal
from fleet_node.commands.store import JournalStore
from fleet_node.enrollment.folder import StateFolder
from tests.fakes.gateway import NODE, FakeGateway
from tests.unit.fleet_node.program import NO_OVERRIDE, Ended, end, fleet_node, start


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text("correct horse battery\n")
    return path


async def back_up(member: StateFolder, to: Path, passphrase: Path) -> Ended:
    return await fleet_node("backup", to, "--state-dir", member.path, "--passphrase-file", passphrase)


async def restore(archive: Path, to: Path, passphrase: Path) -> Ended:
    return await fleet_node("restore", archive, "--state-dir", to, "--passphrase-file", passphrase)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_node_moves_to_another_folder_and_runs_there(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path, passphrase: Path
) -> None:
    archive, moved = tmp_path / "node.backup", tmp_path / "moved"
    made = await back_up(member, archive, passphrase)
    assert (made.code, mode(archive)) == (0, 0o600), made.err
    assert NODE in made.out
    assert member.path.joinpath("identity.key").read_bytes() not in archive.read_bytes()
    restored = await restore(archive, moved, passphrase)
    assert restored.code == 0, restored.err
    assert "fleet-node run" in restored.out
    assert mode(moved) == 0o700
    assert all(mode(path) == 0o600 for path in moved.iterdir())
    for name in ("identity.key", "sealing.key", "membership.json", "bundle.bin"):
        assert (moved / name).read_bytes() == (member.path / name).read_bytes()
    assert inspect_journal(moved / "journal.db", NODE).rows == 0
    store = JournalStore(moved / "journal.db", NODE)  # what it used since the backup was made it cannot know
    assert store.recover().used.issued_after_ms > 0
    store.close()
    process = await start("run", "--state-dir", moved)
    await gateway.wait_stream()
    process.terminate()
    assert (await end(process)).code == 0


async def test_a_running_daemon_copies_its_own_journal(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path, passphrase: Path
) -> None:
    process = await start("run", "--state-dir", member.path)
    await gateway.wait_stream()
    made = await back_up(member, tmp_path / "node.backup", passphrase)
    assert made.code == 0, made.err
    process.terminate()
    assert (await end(process)).code == 0
    assert not list(member.path.glob("*.copy"))
    restored = await restore(tmp_path / "node.backup", tmp_path / "moved", passphrase)
    assert restored.code == 0, restored.err
    assert (tmp_path / "moved" / "ratchet.bin").exists() == (member.path / "ratchet.bin").exists()


async def test_mistakes_are_told_and_change_nothing(
    gateway: FakeGateway, member: StateFolder, tmp_path: Path, passphrase: Path
) -> None:
    del gateway
    archive = tmp_path / "node.backup"
    stranger = await fleet_node("backup", archive, "--state-dir", tmp_path / "nobody", "--passphrase-file", passphrase)
    assert (stranger.code, "not enrolled" in stranger.err) == (2, True)
    assert (await back_up(member, archive, passphrase)).code == 0
    again = await back_up(member, archive, passphrase)
    assert (again.code, "never overwritten" in again.err) == (2, True)
    occupied = await restore(archive, member.path, passphrase)
    assert (occupied.code, "not empty" in occupied.err) == (2, True)
    for nowhere in (tmp_path / "nowhere" / "node.backup", archive / "node.backup"):
        lost = await back_up(member, nowhere, passphrase)
        assert (lost.code, "state folder" in lost.err, str(nowhere.parent) in lost.err) == (2, False, True)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    args = ("backup", closed / "node.backup", "--state-dir", member.path, "--passphrase-file", passphrase)
    shut_out = await fleet_node(*args, program=NO_OVERRIDE)
    assert (shut_out.code, "state folder" in shut_out.err, str(closed) in shut_out.err) == (2, False, True)
    full = await fleet_node(
        "backup",
        tmp_path / "full",
        "--state-dir",
        member.path,
        "--passphrase-file",
        passphrase,
        prelude="from fleet_node.backup import service; import errno\n"
        "def full(path, content): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "service.write_private = full\n",
    )
    assert (full.code, "state folder" in full.err, "No space left" in full.err) == (2, False, True)
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("another passphrase\n")
    refused = await restore(archive, tmp_path / "moved", wrong)
    assert (refused.code, "passphrase" in refused.err) == (2, True)
    passphrase.write_bytes(b"\xff" * 32)
    for verb in (back_up(member, tmp_path / "another.backup", passphrase), restore(archive, tmp_path, passphrase)):
        unreadable = await verb
        assert (unreadable.code, "UTF-8" in unreadable.err) == (2, True)
    assert not (tmp_path / "another.backup").exists()
    passphrase.chmod(0o644)
    exposed = await restore(archive, tmp_path / "moved", passphrase)
    assert exposed.code == 1
    assert not (tmp_path / "moved").exists()
    assert not list(tmp_path.glob(".moved*"))
