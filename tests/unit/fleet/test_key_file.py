"""People's keys under a passphrase: what opens, and everything that does not."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fleet import key_file
from fleet.envelope import Domain, is_small_order, verify_one
from fleet.key_file import (
    ExposedKeyFileError,
    KeyFileError,
    KeyFileExistsError,
    NotAKeyFileError,
    WeakPassphraseError,
    WrongKeyTypeError,
    WrongPassphraseError,
    create_key_file,
    load_key_file,
    parse_public_key,
    read_public_key,
    show_public_key,
)
from fleet.secrets import Secret

CHEAP = 2**4
PASSPHRASE = "correct horse battery"


def says(text: str) -> key_file.AskPassphrase:
    return lambda: Secret(text)


def never() -> Secret[str]:
    raise AssertionError("nobody needed to be asked")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "root.key"
    create_key_file(found, says(PASSPHRASE), scrypt_cost=CHEAP)
    return found


def test_a_key_comes_back_and_signs_as_before(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    made = create_key_file(path, says(PASSPHRASE), scrypt_cost=CHEAP)
    found = load_key_file(path, says(PASSPHRASE))
    assert found.private_bytes() == made.private_bytes()
    signed = found.sign(Domain.ACTIVATION, b"statement")
    assert verify_one(signed, domain=Domain.ACTIVATION, public_key=made.public_key) == b"statement"


def test_the_full_cost_opens_too(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    made = create_key_file(path, says(PASSPHRASE))
    assert load_key_file(path, says(PASSPHRASE)).public_key == made.public_key


def test_the_public_half_needs_no_passphrase(path: Path) -> None:
    assert read_public_key(path) == load_key_file(path, says(PASSPHRASE)).public_key


def test_the_file_is_for_its_owner_alone_and_holds_no_plain_key(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seed = load_key_file(path, says(PASSPHRASE)).private_bytes()
    assert seed not in path.read_bytes()
    assert PASSPHRASE.encode() not in path.read_bytes()


def test_two_files_under_one_passphrase_share_nothing(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        create_key_file(tmp_path / name, says(PASSPHRASE), scrypt_cost=CHEAP)
        texts.append((tmp_path / name).read_text().splitlines())
    assert texts[0][0] != texts[1][0]
    assert texts[0][2:-1] != texts[1][2:-1]


def test_a_passphrase_opens_however_its_letters_were_composed(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    create_key_file(path, says("caf\u00e9 au lait, twice"), scrypt_cost=CHEAP)
    assert load_key_file(path, says("cafe\u0301 au lait, twice")).public_key == read_public_key(path)


@pytest.mark.parametrize("text", ["", "short", "elevenchars"])
def test_a_short_new_passphrase_is_refused_and_nothing_written(tmp_path: Path, text: str) -> None:
    with pytest.raises(WeakPassphraseError, match="12 characters"):
        create_key_file(tmp_path / "root.key", says(text), scrypt_cost=CHEAP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "correct horse batterY", PASSPHRASE + " ", "\udcff" * 12])
def test_a_wrong_passphrase_is_refused(path: Path, text: str) -> None:
    with pytest.raises(WrongPassphraseError, match="passphrase"):
        load_key_file(path, says(text))


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_ever_overwritten(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "root.key"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileExistsError, match="exists"):
        create_key_file(path, never, scrypt_cost=CHEAP)
    assert not (tmp_path / "elsewhere").exists()


def test_one_that_appears_while_the_person_types_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "root.key"

    def slow() -> Secret[str]:
        path.write_text("precious")
        return Secret(PASSPHRASE)

    with pytest.raises(KeyFileExistsError):
        create_key_file(path, slow, scrypt_cost=CHEAP)
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nowhere"):
        create_key_file(tmp_path / "nowhere" / "root.key", says(PASSPHRASE), scrypt_cost=CHEAP)


def test_what_could_not_be_written_whole_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        create_key_file(tmp_path / "root.key", says(PASSPHRASE), scrypt_cost=CHEAP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused_before_anybody_is_asked(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(ExposedKeyFileError, match="chmod 600"):
        load_key_file(path, never)
    with pytest.raises(ExposedKeyFileError, match="chmod 600"):
        read_public_key(path)


def test_a_missing_file_and_a_link_are_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ExposedKeyFileError, match="cannot read"):
        load_key_file(tmp_path / "none.key", never)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    with pytest.raises(ExposedKeyFileError):
        load_key_file(link, never)


def private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n",
        b"\xff\xfe\n",
        b"ed25519:AAAA\n-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_key_file(tmp_path: Path, content: bytes) -> None:
    path = private(tmp_path / "x.key", content)
    for use in (lambda: load_key_file(path, never), lambda: read_public_key(path)):
        with pytest.raises(NotAKeyFileError, match=r"x\.key"):
            use()


def test_an_unencrypted_key_is_no_key_file(tmp_path: Path, path: Path) -> None:
    header = path.read_bytes().partition(b"\n")[0]
    bare = b"\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    with pytest.raises(NotAKeyFileError):
        load_key_file(private(tmp_path / "x.key", header + bare), never)


def test_a_file_of_any_size_is_no_key_file(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n" * key_file.MAX_FILE_BYTES)
    with pytest.raises(NotAKeyFileError):
        load_key_file(path, never)


def test_another_kind_of_key_is_refused(tmp_path: Path, path: Path) -> None:
    header = path.read_bytes().partition(b"\n")[0] + b"\n"
    other = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.encode())
    )
    with pytest.raises(WrongKeyTypeError, match="Ed25519"):
        load_key_file(private(tmp_path / "x.key", header + other), says(PASSPHRASE))


def test_a_swapped_public_half_is_found(tmp_path: Path, path: Path) -> None:
    create_key_file(tmp_path / "b", says(PASSPHRASE), scrypt_cost=CHEAP)
    header = (tmp_path / "b").read_bytes().partition(b"\n")[0]
    rest = path.read_bytes().partition(b"\n")[2]
    with pytest.raises(NotAKeyFileError, match="another public key"):
        load_key_file(private(tmp_path / "x.key", header + b"\n" + rest), says(PASSPHRASE))


@given(position=st.integers(min_value=0), value=st.integers(min_value=0, max_value=255))
def test_no_changed_byte_gives_another_key(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("changed")
    made = create_key_file(folder / "a", says(PASSPHRASE), scrypt_cost=CHEAP)
    content = bytearray((folder / "a").read_bytes())
    content[position % len(content)] = value
    try:
        found = load_key_file(private(folder / "b", bytes(content)), says(PASSPHRASE))
    except KeyFileError:
        return
    assert found.private_bytes() == made.private_bytes()


@given(raw=st.binary(min_size=32, max_size=32))
def test_a_public_key_survives_being_pasted(raw: bytes) -> None:
    try:
        assert parse_public_key(f"  {show_public_key(raw)}\n") == raw
    except ValueError:
        assert is_small_order(raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "ed25519",
        show_public_key(b"\x09" * 31),
        show_public_key(b"\x00" * 32),
        "rsa:" + show_public_key(b"\x09" * 32).partition(":")[2],
        show_public_key(b"\x09" * 32) + "!",
        "é" * 44,
    ],
)
def test_what_is_no_public_key(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        parse_public_key(text)
