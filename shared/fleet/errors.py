"""Refusals: one stable reason each, what the caller may do about it, and a sentence that says what to do next.

The table is docs/protocol.md, "Refusals". `fleet.status` maps it to gRPC and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Advice(StrEnum):
    """What a refused caller does next."""

    RETRY = "retry"  # at once after backoff
    WAIT = "wait"  # an operator, or time, has to act; ask again at long intervals
    STOP = "stop"  # a person must act on this side; asking again is useless


class Reason(StrEnum):
    """Stable machine-readable reasons on the wire."""

    # Membership and sessions
    NOT_ACTIVATED = "NOT_ACTIVATED"
    NOT_APPROVED = "NOT_APPROVED"
    REJECTED = "REJECTED"
    SUSPENDED = "SUSPENDED"
    REVOKED = "REVOKED"
    QUARANTINED = "QUARANTINED"
    UNKNOWN_CREDENTIAL = "UNKNOWN_CREDENTIAL"
    BAD_PROOF = "BAD_PROOF"
    CHALLENGE_EXPIRED = "CHALLENGE_EXPIRED"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    TOKEN_USED = "TOKEN_USED"
    WRONG_CERTIFICATE = "WRONG_CERTIFICATE"
    CLIENT_CERTIFICATE = "CLIENT_CERTIFICATE"
    CLOCK_SKEW = "CLOCK_SKEW"
    CLONE_DETECTED = "CLONE_DETECTED"
    PROTOCOL_TOO_OLD = "PROTOCOL_TOO_OLD"
    DRAINING = "DRAINING"
    SUPERSEDED = "SUPERSEDED"
    HEARTBEAT_LOST = "HEARTBEAT_LOST"
    OVERLOADED = "OVERLOADED"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    MALFORMED = "MALFORMED"
    LEASE_LOST = "LEASE_LOST"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"
    # Join tokens
    JOIN_TOKEN_EXPIRED = "JOIN_TOKEN_EXPIRED"
    JOIN_TOKEN_USED = "JOIN_TOKEN_USED"
    JOIN_TOKEN_REVOKED = "JOIN_TOKEN_REVOKED"
    JOIN_TOKEN_INVALID = "JOIN_TOKEN_INVALID"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    # Operators' calls
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_DECIDED = "ALREADY_DECIDED"
    CONFLICT = "CONFLICT"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    UNKNOWN_ACTION = "UNKNOWN_ACTION"
    ARGUMENTS_INVALID = "ARGUMENTS_INVALID"
    ARGUMENTS_TOO_LARGE = "ARGUMENTS_TOO_LARGE"
    NO_TARGETS = "NO_TARGETS"
    QUEUE_FULL = "QUEUE_FULL"
    FINGERPRINT_MISMATCH = "FINGERPRINT_MISMATCH"
    # What people sign
    INTENT_REQUIRED = "INTENT_REQUIRED"
    INTENT_REFUSED = "INTENT_REFUSED"
    OWNER_STATEMENT_REFUSED = "OWNER_STATEMENT_REFUSED"
    # Probes between nodes
    TOO_MANY_HOPS = "TOO_MANY_HOPS"
    LOOP = "LOOP"
    RELAY_IS_END = "RELAY_IS_END"
    NOT_MY_HOP = "NOT_MY_HOP"
    FOREIGN = "FOREIGN"
    REPLAYED = "REPLAYED"
    EXPIRED = "EXPIRED"
    OVERSIZE = "OVERSIZE"
    RATE_LIMITED = "RATE_LIMITED"
    UNKNOWN_ROUTE = "UNKNOWN_ROUTE"
    UNKNOWN_GENERATION = "UNKNOWN_GENERATION"
    LEASE_EXPIRED = "LEASE_EXPIRED"


_ADVICE: Mapping[Reason, Advice] = {
    Reason.NOT_ACTIVATED: Advice.WAIT,
    Reason.NOT_APPROVED: Advice.WAIT,
    Reason.REJECTED: Advice.STOP,
    Reason.SUSPENDED: Advice.WAIT,
    Reason.REVOKED: Advice.STOP,
    Reason.QUARANTINED: Advice.WAIT,
    Reason.UNKNOWN_CREDENTIAL: Advice.WAIT,
    Reason.BAD_PROOF: Advice.WAIT,
    Reason.CHALLENGE_EXPIRED: Advice.RETRY,
    Reason.SESSION_EXPIRED: Advice.RETRY,
    Reason.TOKEN_USED: Advice.RETRY,
    Reason.WRONG_CERTIFICATE: Advice.RETRY,
    Reason.CLIENT_CERTIFICATE: Advice.RETRY,
    Reason.CLOCK_SKEW: Advice.WAIT,
    Reason.CLONE_DETECTED: Advice.WAIT,
    Reason.PROTOCOL_TOO_OLD: Advice.WAIT,
    Reason.DRAINING: Advice.RETRY,
    Reason.SUPERSEDED: Advice.RETRY,
    Reason.HEARTBEAT_LOST: Advice.RETRY,
    Reason.OVERLOADED: Advice.RETRY,
    Reason.UNAVAILABLE: Advice.RETRY,
    Reason.INTERNAL: Advice.RETRY,
    Reason.LEASE_LOST: Advice.RETRY,
    Reason.FRAME_TOO_LARGE: Advice.RETRY,
    Reason.MALFORMED: Advice.RETRY,
    Reason.QUEUE_FULL: Advice.RETRY,
    Reason.RATE_LIMITED: Advice.RETRY,
    Reason.UNKNOWN_ROUTE: Advice.RETRY,
    Reason.UNKNOWN_GENERATION: Advice.RETRY,
    Reason.LEASE_EXPIRED: Advice.WAIT,
}


def advice(reason: Reason) -> Advice:
    """What the caller does next. Unlisted reasons belong to people's calls: STOP and read the sentence."""
    return _ADVICE.get(reason, Advice.STOP)


class Refusal(Exception):
    """A call, frame or command is refused.

    Args:
        reason: stable reason.
        detail: sentence that says what is wrong and what to do; travels to the caller, so it holds no secret.
        retry_after_s: seconds to stay away, when the refusal knows them.
        metadata: further stable fields for the caller, such as `needed_role`.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.metadata: dict[str, str] = dict(metadata or {})
