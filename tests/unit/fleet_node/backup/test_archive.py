"""What goes into an archive comes out of it under the same passphrase, and nothing comes out otherwise."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.secrets import Secret
from fleet_node.backup import archive
from fleet_node.backup.archive import MIN_PASSPHRASE_CHARS, ArchiveError, seal, unseal

CHEAP = 2
PASSPHRASE = Secret("correct horse battery")
_names = st.text("abcdefghij.", min_size=1, max_size=20)


@given(st.dictionaries(_names, st.binary(max_size=500), max_size=5))
@settings(max_examples=30)
def test_files_come_back_as_they_were(files: dict[str, bytes]) -> None:
    assert unseal(seal(files, PASSPHRASE, cost=CHEAP), PASSPHRASE, cost=CHEAP) == files


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=50)
def test_no_byte_can_be_changed(place: int, change: int) -> None:
    whole = bytearray(seal({"identity.key": b"k" * 32}, PASSPHRASE, cost=CHEAP))
    whole[place % len(whole)] ^= change
    with pytest.raises(ArchiveError):
        unseal(bytes(whole), PASSPHRASE, cost=CHEAP)


@pytest.mark.parametrize("content", [b"", b"fleet-node backup 1\n", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_named_so(content: bytes) -> None:
    with pytest.raises(ArchiveError, match="no backup"):
        unseal(content, PASSPHRASE, cost=CHEAP)


def test_another_passphrase_opens_nothing() -> None:
    whole = seal({"identity.key": b"k" * 32}, PASSPHRASE, cost=CHEAP)
    with pytest.raises(ArchiveError, match="passphrase"):
        unseal(whole, Secret("correct horse batterY"), cost=CHEAP)


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(ArchiveError, match=str(MIN_PASSPHRASE_CHARS)):
        seal({}, Secret("x" * (MIN_PASSPHRASE_CHARS - 1)), cost=CHEAP)


def test_a_passphrase_opens_however_its_characters_are_composed() -> None:
    whole = seal({"a": b"b"}, Secret("K\u00f6nigsgem\u00fcse"), cost=CHEAP)
    assert unseal(whole, Secret("Ko\u0308nigsgemu\u0308se"), cost=CHEAP) == {"a": b"b"}


def test_what_could_not_be_restored_is_not_backed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"journal.db": os.urandom(1000)}
    whole = seal(files, PASSPHRASE, cost=CHEAP)
    monkeypatch.setattr(archive, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(ArchiveError, match="reach its gateway"):
        seal(files, PASSPHRASE, cost=CHEAP)
    with pytest.raises(ArchiveError, match="larger"):
        unseal(whole, PASSPHRASE, cost=CHEAP)


def test_two_archives_of_one_node_have_nothing_in_common() -> None:
    files = {"identity.key": b"k" * 32}
    first, second = seal(files, PASSPHRASE, cost=CHEAP), seal(files, PASSPHRASE, cost=CHEAP)
    assert first[20:48] != second[20:48]
    assert first[48:] != second[48:]
    assert b"identity" not in first
