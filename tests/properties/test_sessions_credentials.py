"""Nobody makes a credential without the keys, and none serves where it was not made for."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import Reason, Refusal
from fleet_server.sessions.credentials import API_KEY_PREFIX, ChallengePurpose, Credentials

KEYS = Credentials(api_key_key=b"a" * 32, challenge_key=b"b" * 32, token_key=b"c" * 32)
OTHER = Credentials(api_key_key=b"x" * 32, challenge_key=b"y" * 32, token_key=b"z" * 32)
NONCE = b"n" * 24
subjects = st.text(max_size=80)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map(lambda text: API_KEY_PREFIX + text)))
def test_text_that_was_not_made_here_is_no_api_key(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        KEYS.api_key_digest(text)
    assert caught.value.reason is Reason.UNKNOWN_CREDENTIAL
    assert text not in caught.value.detail or len(text) < 3


@given(st.binary(min_size=32, max_size=32), st.integers(0, 47), st.integers(1, 255))
def test_an_api_key_with_a_changed_byte_is_none(secret: bytes, position: int, change: int) -> None:
    text = KEYS.api_key_text(secret)
    KEYS.api_key_digest(text)
    packed = bytearray(base64.urlsafe_b64decode(text.removeprefix(API_KEY_PREFIX)))
    packed[position] ^= change
    with pytest.raises(Refusal):
        KEYS.api_key_digest(API_KEY_PREFIX + base64.urlsafe_b64encode(packed).decode())
    with pytest.raises(Refusal):
        OTHER.api_key_digest(text)


@given(st.binary(max_size=100), subjects)
def test_random_bytes_are_no_challenge(challenge: bytes, subject: str) -> None:
    with pytest.raises(Refusal) as caught:
        KEYS.check_challenge(challenge, ChallengePurpose.HANDSHAKE, subject, now_ms=0)
    assert caught.value.reason is Reason.BAD_PROOF


@given(subjects, subjects, st.integers(0, 2**53), st.integers(0, 2**53))
def test_a_challenge_serves_its_subject_purpose_and_time_alone(
    subject: str, other: str, expires_ms: int, now_ms: int
) -> None:
    purpose = ChallengePurpose.HANDSHAKE
    challenge = KEYS.challenge(purpose, subject, nonce=NONCE, expires_at_ms=expires_ms)
    assert len(challenge) == 64
    if now_ms < expires_ms:
        assert KEYS.check_challenge(challenge, purpose, subject, now_ms=now_ms) == expires_ms
    else:
        with pytest.raises(Refusal) as late:
            KEYS.check_challenge(challenge, purpose, subject, now_ms=now_ms)
        assert late.value.reason is Reason.CHALLENGE_EXPIRED
    for keys, its_purpose, its_subject in (
        (OTHER, purpose, subject),
        (KEYS, ChallengePurpose.REAUTH, subject),
        (KEYS, purpose, other if other != subject else subject + "x"),
    ):
        with pytest.raises(Refusal) as caught:
            keys.check_challenge(challenge, its_purpose, its_subject, now_ms=0)
        assert caught.value.reason is Reason.BAD_PROOF


def test_tokens_differ_by_challenge_and_by_installation() -> None:
    challenges = [
        KEYS.challenge(ChallengePurpose.HANDSHAKE, "n", nonce=os.urandom(24), expires_at_ms=1) for _ in range(100)
    ]
    tokens = {KEYS.session_token(challenge) for challenge in challenges}
    assert len(tokens) == 100
    assert not tokens & {OTHER.session_token(challenge) for challenge in challenges}
