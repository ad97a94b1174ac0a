"""A node's signed proofs, and the refusals around them. Pure.

A statement is parsed before its signature is checked, for only it names the node whose key verifies it. Until
`verify` has returned,
nothing in it may do more than cause a refusal.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError
from fleet.errors import Reason, Refusal
from fleet.v1 import trust_pb2

MAX_STATEMENT_BYTES = 4096
_SIGNATURE_BYTES = 64

Statement = TypeVar("Statement", bound=Message)


def parse(kind: type[Statement], signed: trust_pb2.Signed, *, max_bytes: int = MAX_STATEMENT_BYTES) -> Statement:
    """What a proof claims.

    Raises:
        Refusal: MALFORMED unless it is one statement of `kind` with one signature.
    """
    if len(signed.signatures) != 1 or len(signed.signatures[0].value) != _SIGNATURE_BYTES:
        raise Refusal(Reason.MALFORMED, "a proof carries exactly one signature")
    if len(signed.statement) > max_bytes:
        raise Refusal(Reason.MALFORMED, f"this proof's statement has at most {max_bytes} bytes")
    try:
        return kind.FromString(signed.statement)
    except DecodeError:
        raise Refusal(Reason.MALFORMED, f"the proof is no {kind.DESCRIPTOR.name}") from None


def verify(signed: trust_pb2.Signed, domain: Domain, identity_key: bytes) -> None:
    """Check the proof's signature with the key of the node that it names.

    Raises:
        Refusal: BAD_PROOF.
    """
    try:
        envelope.verify_one(signed, domain=domain, public_key=identity_key)
    except EnvelopeError as error:
        raise bad_proof("its signature is not by the identity key of this node") from error


def bad_proof(why: str) -> Refusal:
    """The proof does not prove what it should."""
    return Refusal(Reason.BAD_PROOF, f"the proof is refused: {why}. Restore the node's state folder, or enroll it anew")


def answered_already() -> Refusal:
    """A challenge is good for one answer: a replayed one gets no second session."""
    return Refusal(Reason.CHALLENGE_EXPIRED, "this challenge was answered already: begin the handshake again")


def session_expired() -> Refusal:
    """There is no such session any more."""
    return Refusal(Reason.SESSION_EXPIRED, "the session has ended: shake hands for a new one")


def unknown_credential() -> Refusal:
    """An api_key that was made here, and that no node has: it ended long ago, or the database lost it."""
    return Refusal(
        Reason.UNKNOWN_CREDENTIAL,
        "no node has this api_key any more: another machine took this one's place long ago, or the server's database"
        " was restored. Restore a later backup of that, or enroll this machine anew",
    )


def wrong_cluster() -> Refusal:
    """The node belongs elsewhere."""
    return Refusal(Reason.WRONG_CLUSTER, "the node belongs to another cluster than this server's: check its endpoints")
