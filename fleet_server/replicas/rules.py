"""When a replica counts as lost, and what may be asked of one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet.errors import Reason, Refusal
from fleet.v1 import gateway_pb2

HEARTBEAT_INTERVAL_S = 2.0
DRAINING_INTERVAL_S = 0.5
"""Between heartbeats of a replica that drains: others pace their own by what it still holds, and people watch."""
SEEN_LATELY_S = 2.5 * HEARTBEAT_INTERVAL_S
LOST_AFTER_S = 10.0
LOOK_COUNTS_S = 1.5 * HEARTBEAT_INTERVAL_S
"""No two looks at the others count for more, however far they are apart."""
MAX_DRAIN_DEADLINE_S = 24 * 3600
LEAVE_WITHIN_S = 45.0
"""From the end of the drain to the end of the process: last writes, each with a bound, to a database that may be away,
and what it is still busy with."""


class ReplicaState(StrEnum):
    """Life of a server process."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    LOST = "LOST"


LIVING = frozenset({ReplicaState.STARTING, ReplicaState.READY, ReplicaState.DRAINING})
TAKING = frozenset({ReplicaState.STARTING, ReplicaState.READY})
"""Those that nodes come to, now or in a moment."""


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """Somebody asked this replica to drain.

    Args:
        requested_at_ms: Unix milliseconds; a later request replaces an earlier one.
        deadline_ms: `requested_at_ms` and what the drain may take, on the same clock; 0 leaves it to the replica's
            setting.
        reason: goaway reason; UNSPECIFIED leaves it to the replica.
    """

    requested_at_ms: int
    deadline_ms: int
    reason: gateway_pb2.GoawayReason.ValueType

    @property
    def deadline_s(self) -> float | None:
        """Seconds that the drain may take from when its replica hears of it; None leaves that to its setting.

        Only the clock of whoever was asked is in it: another machine's, however wrong, neither ends a drain at once nor
        lets it go on for ever.
        """
        return max(0, self.deadline_ms - self.requested_at_ms) / 1000 if self.deadline_ms else None


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a replica says of itself with each heartbeat.

    Args:
        streams: that it holds.
        max_streams: that it may hold; 0 for unknown.
        admission_per_s: handshakes that it has time for a second.
        admitted_per_s: handshakes that it takes on a second now.
        endpoints: `host:port` under which nodes reach it, maybe through something that spreads them over others too.
    """

    streams: int
    max_streams: int = 0
    admission_per_s: float = 0.0
    admitted_per_s: float = 0.0
    endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One server process. Times are Unix milliseconds; `max_streams` is 0 for an older server, which does not say;
    `admission_per_s` handshakes that it has time for per second, `admitted_per_s` that it takes on now;
    `secret_keys` ids of the secret encryption keys that it holds, the one that writes first; `tls_cas` SHA-256 of the
    TLS CAs from outside that it shows a certificate of, or would."""

    replica_id: str
    version: str
    state: ReplicaState
    streams: int
    admission_per_s: float
    started_at_ms: int
    heartbeat_at_ms: int
    drain: DrainRequest | None
    secret_keys: str = ""
    tls_cas: str = ""
    max_streams: int = 0
    admitted_per_s: float = 0.0
    endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holder:
    """Which process stands in the row of a replica id.

    Args:
        boot_id: see `boot_id`; empty from an older server.
        heartbeat_at_ms: changes with each of its heartbeats.
    """

    boot_id: str
    state: ReplicaState
    heartbeat_at_ms: int


def boot_id(place: str, token: str) -> str:
    """Names one process for good: the data folder that it has locked, and chance."""
    return f"{place}.{token}"


def is_foreign(holder: Holder, own_boot_id: str) -> bool:
    """Whether it may live in another data folder, so that the lock of the own one proves nothing."""
    return holder.boot_id.partition(".")[0] != own_boot_id.partition(".")[0]


def is_known_gone(holder: Holder, own_boot_id: str) -> bool:
    """Whether its name may be taken at once: it said goodbye, was found lost, or had the data folder that is locked by
    this process now. One that was found lost and lives finds out that it was replaced."""
    return holder.state not in LIVING or not is_foreign(holder, own_boot_id)


