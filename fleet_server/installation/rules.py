"""What the product root and the first owner signed, and whether it counts here and now. Pure."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2

PLATFORM_ADMIN = "platform-admin"
MAX_SIGNED_BYTES = 16 * 1024
MAX_CLOCK_AHEAD_MS = 10 * 60 * 1000
"""A signer's clock may be this much ahead of the server's."""
CHALLENGE_MS = 5 * 60 * 1000
_TIME_BYTES = 8
_NONCE_BYTES = 16
_MAC_BYTES = 16
_CHALLENGE_BYTES = _TIME_BYTES + _NONCE_BYTES + _MAC_BYTES
_OPERATOR_ID = re.compile(r"op-[0-9a-f]{16}\Z")

Statement = TypeVar("Statement", bound=Message)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A verified activation manifest."""

    first_owner_key: bytes
    issued_at_ms: int
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A verified claim of the first owner."""

    operator_id: str
    operator_name: str
    issued_at_ms: int
    challenge: bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """A verified platform role grant."""

    operator_id: str
    operator_name: str
    role: str
    issued_at_ms: int
    not_after_ms: int

    def in_force(self, now_ms: int) -> bool:
        """Whether it has not expired."""
        return now_ms < self.not_after_ms


def verify_manifest(signed: trust_pb2.Signed, *, root_key: bytes, installation_id: str) -> Manifest:
    """The manifest, when the pinned product root signed it for this installation; its expiry is not looked at, for it
    limits when a manifest may be imported, not how long an installation lives.

    Raises:
        Refusal: BAD_PROOF or INVALID_ARGUMENT.
    """
    what = "the activation manifest"
    found = _verified(signed, trust_pb2.ActivationStatement, Domain.ACTIVATION, root_key, what, "the product root")
    _check_installation(found.installation_id, installation_id, what)
    key = found.first_owner_key
    if len(key) != envelope.PUBLIC_KEY_BYTES or envelope.is_small_order(key):
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} names no usable first owner key: have it signed again")
    return Manifest(key, found.issued_at_ms, found.not_after_ms)


def check_import(manifest: Manifest, held: Manifest | None, now_ms: int) -> None:
    """Whether a verified manifest may replace the one that is held.

    Raises:
        Refusal: expired, from the future, or older than the held one.
    """
    _check_times("the activation manifest", manifest.issued_at_ms, manifest.not_after_ms, now_ms)
    if held is not None and manifest.issued_at_ms <= held.issued_at_ms and manifest != held:
        raise Refusal(
            Reason.CONFLICT, "a newer activation manifest is in force already: have this one signed again, now"
        )


def verify_grant(signed: trust_pb2.Signed, *, root_key: bytes, installation_id: str) -> Grant:
    """The grant, when the pinned product root signed it for this installation. Look at `Grant.in_force` as well.

    Raises:
        Refusal: BAD_PROOF or INVALID_ARGUMENT.
    """
    what = "the platform role grant"
    found = _verified(
        signed, trust_pb2.PlatformRoleGrantStatement, Domain.PLATFORM_GRANT, root_key, what, "the product root"
    )
    _check_installation(found.installation_id, installation_id, what)
    if found.role != PLATFORM_ADMIN:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} gives the role {found.role[:40]!r}: only {PLATFORM_ADMIN} is")
    if not _OPERATOR_ID.match(found.operator_id):
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} names no operator id: `fleetctl operators list` shows them")
    return Grant(found.operator_id, found.operator_name, found.role, found.issued_at_ms, found.not_after_ms)


def check_grant_import(grant: Grant, now_ms: int) -> None:
    """Whether a verified grant may be stored.

    Raises:
        Refusal: expired, or from the future.
    """
    _check_times("the platform role grant", grant.issued_at_ms, grant.not_after_ms, now_ms)


def verify_claim(signed: trust_pb2.Signed, *, manifest: Manifest, installation_id: str) -> Claim:
    """The claim, when the manifest's first owner signed it for this installation.

    Raises:
        Refusal: BAD_PROOF or INVALID_ARGUMENT.
    """
    what = "the owner claim"
    found = _verified(
        signed,
        trust_pb2.OwnerClaimStatement,
        Domain.OWNER_CLAIM,
        manifest.first_owner_key,
        what,
        "the first owner that the manifest names",
    )
    _check_installation(found.installation_id, installation_id, what)
    if not _OPERATOR_ID.match(found.operator_id):
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} names no operator id: run `fleetctl installation claim`")
    return Claim(found.operator_id, found.operator_name, found.issued_at_ms, found.challenge)


def check_claim(claim: Claim, held: Claim | None, *, challenge_key: bytes, now_ms: int) -> None:
    """Whether a verified claim is fresh: an answer to this server's challenge, and no earlier one played again.

    Raises:
        Refusal: CHALLENGE_EXPIRED, INVALID_ARGUMENT for one from the future, or CONFLICT; when the name is that of the
            claim before, or none, with what that was for as `operator_id` and `operator_name`.
    """
    if not is_fresh_challenge(claim.challenge, challenge_key, now_ms):
        raise Refusal(
            Reason.CHALLENGE_EXPIRED,
            "the claim answers no challenge of the last 5 minutes: run `fleetctl installation claim` again",
        )
    if claim.issued_at_ms > now_ms + MAX_CLOCK_AHEAD_MS:  # it would stand above every later one
        raise Refusal(
            Reason.INVALID_ARGUMENT, "the owner claim was issued in the future: check the clock, and run it again"
        )
    if held is not None and claim.issued_at_ms <= held.issued_at_ms:
        raise Refusal(
            Reason.CONFLICT, "this claim, or a later one, was made already: run it again, and check the clock"
        )
    if held is None or claim.operator_id == held.operator_id:
        return
    if claim.operator_name in ("", held.operator_name):  # strangers are not told who that is; this is the owner
        raise Refusal(
            Reason.CONFLICT,
            f"you are {held.operator_name} ({held.operator_id}) here already: claim as that operator again",
            metadata={"operator_id": held.operator_id, "operator_name": held.operator_name},
        )


def make_challenge(key: bytes, now_ms: int, nonce: bytes) -> bytes:
    """40 bytes that say when they were made; nothing is kept of them.

    Args:
        key: 32 bytes, the same on every replica.
        nonce: 16 random bytes.
    """
    body = now_ms.to_bytes(_TIME_BYTES, "big") + nonce
    return body + hmac.digest(key, body, "sha256")[:_MAC_BYTES]


def is_fresh_challenge(challenge: bytes, key: bytes, now_ms: int) -> bool:
    """Whether `make_challenge` made it under this key within the last 5 minutes."""
    if len(challenge) != _CHALLENGE_BYTES:
        return False
    body = challenge[:-_MAC_BYTES]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256")[:_MAC_BYTES], challenge[-_MAC_BYTES:]):
        return False
    made_at_ms = int.from_bytes(body[:_TIME_BYTES], "big")
    return made_at_ms - MAX_CLOCK_AHEAD_MS <= now_ms < made_at_ms + CHALLENGE_MS


def _verified(
    signed: trust_pb2.Signed, kind: type[Statement], domain: Domain, key: bytes, what: str, who: str
) -> Statement:
    if signed.ByteSize() > MAX_SIGNED_BYTES:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} has over {MAX_SIGNED_BYTES} bytes: that is another file")
    try:
        raw = envelope.verify_one(signed, domain=domain, public_key=key)
    except EnvelopeError as error:
        raise Refusal(
            Reason.BAD_PROOF, f"{what} is not signed by {who} ({error.reason}): check which key signed it"
        ) from error
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} cannot be read: have it signed again") from error


def _check_installation(named: str, own: str, what: str) -> None:
    if named != own:
        raise Refusal(
            Reason.INVALID_ARGUMENT,
            f"{what} is for installation {named[:64]!r}; this one is {own}: have one signed for it",
        )


def _check_times(what: str, issued_at_ms: int, not_after_ms: int, now_ms: int) -> None:
    if now_ms >= not_after_ms:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} has expired: have a new one signed")
    if issued_at_ms > now_ms + MAX_CLOCK_AHEAD_MS:
        raise Refusal(Reason.INVALID_ARGUMENT, f"{what} was issued in the future: check this server's clock")
