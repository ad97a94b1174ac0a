"""What a node shows and what the server asks: api_key text, challenges, session tokens. Pure, given the keys.

All three carry or are a MAC under a key that the replicas share, so that garbage is told apart without a query, and a
storm of
handshakes stays out of the database (docs/protocol.md, "Session").
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from enum import StrEnum

from fleet.errors import Reason, Refusal

API_KEY_PREFIX = "fak1."
API_KEY_SECRET_BYTES = 32
API_KEY_MAC_BYTES = 16
CHALLENGE_BYTES = 64
CHALLENGE_TTL_MS = 30_000
_NONCE_BYTES = 24
_EXPIRY_BYTES = 8
_MAX_API_KEY_CHARS = 128


class ChallengePurpose(StrEnum):
    """What an answer is good for; a challenge for one purpose is worthless for another."""

    HANDSHAKE = "handshake"
    OWING_HANDSHAKE = "owing-handshake"
    """Of a caller who began without a turn."""
    REAUTH = "reauth"


class Credentials:
    """Makes and checks what only replicas of one installation can make.

    Args:
        api_key_key: 32 bytes, for the MAC in api_keys.
        challenge_key: 32 bytes, for challenges.
        token_key: 32 bytes, for session tokens.
    """

    def __init__(self, *, api_key_key: bytes, challenge_key: bytes, token_key: bytes) -> None:
        self._api_key_key = api_key_key
        self._challenge_key = challenge_key
        self._token_key = token_key

    def api_key_text(self, secret: bytes) -> str:
        """Text of an api_key: ``fak1.`` + base64url(secret ‖ MAC)."""
        packed = secret + self._api_key_mac(secret)
        return API_KEY_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def api_key_digest(self, text: str) -> bytes:
        """SHA-256 of an api_key's secret, by which its row is found.

        Raises:
            Refusal: UNKNOWN_CREDENTIAL when this installation never made it.
        """
        secret = self._genuine_secret(text)
        if secret is None:
            raise Refusal(
                Reason.UNKNOWN_CREDENTIAL,
                "this api_key is not one of this installation: check the endpoint, or enroll the node anew",
            )
        return hashlib.sha256(secret).digest()

    def challenge(self, purpose: ChallengePurpose, subject: str, *, nonce: bytes, expires_at_ms: int) -> bytes:
        """64 bytes: expiry in Unix ms (8, big-endian) ‖ nonce (24) ‖ HMAC-SHA256 (32), good for `subject` alone.

        Stateless, so that nobody can displace another's attempt and any replica can check the answer.
        """
        head = expires_at_ms.to_bytes(_EXPIRY_BYTES, "big") + nonce
        return head + self._challenge_mac(purpose, subject, head)

    def check_challenge(self, challenge: bytes, purpose: ChallengePurpose, subject: str, *, now_ms: int) -> int:
        """Expiry in Unix milliseconds of a genuine challenge that is still good.

        Raises:
            Refusal: BAD_PROOF when it was not made for this purpose and subject, CHALLENGE_EXPIRED when it is too old.
        """
        head, mac = challenge[:-32], challenge[-32:]
        if len(challenge) != CHALLENGE_BYTES or not hmac.compare_digest(
            mac, self._challenge_mac(purpose, subject, head)
        ):
            raise Refusal(Reason.BAD_PROOF, "this challenge was not made for this node: begin the handshake again")
        expires_at_ms = int.from_bytes(head[:_EXPIRY_BYTES], "big")
        if now_ms >= expires_at_ms:
            raise Refusal(Reason.CHALLENGE_EXPIRED, "the answer came too late: begin the handshake again")
        return expires_at_ms

    def session_token(self, challenge: bytes) -> bytes:
        """The 32-byte token of the session that answers this challenge.

        A PRF of the challenge's random nonce: nobody without the server's key can tell it from random bytes, and two
        answers to one
        challenge, on whichever replicas, meet in the same row, so that the second one fails.
        """
        return hmac.digest(self._token_key, challenge, "sha256")

    def _genuine_secret(self, text: str) -> bytes | None:
        if not text.startswith(API_KEY_PREFIX) or len(text) > _MAX_API_KEY_CHARS:
            return None
        body = text[len(API_KEY_PREFIX) :]
        try:
            packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        secret, mac = packed[:API_KEY_SECRET_BYTES], packed[API_KEY_SECRET_BYTES:]
        return secret if hmac.compare_digest(mac, self._api_key_mac(secret)) else None

    def _api_key_mac(self, secret: bytes) -> bytes:
        return hmac.digest(self._api_key_key, secret, "sha256")[:API_KEY_MAC_BYTES]

    def _challenge_mac(self, purpose: ChallengePurpose, subject: str, head: bytes) -> bytes:
        bound = purpose.value.encode() + b"\x00" + len(subject).to_bytes(4, "big") + subject.encode() + head
        return hmac.digest(self._challenge_key, bound, "sha256")
