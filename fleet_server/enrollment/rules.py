"""Decisions of enrollment: what a join token may allow, whether it is still good, what a request must hold. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fleet.errors import Reason, Refusal
from fleet.identity import fingerprint
from fleet.v1 import enrollment_pb2
from fleet_server.nodes.checklist import SERVER, ChecklistItem

DEFAULT_TTL_S = 3600
MAX_TTL_S = 30 * 24 * 3600
MAX_USES = 100_000
MAX_REASON_CHARS = 500
SECRET_BYTES = 32
ID_NONCE_BYTES = 10
_ID_MAC_BYTES = 10
_ID_CHARS = (ID_NONCE_BYTES + _ID_MAC_BYTES) * 8 // 5
_SITE = re.compile(r"[a-z0-9-]{0,63}")
_TOKEN_ID = re.compile(r"[a-z0-9_-]{1,64}")
# Any key will do: it only shows whether the other side's is one that an exchange can be made with.
_PROBE = X25519PrivateKey.from_private_bytes(b"\x01" * 32)


class TokenState(StrEnum):
    """What became of a join token."""

    ACTIVE = "ACTIVE"
    USED = "USED"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True, slots=True, repr=False)
class JoinTokenRecord:
    """One join token; its secret is known to nobody here. Times are Unix milliseconds. `intact` False: changed around
    the server.
    """

    token_id: str
    cluster_id: str
    secret_sha256: bytes
    site: str
    max_uses: int
    uses: int
    auto_approve: bool
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    revoked_at_ms: int
    intact: bool = True

    def state(self, now_ms: int) -> TokenState:
        """What it is good for now."""
        if not self.intact:
            return TokenState.QUARANTINED
        if self.revoked_at_ms:
            return TokenState.REVOKED
        if self.uses >= self.max_uses:
            return TokenState.USED
        return TokenState.EXPIRED if now_ms >= self.expires_at_ms else TokenState.ACTIVE

    @property
    def page_token(self) -> str:
        """Where the next page begins."""
        return f"{self.created_at_ms}:{self.token_id}"


@dataclass(frozen=True, slots=True)
class EnrollmentRecord:
    """One request to join. Times are Unix milliseconds; `bootstrap` a serialised fleet.v1.Signed once approved."""

    enrollment_id: str
    cluster_id: str
    token_id: str
    identity_key: bytes
    sealing_key: bytes
    name: str
    site: str
    reported_labels: Mapping[str, str]
    version: str
    peer_address: str
    state: enrollment_pb2.EnrollmentState.ValueType
    created_at_ms: int
    decided_at_ms: int = 0
    decided_by: str = ""
    reason: str = ""
    node_id: str = ""
    bootstrap: bytes = b""
    intact: bool = True

    @property
    def fingerprint(self) -> bytes:
        """20 bytes over both public keys."""
        return fingerprint(self.identity_key, self.sealing_key)

    @property
    def page_token(self) -> str:
        """Where the next page begins."""
        return f"{self.created_at_ms}:{self.enrollment_id}"


class MarkedIds:
    """Ids that carry a MAC, so that an invented one costs no query: whoever enrolls, or polls, has no credential yet,
    and a whole fleet may come from one address.

    Args:
        prefix: what the ids begin with.
        key: 32 bytes that the replicas share.
    """

    def __init__(self, prefix: str, key: bytes) -> None:
        self._prefix = prefix
        self._key = key

    def text(self, nonce: bytes, bound: bytes = b"") -> str:
        """The id of a random nonce of 10 bytes: prefix + base32(nonce ‖ MAC), lower case.

        Args:
            bound: what the id is good with, and nothing else.
        """
        mac = hmac.digest(self._key, nonce + bound, "sha256")[:_ID_MAC_BYTES]
        return self._prefix + base64.b32encode(nonce + mac).decode().lower()

    def genuine(self, text: str, bound: bytes = b"") -> bool:
        """Whether this installation made the id, for `bound`."""
        if len(text) != len(self._prefix) + _ID_CHARS or not text.isascii():
            return False
        try:
            nonce = base64.b32decode(text.removeprefix(self._prefix).upper())[:ID_NONCE_BYTES]
        except binascii.Error:
            return False
        return hmac.compare_digest(text, self.text(nonce, bound))


def checked_token_terms(site: str, ttl_s: int, max_uses: int) -> tuple[int, int]:
    """(ttl_s, max_uses) of a token that an operator asks for, defaults filled in.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not _SITE.fullmatch(site):
        raise _wrong(f"{site[:80]!r} is no site: use at most 63 characters of a-z, 0-9 and -")
    if not 0 <= ttl_s <= MAX_TTL_S:
        raise _wrong(f"a join token lives at most {MAX_TTL_S // 86400} days")
    if not 0 <= max_uses <= MAX_USES:
        raise _wrong(f"a join token is good for at most {MAX_USES} nodes")
    return ttl_s or DEFAULT_TTL_S, max_uses or 1


