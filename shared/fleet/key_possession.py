"""That an operator holds the private half of the key that it gives to the server. Pure.

Without it anybody could enroll somebody else's public key under a name of their own, and what the owner granted to
that key would stand under the wrong name (docs/protocol.md, "People").
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.envelope import Domain, EnvelopeError, Signer
from fleet.v1 import trust_pb2

MAX_AGE_MS = 10 * 60 * 1000
"""Between the operator's clock and the server's, either way."""


class PossessionError(Exception):
    """A key is not taken; `reason` is MALFORMED, BAD_SIGNATURE, WRONG_CLUSTER, WRONG_OPERATOR or CLOCK_SKEW."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def sign_possession(signer: Signer, *, cluster_id: str, operator: str, now_ms: int) -> trust_pb2.Signed:
    """The statement with which an operator enrolls the key of `signer`.

    Args:
        operator: name of the operator's account.
        now_ms: Unix milliseconds.
    """
    statement = trust_pb2.OperatorKeyStatement(
        cluster_id=cluster_id, operator=operator, public_key=signer.public_key, issued_at_ms=now_ms
    )
    return signer.sign(Domain.OPERATOR_KEY, statement.SerializeToString(deterministic=True))


def verify_possession(signed: trust_pb2.Signed, *, cluster_id: str, operator: str, now_ms: int) -> bytes:
    """The raw public key that an operator enrolls, which signed that it does.

    Args:
        operator: whose account the statement came under.
        now_ms: Unix milliseconds on the server.

    Raises:
        PossessionError: it is not taken.
    """
    try:
        said = trust_pb2.OperatorKeyStatement.FromString(signed.statement)
    except DecodeError as error:
        raise PossessionError("MALFORMED", "the signed bytes are no OperatorKeyStatement") from error
    if len(said.public_key) != envelope.PUBLIC_KEY_BYTES or envelope.is_small_order(said.public_key):
        raise PossessionError("MALFORMED", "that is no Ed25519 public key: make one, `fleetctl operator keygen`")
    try:
        envelope.verify_one(signed, domain=Domain.OPERATOR_KEY, public_key=said.public_key)
    except EnvelopeError as error:
        raise PossessionError(
            "BAD_SIGNATURE", "the key that is to be enrolled did not sign this: you enroll keys that you hold"
        ) from error
    if said.cluster_id != cluster_id:
        raise PossessionError("WRONG_CLUSTER", "it was signed for another cluster: log in to this one anew")
    if said.operator != operator:
        raise PossessionError("WRONG_OPERATOR", f"it was signed for the account of {said.operator!r}, not for yours")
    if abs(now_ms - said.issued_at_ms) > MAX_AGE_MS:
        raise PossessionError("CLOCK_SKEW", "it was signed more than 10 minutes ago, or ahead: set your clock")
    return said.public_key
