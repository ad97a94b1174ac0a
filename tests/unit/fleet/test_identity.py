"""Fingerprints that people compare, and private files that survive crashes and refuse company."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import identity
from fleet.identity import NodeKeys, PrivateFileError

raw_fingerprints = st.binary(min_size=identity.FINGERPRINT_BYTES, max_size=identity.FINGERPRINT_BYTES)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- fingerprints ----------------------------------------------------------------------------------------------------


@given(value=raw_fingerprints)
def test_a_fingerprint_is_eight_groups_of_four(value: bytes) -> None:
    groups = identity.show_fingerprint(value).split("-")
    assert len(groups) == 8
    assert {len(group) for group in groups} == {4}


@given(value=raw_fingerprints, data=st.data())
def test_a_fingerprint_survives_being_typed(value: bytes, data: st.DataObject) -> None:
    text = identity.show_fingerprint(value)
    typed = data.draw(
        st.sampled_from([text, text.lower(), text.replace("-", " "), text.replace("-", ""), f" {text}\n"])
    )
    assert identity.parse_fingerprint(typed) == value


@pytest.mark.parametrize("text", ["", "ABCD", "ABCD-EFGH-", "1" * 32, "A" * 31, "A" * 33, "A" * 40, "é" * 32])
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(ValueError):
        identity.parse_fingerprint(text)


def test_a_fingerprint_covers_both_keys_in_their_places() -> None:
    identity_key, sealing_key = b"\x01" * 32, b"\x02" * 32
    values = {
        identity.fingerprint(identity_key, sealing_key),
        identity.fingerprint(sealing_key, identity_key),
        identity.fingerprint(identity_key, identity_key),
        identity.fingerprint(b"\x03" * 32, sealing_key),
    }
    assert len(values) == 4


# --- node keys -------------------------------------------------------------------------------------------------------


def test_keys_come_back_as_they_were_stored(tmp_path: Path) -> None:
    folder = identity.private_folder(tmp_path / "state")
    keys = NodeKeys.generate()
    assert not identity.has_node_keys(folder)
    identity.store_node_keys(folder, keys)
    assert identity.has_node_keys(folder)
    found = identity.load_node_keys(folder)
    assert found.identity.public_key == keys.identity.public_key
    assert found.sealing_public == keys.sealing_public
    assert found.fingerprint == keys.fingerprint
    assert [mode(folder / name) for name in ("identity.key", "sealing.key")] == [0o600, 0o600]


def test_keys_never_show_themselves() -> None:
    keys = NodeKeys.generate()
    assert repr(keys) == f"NodeKeys({identity.show_fingerprint(keys.fingerprint)})"


def test_a_damaged_key_names_its_file(tmp_path: Path) -> None:
    identity.store_node_keys(tmp_path, NodeKeys.generate())
    identity.write_private(tmp_path / "sealing.key", b"short")
    with pytest.raises(PrivateFileError, match=r"sealing\.key holds 5 bytes instead of 32"):
        identity.load_node_keys(tmp_path)


def test_one_key_of_two_is_none(tmp_path: Path) -> None:
    identity.store_node_keys(tmp_path, NodeKeys.generate())
    (tmp_path / "sealing.key").unlink()
    assert not identity.has_node_keys(tmp_path)
    with pytest.raises(PrivateFileError, match=r"sealing\.key"):
        identity.load_node_keys(tmp_path)


# --- private folders -------------------------------------------------------------------------------------------------


def test_a_private_folder_is_made_closed(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        made = identity.private_folder(tmp_path / "a" / "state")
    finally:
        os.umask(old_mask)
    assert mode(made) == 0o700
    assert identity.private_folder(made) == made


@pytest.mark.parametrize("open_mode", [0o750, 0o705, 0o701, 0o770, 0o777])
def test_an_open_folder_is_refused_with_the_repair(tmp_path: Path, open_mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(open_mode)
    with pytest.raises(PrivateFileError, match=f"chmod 700 {folder}"):
        identity.private_folder(folder)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(PrivateFileError, match="as a folder"):
        identity.private_folder(tmp_path / "state")
    with pytest.raises(PrivateFileError, match="as a folder"):
        identity.private_folder(tmp_path / "state" / "below")


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = identity.private_folder(tmp_path / "state")
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PrivateFileError, match="another user"):
        identity.private_folder(folder)


# --- private files ---------------------------------------------------------------------------------------------------


def test_a_private_file_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    old_mask = os.umask(0)
    try:
        identity.write_private(path, b"one")
        path.chmod(0o644)
        identity.write_private(path, b"two")
    finally:
        os.umask(old_mask)
    assert mode(path) == 0o600
    assert identity.read_private(path) == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("open_mode", [0o640, 0o604, 0o620, 0o666])
def test_an_open_file_is_refused_with_the_repair(tmp_path: Path, open_mode: int) -> None:
    path = tmp_path / "secret"
    identity.write_private(path, b"content")
    path.chmod(open_mode)
    with pytest.raises(PrivateFileError, match=f"chmod 600 {path}"):
        identity.read_private(path)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    identity.write_private(target, b"target")
    link.symlink_to(target)
    with pytest.raises(PrivateFileError, match="cannot read"):
        identity.read_private(link)
    identity.write_private(link, b"mine")
    assert not link.is_symlink()
    assert target.read_bytes() == b"target"


def test_a_scratch_file_that_somebody_put_there_is_not_written_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    (tmp_path / f".secret.{os.getpid()}.new").symlink_to(elsewhere)
    identity.write_private(tmp_path / "secret", b"content")
    assert elsewhere.read_bytes() == b"untouched"
    assert identity.read_private(tmp_path / "secret") == b"content"


def test_a_fifo_in_place_of_a_file_does_not_hang_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(PrivateFileError, match="no plain file"):
        identity.read_private(tmp_path / "secret")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    identity.private_folder(tmp_path / "secret")
    with pytest.raises(PrivateFileError, match="no plain file"):
        identity.read_private(tmp_path / "secret")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PrivateFileError, match="No such file"):
        identity.read_private(tmp_path / "secret")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_while_writing_leaves_the_old_file_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "secret"
    identity.write_private(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(OSError, match="No space left"):
        identity.write_private(path, b"new")
    monkeypatch.undo()
    assert identity.read_private(path) == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_content_is_durable_before_its_name_and_its_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def seen_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    identity.write_private(tmp_path / "secret", b"content")
    assert order == ["file", "rename", "folder"]
