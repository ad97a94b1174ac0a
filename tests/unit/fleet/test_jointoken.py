"""A join token survives terminals and mail, and is refused when it is not whole."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import jointoken, trust
from fleet.envelope import Domain, Signer
from fleet.trust import TrustError
from fleet.v1 import enrollment_pb2

AUTHORITY = Signer.from_private_bytes(b"\x01" * 32)


def make_token(owner_pin: bytes = b"\x05" * 32) -> enrollment_pb2.JoinToken:
    said = enrollment_pb2.JoinTokenStatement(
        token_id="jt-1",
        cluster_id="cluster-1",
        endpoints=["gateway.example:7443"],
        tls_ca_der=b"der",
        authority_key=AUTHORITY.public_key,
    )
    signed = AUTHORITY.sign(Domain.JOIN_TOKEN, said.SerializeToString())
    return enrollment_pb2.JoinToken(signed=signed, secret=b"\x04" * 32, owner_pin=owner_pin)


TEXT = jointoken.encode(make_token())


def test_round_trip() -> None:
    assert TEXT.startswith("fjt1.")
    assert "=" not in TEXT
    assert jointoken.decode(TEXT) == make_token()


@given(width=st.integers(4, 200), newline=st.sampled_from(["\n", "\r\n", "\n  ", "\t"]))
def test_broken_lines_do_no_harm(width: int, newline: str) -> None:
    broken = newline.join(textwrap.wrap(TEXT, width, break_long_words=True))
    assert jointoken.decode(f"  {broken}\n") == make_token()


def test_no_truncation_passes_for_the_token() -> None:
    whole = trust.verify_join_token(make_token())
    for length in range(len(TEXT)):
        try:
            token = jointoken.decode(TEXT[:length])
            said = trust.verify_join_token(token)
        except TrustError as error:
            assert "copy it again, whole" in error.detail
            continue
        # Only the owner pin stands outside what the server signs: cut off whole, it is missing, never another.
        assert said == whole
        assert token.owner_pin == b""


@given(data=st.data())
def test_a_changed_token_is_refused_or_says_the_same(data: st.DataObject) -> None:
    index = data.draw(st.integers(5, len(TEXT) - 1))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/ é"))
    try:
        said = trust.verify_join_token(jointoken.decode(TEXT[:index] + letter + TEXT[index + 1 :]))
    except TrustError:
        return
    assert said == trust.verify_join_token(make_token())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fjt1.",
        "fjt2." + TEXT[5:],
        TEXT[5:],
        "FJT1." + TEXT[5:],
        "fjt1.!!!!",
        "fjt1.é",
        "fjt1.A",
        "fjt1." + "A" * 20_000,
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(TrustError, match="copy it again, whole"):
        trust.verify_join_token(jointoken.decode(text))