def checked_statement(said: enrollment_pb2.EnrollStatement, secret: bytes) -> None:
    """Refuse a request that does not hold together.

    Raises:
        Refusal: MALFORMED.
    """
    if len(secret) != SECRET_BYTES or not hmac.compare_digest(
        said.token_secret_sha256, hashlib.sha256(secret).digest()
    ):
        raise _malformed(
            "the token's secret is not the one that the request was signed with: copy the token again, whole"
        )
    if not _TOKEN_ID.fullmatch(said.token_id):
        raise _malformed("the token id is missing, or is none: copy the token again, whole")
    if len(said.identity_key) != 32 or len(said.sealing_key) != 32:
        raise _malformed("both public keys have 32 bytes")
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(said.sealing_key))
    except ValueError:
        # A point of small order: what is sealed to it could be opened by anybody.
        raise _malformed("the sealing key is no usable X25519 key: make new keys") from None


def held_token(token: JoinTokenRecord | None, secret: bytes) -> JoinTokenRecord:
    """The token, when the caller holds its secret. Whoever lacks it is told nothing about the token.

    Raises:
        Refusal: JOIN_TOKEN_INVALID.
    """
    if token is None or not hmac.compare_digest(token.secret_sha256, hashlib.sha256(secret).digest()):
        raise unknown_token()
    if not token.intact:
        raise Refusal(
            Reason.JOIN_TOKEN_INVALID,
            "the record of this join token was changed outside the server: it lets nobody in. Ask for a new one",
        )
    return token


def unknown_token() -> Refusal:
    """There is no such join token, or another one has this secret."""
    return Refusal(
        Reason.JOIN_TOKEN_INVALID, "the server knows no such join token: copy it again, whole, or ask for a new one"
    )


def check_token(token: JoinTokenRecord, now_ms: int) -> None:
    """Refuse a token that lets nobody new in.

    Raises:
        Refusal: JOIN_TOKEN_REVOKED, JOIN_TOKEN_USED or JOIN_TOKEN_EXPIRED.
    """
    found = _REFUSED_TOKENS.get(token.state(now_ms))
    if found is not None:
        raise Refusal(found[0], found[1])


_REFUSED_TOKENS: Mapping[TokenState, tuple[Reason, str]] = {
    TokenState.REVOKED: (Reason.JOIN_TOKEN_REVOKED, "an operator revoked this join token: ask for a new one"),
    TokenState.USED: (
        Reason.JOIN_TOKEN_USED,
        "this join token has enrolled as many nodes as it may: ask for a new one",
    ),
    TokenState.EXPIRED: (
        Reason.JOIN_TOKEN_EXPIRED,
        "this join token has expired: make a new one with `fleetctl join-token create` and run enroll again",
    ),
}


def token_item(token: JoinTokenRecord, now_ms: int) -> ChecklistItem:
    """What is to be done about the token with which a revoked node joined: nothing, when it lets nobody in any more."""
    state = token.state(now_ms)
    if state is not TokenState.ACTIVE:
        detail = f"join token {token.token_id}, which let the node in, is {state} and lets in nobody any more"
        return ChecklistItem("join-token", detail, now_ms, SERVER)
    left = token.max_uses - token.uses
    return ChecklistItem(
        "join-token",
        f"join token {token.token_id}, which let the node in, still lets in {left} more: revoke it"
        f" (`fleetctl join-token revoke {token.token_id}`) unless you are sure that the machine does not hold it",
    )


def refuse_decision(record: EnrollmentRecord, claimed_fingerprint: bytes) -> Refusal | None:
    """Why an operator's decision is not taken; None when it is."""
    if not record.intact:
        return Refusal(
            Reason.QUARANTINED,
            "the record of this enrollment was changed outside the server: enroll the node again with new keys",
        )
    if record.state != enrollment_pb2.ENROLLMENT_STATE_PENDING:
        done = enrollment_pb2.EnrollmentState.Name(record.state).removeprefix("ENROLLMENT_STATE_")
        return Refusal(Reason.ALREADY_DECIDED, f"this enrollment was decided by {record.decided_by}: {done}")
    if claimed_fingerprint and not hmac.compare_digest(claimed_fingerprint, record.fingerprint):
        return Refusal(
            Reason.FINGERPRINT_MISMATCH,
            "the fingerprint is not the one of this enrollment's keys: compare it again with what the node printed;"
            " if they differ, reject it, for somebody else uses the token",
        )
    return None


def page_start(token: str) -> tuple[int, str]:
    """(created_at_ms, id) to go on before; the newest of all for an empty token.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not token:
        return 2**62, ""
    at, colon, row_id = token.partition(":")
    if not colon or not at.isascii() or not at.isdigit() or len(at) > 18:
        raise _wrong("the page token is not one that this server gave")
    return int(at), row_id


def checked_reason(text: str) -> str:
    """An operator's reason, as the node will show it.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if len(text) > MAX_REASON_CHARS or not text.isprintable():
        raise _wrong(f"the reason must be one line of at most {MAX_REASON_CHARS} characters")
    return text


def _malformed(detail: str) -> Refusal:
    return Refusal(Reason.MALFORMED, detail)


def _wrong(detail: str) -> Refusal:
    return Refusal(Reason.INVALID_ARGUMENT, detail)
