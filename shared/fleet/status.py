"""The one place where refusals become gRPC statuses and come back: google.rpc.Status with ErrorInfo and RetryInfo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from fleet.errors import Reason, Refusal

DOMAIN = "fleet.v1"
_DETAILS_KEY = "grpc-status-details-bin"

_CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.NOT_APPROVED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REJECTED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.SUSPENDED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.REVOKED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.QUARANTINED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.CLONE_DETECTED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNKNOWN_CREDENTIAL: grpc.StatusCode.UNAUTHENTICATED,
    Reason.BAD_PROOF: grpc.StatusCode.UNAUTHENTICATED,
    Reason.CHALLENGE_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.SESSION_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TOKEN_USED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.WRONG_CERTIFICATE: grpc.StatusCode.UNAUTHENTICATED,
    Reason.CLOCK_SKEW: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PROTOCOL_TOO_OLD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.SUPERSEDED: grpc.StatusCode.ABORTED,
    Reason.HEARTBEAT_LOST: grpc.StatusCode.UNAVAILABLE,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.LEASE_LOST: grpc.StatusCode.ABORTED,
    Reason.FRAME_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.JOIN_TOKEN_EXPIRED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.JOIN_TOKEN_USED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.JOIN_TOKEN_REVOKED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.JOIN_TOKEN_INVALID: grpc.StatusCode.PERMISSION_DENIED,
    Reason.WRONG_CLUSTER: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALREADY_DECIDED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.IDEMPOTENCY_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
}


def code(reason: Reason) -> grpc.StatusCode:
    """gRPC status code of a reason; INVALID_ARGUMENT for what the caller wrote wrongly."""
    return _CODES.get(reason, grpc.StatusCode.INVALID_ARGUMENT)


def encode(
    refusal: Refusal,
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, message and trailing metadata for `context.abort`."""
    status_code = code(refusal.reason)
    rich = status_pb2.Status(code=status_code.value[0], message=refusal.detail)
    info = error_details_pb2.ErrorInfo(reason=str(refusal.reason), domain=DOMAIN, metadata=refusal.metadata)
    rich.details.add().Pack(info)
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        rich.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_code, refusal.detail, ((_DETAILS_KEY, rich.SerializeToString()),)


def decode(error: grpc.RpcError) -> Refusal:
    """Read a refusal out of a failed call. What carries no ErrorInfo of ours becomes UNAVAILABLE or INTERNAL.

    The result is only as trustworthy as the channel: until the server has proven itself a refusal may delay, and
    nothing else (docs/protocol.md, "Refusals").
    """
    status_code, details, trailing = _parts(error)
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            found = _decode_rich(value)
            if found is not None:
                return found
    unreachable = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    )
    reason = Reason.UNAVAILABLE if status_code in unreachable else Reason.INTERNAL
    if status_code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        reason = Reason.OVERLOADED
    return Refusal(reason, details or str(status_code))


def _parts(
    error: grpc.RpcError,
) -> tuple[grpc.StatusCode, str, Iterable[tuple[str, Any]]]:
    failed: Any = error  # grpc.aio.AioRpcError and sync calls share these three methods, but no base class
    return (
        failed.code(),
        failed.details() or "",
        tuple(failed.trailing_metadata() or ()),
    )


def _decode_rich(value: bytes) -> Refusal | None:
    rich = status_pb2.Status()
    try:
        rich.ParseFromString(value)
    except DecodeError:  # a stranger's bytes
        return None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    reason: Reason | None = None
    delay_s: float | None = None
    for detail in rich.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason = Reason(info.reason) if info.reason in Reason.__members__ else Reason.INTERNAL
        elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            delay_s = retry.retry_delay.ToMilliseconds() / 1000
    if reason is None:
        return None
    return Refusal(reason, rich.message, retry_after_s=delay_s, metadata=dict(info.metadata))
