"""Decisions about streams: pure, time is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from fleet.errors import Reason
from fleet.sequence import MAX_COMMANDS_PER_STATEMENT
from fleet.v1 import gateway_pb2

PINGS_PER_SECOND = 500
MISSED_PINGS = 3
MAX_UNPINGED_BEATS = 6
MAX_STATEMENT_BYTES = 512 * 1024
MAX_UNACCEPTED_BYTES = 256 * 1024
MAX_RESENDS = 5
MAX_RESTART_WINDOW_MS = 60_000
COMMAND_OVERHEAD_BYTES = 160  # ids, times, tags: an upper estimate, so that a statement stays under its cap


class Sized(Protocol):
    """A command as far as packing needs to know it."""

    @property
    def size_bytes(self) -> int:
        """What it takes in a statement, about."""
        ...


def heartbeat_interval_ms(base_ms: int, streams: int) -> int:
    """Milliseconds between pings of one stream: stretched so that a replica never sends more than 500 pings a
    second."""
    return max(base_ms, streams * 1000 // PINGS_PER_SECOND)


def heartbeat_lost(pings_sent: int, last_pong: int) -> bool:
    """Whether more than three pings in a row stayed unanswered (docs/protocol.md, "Liveness")."""
    return pings_sent - last_pong > MISSED_PINGS


def ping_due(
    *,
    unpinged_beats: int,
    unanswered: int,
    spoke_both_ways: bool,
    round_trip_untold: bool,
    told_interval_ms: int,
    interval_ms: int,
) -> bool:
    """Whether a beat sends a ping, or what the stream said meanwhile serves as well.

    Traffic serves while it went both ways since the last beat: each side has a sign of life of the other. It does not
    serve for long, since telemetry bears no MAC and only a pong tells round trip and clock; nor while a ping waits for
    its pong; nor when the node would wait by an interval that has meanwhile been stretched; nor when the first round
    trip was measured, which the next ping tells the node.
    """
    return (
        not spoke_both_ways
        or unanswered > 0
        or round_trip_untold
        or unpinged_beats >= MAX_UNPINGED_BEATS - 1
        or interval_ms > told_interval_ms * 5 // 4
    )


def reauth_due(now_ms: int, expires_at_ms: int, ttl_ms: int, heartbeat_ms: int) -> bool:
    """Whether to ask for a fresh proof: from the last third of the session on, and while one more heartbeat is left
    to ask at, however far the fleet has stretched them."""
    return expires_at_ms - now_ms < max(ttl_ms // 3, 2 * heartbeat_ms)


ASK_AGAIN = frozenset({Reason.UNAVAILABLE, Reason.OVERLOADED, Reason.CHALLENGE_EXPIRED})
"""Refusals of a fresh proof for which nobody is to blame: the database was away, or the answer waited behind it."""

_GOAWAYS = gateway_pb2.GoawayReason.DESCRIPTOR.values_by_name
_GOODBYES = {"TAKEOVER", "SHUTDOWN", "GOAWAY"} | {name.removeprefix("GOAWAY_REASON_") for name in _GOAWAYS}


def goodbye(reason: str) -> str:
    """How a stream ended that its node ended, as logs and figures show it: what a node makes up is no label."""
    return f"GOODBYE_{reason}" if reason in _GOODBYES else "GOODBYE"


def worth_a_statement(free: int, max_in_flight: int, waiting: int) -> bool:
    """Whether the node's window is open wide enough for what waits: for all of it, up to a full statement, and at
    least for half a window.

    A busy node that answers a few commands at a time would otherwise be sent a signature, a frame and a journal
    commit for each few (the silly window of RFC 1122, section 4.2.3.4), and one whose window was once sent in halves
    would be sent halves for ever. Nothing waits for more commands to come: a window opens with the node's answers,
    whatever else happens, and an idle node has its whole window open.

    Args:
        free: commands that the node takes now.
        max_in_flight: commands that it takes when idle.
        waiting: commands that wait to be sent to it, as far as that is known.
    """
    wanted = max((max_in_flight + 1) // 2, min(waiting, max_in_flight))
    return free >= min(MAX_COMMANDS_PER_STATEMENT, wanted)


S = TypeVar("S", bound=Sized)


def statements(commands: Sequence[S]) -> Iterator[Sequence[S]]:
    """Cut pending commands into statements that stay under the frame's size; a single command always fits."""
    start, size = 0, 0
    for index, command in enumerate(commands):
        added = command.size_bytes + COMMAND_OVERHEAD_BYTES
        if index > start and size + added > MAX_STATEMENT_BYTES:
            yield commands[start:index]
            start, size = index, 0
        size += added
    if start < len(commands):
        yield commands[start:]


MOVING = frozenset(
    {
        gateway_pb2.GOAWAY_REASON_DRAIN,
        gateway_pb2.GOAWAY_REASON_UPGRADE,
        gateway_pb2.GOAWAY_REASON_REBALANCE,
    }
)
"""Reasons for which a node opens its next stream before it ends this one."""
AHEAD_S = 1.0
"""So long before its slot a node hears of it: what changes the pace meanwhile changes the slots behind."""
MAX_SHOWN_S = 1e6


def drain_reason(wanted: gateway_pb2.GoawayReason.ValueType, *, alone: bool) -> gateway_pb2.GoawayReason.ValueType:
    """What the nodes of a draining replica are told. There is nowhere to move to from one that is alone."""
    if wanted == gateway_pb2.GOAWAY_REASON_UNSPECIFIED:
        wanted = gateway_pb2.GOAWAY_REASON_DRAIN
    return gateway_pb2.GOAWAY_REASON_RESTART if alone and wanted in MOVING else wanted


def last_slot_s(deadline_s: float) -> float:
    """Seconds after which no slot begins any more, so that who has the last one still moves before the deadline."""
    return deadline_s - min(2.0, deadline_s / 3)


def short_s(streams: int, pace_per_s: float, left_s: float) -> float:
    """Seconds that so many streams need at this pace beyond those that are left; 0 when they suffice, infinite when
    nobody takes any."""
    if not streams:
        return 0.0
    if pace_per_s <= 0:
        return float("inf")
    return max(0.0, (streams - 1) / pace_per_s - max(0.0, left_s))


def restart_window_ms(streams: int, admission_per_s: float) -> int:
    """Milliseconds over which the nodes of a lone replica spread their return: what it admits, at least a quarter
    second."""
    paced_ms = streams * 1000 / admission_per_s if admission_per_s > 0 else 1000.0
    return int(min(max(250.0, paced_ms), MAX_RESTART_WINDOW_MS))


def drain_estimate_s(left: int, gone: int, elapsed_s: float) -> tuple[float, float]:
    """(streams per second so far, seconds to go at that rate); the estimate is 0 while nothing is known."""
    rate = gone / elapsed_s if elapsed_s > 0 else 0.0
    return rate, (left / rate if rate > 0 else 0.0)