class HeartbeatWatch:
    """Finds replicas whose heartbeat stands still, on this replica's own monotonic clock.

    Two machines' wall clocks are never compared: a replica with a wrong clock is not declared lost for that. Nor does
    time count in which this one did not look: while the database is away nobody can beat, and who stands still itself
    sees nobody else do.
    """

    def __init__(self, lost_after_s: float = LOST_AFTER_S) -> None:
        self._lost_after_s = lost_after_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked_s = 0.0

    def lost(self, replicas: Iterable[ReplicaRecord], now_s: float) -> list[ReplicaRecord]:
        """Living replicas whose heartbeat has not changed for `lost_after_s`.

        Args:
            replicas: all, as stored now.
            now_s: monotonic seconds.
        """
        watched_s = min(now_s - self._looked_s, LOOK_COUNTS_S)
        self._looked_s = now_s
        before: Mapping[str, tuple[int, float]] = self._seen
        self._seen = {}
        found = []
        for replica in replicas:
            if replica.state not in LIVING:
                continue
            beat, still_s = before.get(replica.replica_id, (-1, 0.0))
            still_s = still_s + watched_s if beat == replica.heartbeat_at_ms else 0.0
            self._seen[replica.replica_id] = (replica.heartbeat_at_ms, still_s)
            if still_s >= self._lost_after_s:
                found.append(replica)
        return found


def checked_deadline_s(deadline_s: int) -> int:
    """Seconds that a drain may take; 0 leaves it to the replica.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not 0 <= deadline_s <= MAX_DRAIN_DEADLINE_S:
        raise Refusal(Reason.INVALID_ARGUMENT, f"a drain's deadline is 0 to {MAX_DRAIN_DEADLINE_S} seconds")
    return deadline_s


def ends_within_s(delay_s: float, deadline_s: float) -> float:
    """Seconds from the request to drain within which a replica has ended, for it sees to that itself, and a dead one is
    known to be lost.

    Args:
        delay_s: between the end of its readiness and its drain.
        deadline_s: of the drain.
    """
    heard_s = HEARTBEAT_INTERVAL_S  # at the latest: the hint to the replica may be lost
    return heard_s + delay_s + deadline_s + LEAVE_WITHIN_S + LOST_AFTER_S + LOOK_COUNTS_S


def checked_reason(reason: int) -> gateway_pb2.GoawayReason.ValueType:
    """Why the nodes of a draining replica are told to go; UNSPECIFIED leaves it to the replica.

    Raises:
        Refusal: INVALID_ARGUMENT; the other reasons speak of one node, not of its replica.
    """
    found = _DRAIN_REASONS.get(reason)
    if found is None:
        raise Refusal(
            Reason.INVALID_ARGUMENT, "a replica drains for one of drain, upgrade, rebalance, restart or shutdown"
        )
    return found


_DRAIN_REASONS: Mapping[int, gateway_pb2.GoawayReason.ValueType] = {
    int(reason): reason
    for reason in (
        gateway_pb2.GOAWAY_REASON_UNSPECIFIED,
        gateway_pb2.GOAWAY_REASON_DRAIN,
        gateway_pb2.GOAWAY_REASON_UPGRADE,
        gateway_pb2.GOAWAY_REASON_REBALANCE,
        gateway_pb2.GOAWAY_REASON_RESTART,
        gateway_pb2.GOAWAY_REASON_SHUTDOWN,
    )
}


def refuse_drain(replica: ReplicaRecord, *, last: bool = False) -> Refusal | None:
    """Why a replica cannot be drained; None when it can.

    Args:
        last: no other one takes nodes. One that drains already may be asked again: that shortens its drain.
    """
    if replica.state not in LIVING:
        return Refusal(Reason.CONFLICT, f"replica {replica.replica_id} is {replica.state}: there is nothing to drain")
    if last and replica.state is not ReplicaState.DRAINING and replica.drain is None:
        return Refusal(
            Reason.CONFLICT,
            f"no replica but {replica.replica_id} takes nodes: they would be without a stream, and their commands would"
            " wait, until a server is back. Start another replica first, or repeat with --force to restart this one",
        )
    return None
