"""The one place where refusals become gRPC statuses and come back: google.rpc.Status with ErrorInfo and RetryInfo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2

DOMAIN = "fleet.v1"
# Trailing metadata over 8 KiB is dropped on the way, and the reason with it.
MAX_DETAIL_CHARS = 1024
MAX_METADATA_ENTRIES = 16
MAX_METADATA_CHARS = 128
MAX_RETRY_AFTER_S = 86_400.0
_DETAILS_KEY = "grpc-status-details-bin"
# How the C core says that it got no connection: half of it is about the C core.
_NO_CONNECTION = re.compile(
    r"failed to connect to all addresses; last error: \w+: ipv[46]:(?P<address>\S+): "
    r"(?:Failed to connect to remote host: )?(?P<why>.+)",
    re.DOTALL,
)

_CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.NOT_ACTIVATED: grpc.StatusCode.FAILED_PRECONDITION,
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
    Reason.CLIENT_CERTIFICATE: grpc.StatusCode.UNAUTHENTICATED,
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
    Reason.INTENT_REQUIRED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.INTENT_REFUSED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.OWNER_STATEMENT_REFUSED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.FOREIGN: grpc.StatusCode.PERMISSION_DENIED,
    Reason.REPLAYED: grpc.StatusCode.ALREADY_EXISTS,
    Reason.EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNKNOWN_ROUTE: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_GENERATION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.LEASE_EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
}


def code(reason: Reason) -> grpc.StatusCode:
    """gRPC status code of a reason; INVALID_ARGUMENT for what the caller wrote wrongly."""
    return _CODES.get(reason, grpc.StatusCode.INVALID_ARGUMENT)


def encode(
    refusal: Refusal,
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Status code, message and trailing metadata for `context.abort`."""
    status_code = code(refusal.reason)
    detail = _shown(refusal.detail, MAX_DETAIL_CHARS)
    rich = status_pb2.Status(code=status_code.value[0], message=detail)
    info = error_details_pb2.ErrorInfo(reason=str(refusal.reason), domain=DOMAIN, metadata=_bounded(refusal.metadata))
    rich.details.add().Pack(info)
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(_bounded_delay_s(refusal.retry_after_s) * 1000))
        rich.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_code, detail, ((_DETAILS_KEY, rich.SerializeToString()),)


def decode(error: grpc.RpcError) -> Refusal:
    """Read a refusal out of a failed call. What carries no ErrorInfo of ours becomes UNAVAILABLE or INTERNAL; who does
    not know the call at all is not the server that was looked for.

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
    if status_code is grpc.StatusCode.UNIMPLEMENTED:
        return Refusal(Reason.UNAVAILABLE, "what answers there does not know this call: another listener, or too old")
    if core := _NO_CONNECTION.match(details):
        details = f"no connection to {core['address']}: {core['why']}"
    return Refusal(reason, _shown(details, MAX_DETAIL_CHARS) or str(status_code))


def is_refusal(error: grpc.RpcError) -> bool:
    """Whether something that speaks this protocol said no, and not gRPC, which met nobody or lost them."""
    return any(
        key == _DETAILS_KEY and isinstance(value, bytes) and _decode_rich(value) is not None
        for key, value in _parts(error)[2]
    )


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
    """A refusal of ours out of a stranger's bytes; None when they hold none."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    delay_s: float | None = None
    try:
        rich = status_pb2.Status.FromString(value)
        for detail in rich.details:
            if detail.Is(info.DESCRIPTOR) and info.domain != DOMAIN:  # others may add theirs on the way
                detail.Unpack(info)
            elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
                delay_s = _bounded_delay_s(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    except DecodeError:
        return None
    if info.domain != DOMAIN:
        return None
    reason = Reason(info.reason) if info.reason in Reason.__members__ else Reason.INTERNAL
    said = _shown(rich.message, MAX_DETAIL_CHARS)
    return Refusal(reason, said, retry_after_s=delay_s, metadata=_bounded(info.metadata))


def of_stream(error: gateway_pb2.StreamError) -> Refusal:
    """What a server says on an open stream before it ends it, fit to be shown and logged."""
    return Refusal(Reason.__members__.get(error.reason, Reason.INTERNAL), _shown(error.detail, MAX_DETAIL_CHARS))


def _shown(text: str, max_chars: int) -> str:
    """`text` as a terminal and a log may show it: no control characters, bounded."""
    shown = text[: max_chars + 1]
    printable = shown if shown.isprintable() else "".join(char if char.isprintable() else " " for char in shown)
    return printable if len(printable) <= max_chars else printable[: max_chars - 1] + "…"


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    kept = sorted(metadata.items())[:MAX_METADATA_ENTRIES]
    return {_shown(key, MAX_METADATA_CHARS): _shown(value, MAX_METADATA_CHARS) for key, value in kept}


def _bounded_delay_s(delay_s: float) -> float:
    return min(max(delay_s, 0.0), MAX_RETRY_AFTER_S)
