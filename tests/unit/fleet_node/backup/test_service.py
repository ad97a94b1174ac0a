"""What an archive holds is what one moment of the node saw, whatever the daemon replaces meanwhile."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.clock import SystemClock
from fleet.identity import NodeKeys, load_node_keys, read_private, store_node_keys, write_private
from fleet.secrets import Secret
from fleet_node.backup import service
from fleet_node.backup.archive import unseal
from fleet_node.commands.opening import copy_journal, ensure_journal
from fleet_node.enrollment.folder import StateFolder

CHEAP = 2
NODE = "node-1"
PASSPHRASE = Secret("correct horse battery")
OLD, NEW = NodeKeys.generate(), NodeKeys.generate()


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    store_node_keys(folder.path, OLD)
    write_private(folder.membership, b"old api_key")
    write_private(folder.bundle, b"bundle")
    write_private(folder.ratchet, b"old ratchet")
    write_private(folder.rotation, b"new keys")
    ensure_journal(folder.journal, NODE)
    return folder


def back_up(folder: StateFolder, meanwhile: Callable[[], None] = lambda: None) -> dict[str, bytes]:
    """The files of an archive; `meanwhile` happens each time that the journal is copied."""

    def copying(to: Path) -> None:
        copy_journal(folder.journal, NODE, to)
        meanwhile()

    archive = folder.path.parent / "node.backup"
    service.back_up(folder, archive, PASSPHRASE, node_id=NODE, copy_journal=copying, clock=SystemClock(), cost=CHEAP)
    return unseal(archive.read_bytes(), PASSPHRASE, cost=CHEAP)


def settle(folder: StateFolder) -> None:
    """What a daemon does when the server was met with the new keys."""
    store_node_keys(folder.path, NEW)
    folder.rotation.unlink(missing_ok=True)


NAMES = ["identity.key", "sealing.key", "membership.json", "bundle.bin", "ratchet.bin", "rotation.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_rotation_that_ends_while_files_are_read_tears_nothing(
    folder: StateFolder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racing(path: Path) -> bytes:
        content = read_private(path)
        if path.name == name and folder.rotation.exists():
            settle(folder)
        return content

    monkeypatch.setattr(service, "read_private", racing)
    files = back_up(folder)
    assert (files["identity.key"], files["sealing.key"]) == (
        NEW.identity.private_bytes(),
        NEW.sealing.private_bytes_raw(),
    )
    assert "rotation.json" not in files


def test_what_is_replaced_while_the_journal_is_copied_is_in_the_archive(folder: StateFolder) -> None:
    def meanwhile() -> None:
        settle(folder)
        write_private(folder.membership, b"new api_key")
        write_private(folder.ratchet, b"new ratchet")

    files = back_up(folder, meanwhile)
    assert (files["membership.json"], files["ratchet.bin"]) == (b"new api_key", b"new ratchet")
    assert files["identity.key"] == load_node_keys(folder.path).identity.private_bytes()


def test_a_journal_is_never_older_than_the_ratchet_beside_it(folder: StateFolder) -> None:
    copies: Iterator[int] = iter(range(10))
    taken = []

    def meanwhile() -> None:
        number = next(copies)
        taken.append(number)
        if number < 2:
            write_private(folder.ratchet, b"ratchet %d" % number)

    assert back_up(folder, meanwhile)["ratchet.bin"] == b"ratchet 1"
    assert taken == [0, 1, 2]  # and the journal is the one that was copied after it


def test_a_node_that_does_not_hold_still_is_not_backed_up(folder: StateFolder) -> None:
    changes = iter(range(100))
    with pytest.raises(service.BackupError, match="try again"):
        back_up(folder, lambda: write_private(folder.ratchet, b"%d" % next(changes)))
    assert not (folder.path.parent / "node.backup").exists()
    assert not list(folder.path.glob("*.copy"))
