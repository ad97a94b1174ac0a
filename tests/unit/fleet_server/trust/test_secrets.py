import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.secrets import Secret
from fleet_server.trust.secrets import (
    SealError,
    SecretKeyError,
    Secrets,
    make_key_file,
    parse_master_key,
    read_key_file,
)

MASTER = Secret(bytes(range(32)))
secrets = Secrets(MASTER)
fields = st.lists(st.one_of(st.binary(max_size=20), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1)), max_size=6)


@given(plaintext=st.binary(max_size=200), row=st.text(max_size=30))
def test_what_is_sealed_opens_in_its_row_only(plaintext: bytes, row: str) -> None:
    sealed = secrets.box.seal(plaintext, row=row)
    assert secrets.box.unseal(sealed, row=row) == plaintext
    with pytest.raises(SealError):
        secrets.box.unseal(sealed, row=row + "x")
    assert plaintext not in sealed or len(plaintext) < 4


@given(position=st.integers(0, 84), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(position: int, bit: int) -> None:
    sealed = bytearray(secrets.box.seal(b"x" * 32, row="r"))
    sealed[position] ^= 1 << bit
    with pytest.raises(SealError):
        secrets.box.unseal(bytes(sealed), row="r")


@given(length=st.integers(0, 84))
def test_a_truncated_value_is_found(length: int) -> None:
    sealed = secrets.box.seal(b"x" * 32, row="r")
    with pytest.raises(SealError):
        secrets.box.unseal(sealed[:length], row="r")


def test_another_master_key_is_named_as_the_cause() -> None:
    sealed = secrets.box.seal(b"x", row="command_keys/1")
    with pytest.raises(SealError, match=r"another secret encryption key.*FLEET_SECRET_ENCRYPTION_KEY"):
        Secrets(Secret(os.urandom(32))).box.unseal(sealed, row="command_keys/1")


def test_sealing_twice_shows_nothing_in_common() -> None:
    first, second = (secrets.box.seal(b"same", row="r") for _ in range(2))
    assert first[9:] != second[9:]


@given(first=fields, second=fields)
def test_a_row_mac_tells_any_two_rows_apart(first: list[bytes | str | int], second: list[bytes | str | int]) -> None:
    mac = secrets.row_mac("nodes")
    same = [(type(field), field) for field in first] == [(type(field), field) for field in second]
    assert mac.verify(mac.compute(*first), *second) == same


def test_a_row_mac_serves_in_no_other_table_and_under_no_other_key() -> None:
    made = secrets.row_mac("nodes").compute("n-1", 1, b"k")
    assert secrets.row_mac("nodes").verify(made, "n-1", 1, b"k")
    assert not secrets.row_mac("operators").verify(made, "n-1", 1, b"k")
    assert not Secrets(Secret(os.urandom(32))).row_mac("nodes").verify(made, "n-1", 1, b"k")
    assert not secrets.row_mac("nodes").verify(b"", "n-1", 1, b"k")


@pytest.mark.parametrize("field", [1.9, 1.0, None, "1", 2**64])
def test_a_row_mac_takes_no_other_type_for_a_number(field: object) -> None:
    """SQLite keeps a fraction in a column of whole numbers, and 0.9 is both 0 to int() and true to bool()."""
    mac = secrets.row_mac("join_tokens")
    assert not mac.verify(mac.compute("jt-1", 1), "jt-1", field)  # type: ignore[arg-type]
    assert not mac.verify("text", "jt-1", 1)  # type: ignore[arg-type]


def test_derived_keys_are_stable_and_unrelated() -> None:
    assert Secrets(MASTER).derive("challenge") == secrets.derive("challenge")
    assert len({secrets.derive(purpose) for purpose in ("challenge", "api-key", "seal", "row-mac")}) == 4


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_master_key_is_32_bytes_of_base64(encode: "type[bytes]") -> None:
    raw = bytes([255, 254] * 16)
    text = encode(raw).decode()
    for form in (text, text.rstrip("="), f"{text}\n", f"  {text} "):
        assert parse_master_key(Secret(form), "the test").reveal() == raw


@pytest.mark.parametrize("text", ["", "short", "hunter2 hunter2 !!", base64.b64encode(bytes(31)).decode(), "é" * 43])
def test_a_bad_master_key_is_refused_with_the_way_to_make_one_and_without_itself(text: str) -> None:
    with pytest.raises(SecretKeyError, match="openssl rand -base64 32") as refused:
        parse_master_key(Secret(text), "FLEET_SECRET_ENCRYPTION_KEY")
    assert "FLEET_SECRET_ENCRYPTION_KEY" in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_key_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with pytest.raises(SecretKeyError, match=r"secret\.key"):
        read_key_file(path)
    made = make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == made
    path.chmod(0o644)
    with pytest.raises(SecretKeyError, match="chmod 600"):
        read_key_file(path)


def test_nothing_of_a_key_prints() -> None:
    raw = MASTER.reveal()
    for thing in (secrets, secrets.box, secrets.row_mac("nodes")):
        assert raw.hex() not in repr(thing) and repr(raw) not in repr(thing)


def test_secrets_of_two_keys_open_under_both_and_write_under_one() -> None:
    first, second = Secret(bytes(32)), Secret(bytes(31) + b"\x01")
    both, old = Secrets(second, first), Secrets(first)
    sealed, mac = old.box.seal(b"x", row="r"), old.row_mac("nodes").compute("x")
    marks = both.row_mac("nodes")
    assert both.box.unseal(sealed, row="r") == b"x"
    assert marks.verify(mac, "x")
    assert marks.compute("x") != mac
    assert both.write_under(old.key_ids[0])
    assert marks.compute("x") == mac
    assert both.key_ids == (old.key_ids[0], Secrets(second).key_ids[0])
    assert not both.write_under(b"another!")
    assert both.derive("operator-token") == old.derive("operator-token")


def test_a_key_that_was_given_up_opens_marks_and_verifies_nothing_again() -> None:
    first, second = Secret(bytes(32)), Secret(bytes(31) + b"\x01")
    both, old, new = Secrets(second, first), Secrets(first), Secrets(second)
    sealed, mac = old.box.seal(b"x", row="r"), old.row_mac("nodes").compute("x")
    marks = both.row_mac("nodes")
    both.give_up_others()
    with pytest.raises(SealError, match="another secret encryption key"):
        both.box.unseal(sealed, row="r")
    assert not marks.verify(mac, "x")
    assert not both.row_mac("nodes").verify(mac, "x")
    assert both.key_ids == new.key_ids
    assert not both.write_under(old.key_ids[0])
    assert both.write_under(new.key_ids[0])
    assert marks.verify(new.row_mac("nodes").compute("x"), "x")
    assert both.box.unseal(new.box.seal(b"y", row="r"), row="r") == b"y"
