"""Decisions of the link: pure. What to do after a refusal or a goaway, and where to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from fleet.errors import Advice, Reason, Refusal, advice
from fleet.v1 import gateway_pb2

WAIT_S = 20.0
STOP_S = 600.0
MISSED_INTERVALS = 3.5
MAX_INTERVAL_MS = 600_000
"""200,000 streams on one replica stretch it to 400 s. Whatever a server says: one that went silent is found."""
MAX_SLOT_MS = 3_600_000


class Leave(StrEnum):
    """How to leave a stream after a goaway."""

    TAKEOVER = "takeover"  # open the next stream first, then end this one
    RETURN = "return"  # end this one, come back in the slot
    STAY_AWAY = "stay_away"  # end this one; come back at long intervals only


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a goaway; delays in seconds, `reason` as metrics and logs name it."""

    reason: str
    leave: Leave
    delay_s: float
    window_s: float
    endpoints: tuple[str, ...]


_LEAVE = {
    gateway_pb2.GOAWAY_REASON_DRAIN: Leave.TAKEOVER,
    gateway_pb2.GOAWAY_REASON_UPGRADE: Leave.TAKEOVER,
    gateway_pb2.GOAWAY_REASON_REBALANCE: Leave.TAKEOVER,
    gateway_pb2.GOAWAY_REASON_RESTART: Leave.RETURN,
    gateway_pb2.GOAWAY_REASON_SUPERSEDED: Leave.RETURN,
}


def plan_goaway(goaway: gateway_pb2.ControlGoaway, bundle_endpoints: Sequence[str], *, at_least_s: float = 0.0) -> Plan:
    """How to leave. Endpoints that do not stand in the signed bundle are ignored: a goaway sends nobody to strangers.

    A reason that this node does not know is left like a restart: it asks for nothing that a restart would not.

    Args:
        at_least_s: the shortest delay, whatever the server asks for.
    """
    leave = _LEAVE.get(goaway.reason, Leave.RETURN) if goaway.resume else Leave.STAY_AWAY
    if goaway.reason == gateway_pb2.GOAWAY_REASON_SUPERSEDED:
        leave = Leave.RETURN
    known = set(bundle_endpoints)
    wished = tuple(endpoint for endpoint in goaway.endpoints if endpoint in known)
    return Plan(
        reason=_reason_name(goaway.reason),
        leave=leave,
        delay_s=max(min(goaway.reconnect_after_ms, MAX_SLOT_MS) / 1000, at_least_s),
        window_s=min(goaway.window_ms, MAX_SLOT_MS) / 1000,
        endpoints=wished or tuple(bundle_endpoints),
    )


def _reason_name(reason: int) -> str:
    known = gateway_pb2.GoawayReason.values()
    name = gateway_pb2.GoawayReason.Name(gateway_pb2.GoawayReason.ValueType(reason)) if reason in known else "UNKNOWN"
    return name.removeprefix("GOAWAY_REASON_")


def is_busy(error: BaseException) -> bool:
    """Whether the server has no time now, and said when it has: to come back to it is worth it."""
    return isinstance(error, Refusal) and error.reason is Reason.OVERLOADED and error.retry_after_s is not None


def put_behind(behind: Sequence[str], endpoint: str) -> tuple[str, ...]:
    """Endpoints to try behind all others, in this order, once `endpoint` is one of them.

    However one of them refuses, the next attempt is another's turn: a replica that is cut off from its database refuses
    for as long as it is, while the one that lost the stream may be back.
    """
    return (*(each for each in behind if each != endpoint), endpoint)


def other_endpoints(error: BaseException, endpoints: Sequence[str], tried: str) -> tuple[str, ...]:
    """Where to go at once after `tried` did not take this node; empty when it has to stay away for a while.

    Of two replicas one is dead: half of all attempts would meet it, and each would make the node wait longer, while the
    other one has time. What a server asks to wait for is waited for.
    """
    if not isinstance(error, Refusal) or error.reason is not Reason.UNAVAILABLE or error.retry_after_s is not None:
        return ()
    return tuple(endpoint for endpoint in endpoints if endpoint != tried)


def stay_away_s(reason: Reason, asked_s: float | None) -> float | None:
    """Least seconds to stay away after a refusal; None leaves it to the backoff alone.

    Nothing makes a node give up for good: an unauthenticated refusal may delay, not strand, and a node never enrolls
    again by itself.
    """
    if asked_s is not None:
        return asked_s
    return {Advice.RETRY: None, Advice.WAIT: WAIT_S, Advice.STOP: STOP_S}[advice(reason)]


def heartbeat_deadline_s(interval_ms: int) -> float:
    """Seconds without a ping after which the server is taken for dead (docs/protocol.md, "Liveness")."""
    return max(1.0, min(interval_ms, MAX_INTERVAL_MS) / 1000 * MISSED_INTERVALS)
