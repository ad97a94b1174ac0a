"""What is sealed for one node and purpose opens for no other."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fleet import sealing
from fleet.sealing import Purpose, SealingError

PRIVATE = X25519PrivateKey.from_private_bytes(b"\x01" * 32)
PUBLIC = PRIVATE.public_key().public_bytes_raw()
INFO = sealing.sealing_info(Purpose.API_KEY, "cluster-1", "node-1", b"\x07" * 20)

ids = st.text(max_size=12)
infos = st.tuples(ids, ids, st.binary(max_size=24))


@given(plaintext=st.binary(max_size=200))
def test_round_trip(plaintext: bytes) -> None:
    sealed = sealing.seal(plaintext, PUBLIC, INFO)
    assert len(sealed) == len(plaintext) + 48
    assert sealing.unseal(sealed, PRIVATE, INFO) == plaintext


@given(first=infos, second=infos)
def test_different_addressees_have_different_info(
    first: tuple[str, str, bytes], second: tuple[str, str, bytes]
) -> None:
    same = sealing.sealing_info(Purpose.API_KEY, *first) == sealing.sealing_info(Purpose.API_KEY, *second)
    assert same == (first == second)


@pytest.mark.parametrize(
    "other",
    [
        sealing.sealing_info(Purpose.API_KEY, "cluster-2", "node-1", b"\x07" * 20),
        sealing.sealing_info(Purpose.API_KEY, "cluster-1", "node-2", b"\x07" * 20),
        sealing.sealing_info(Purpose.API_KEY, "cluster-1", "node-1", b"\x08" * 20),
        sealing.sealing_info(Purpose.API_KEY, "cluster-1n", "ode-1", b"\x07" * 20),
        INFO.replace(b"api-key", b"another"),
        b"",
    ],
    ids=["cluster", "node", "fingerprint", "moved byte", "purpose", "none"],
)
def test_another_addressee_or_purpose_opens_nothing(other: bytes) -> None:
    with pytest.raises(SealingError):
        sealing.unseal(sealing.seal(b"api key", PUBLIC, INFO), PRIVATE, other)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealingError):
        sealing.unseal(sealing.seal(b"api key", PUBLIC, INFO), X25519PrivateKey.generate(), INFO)


@given(data=st.data())
def test_any_flipped_bit_opens_nothing(data: st.DataObject) -> None:
    sealed = bytearray(sealing.seal(b"api key", PUBLIC, INFO))
    # The top bit of the ephemeral X25519 key is ignored by the curve (RFC 7748), and still bound by the KEM.
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealingError):
        sealing.unseal(bytes(sealed), PRIVATE, INFO)


@given(garbage=st.binary(max_size=100))
def test_garbage_opens_nothing(garbage: bytes) -> None:
    with pytest.raises(SealingError):
        sealing.unseal(garbage, PRIVATE, INFO)


@pytest.mark.parametrize("key", [b"", b"\x01" * 31, bytes(32), b"\x01" + bytes(31)], ids=["none", "short", "0", "1"])
def test_keys_under_which_everybody_could_open_are_refused(key: bytes) -> None:
    with pytest.raises(SealingError, match="not a usable"):
        sealing.seal(b"api key", key, INFO)


def test_sealing_twice_gives_two_texts() -> None:
    assert sealing.seal(b"api key", PUBLIC, INFO) != sealing.seal(b"api key", PUBLIC, INFO)
