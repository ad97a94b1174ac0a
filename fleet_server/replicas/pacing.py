"""How fast a replica that drains may send its streams to the others. Pure.

The others say in their heartbeats what they admit a second and how many streams they hold. One that drains itself, was
asked to, or is nearly full takes nobody. Replicas that drain at the same time read the same rows and share what is
left by their streams, so that together they never send more than is admitted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fleet_server.replicas.rules import LIVING, ReplicaRecord, ReplicaState

NEARLY_FULL = 0.95
"""Of `max_streams`: what is left is kept for nodes that come by themselves."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What one draining replica may send away.

    Args:
        per_s: streams a second; 0 when nobody takes any.
        room: streams that the others can hold beside their own; None when one of them does not say how many it may.
    """

    per_s: float
    room: int | None


def pace(own_id: str, own_streams: int, replicas: Iterable[ReplicaRecord]) -> Pace:
    """What the replica `own_id`, which drains `own_streams` streams, may send to the others now."""
    others = [replica for replica in replicas if replica.replica_id != own_id and replica.state in LIVING]
    takers = [replica for replica in others if takes(replica)]
    leaving = sum(replica.streams for replica in others if leaves(replica))
    share = own_streams / (own_streams + leaving) if leaving else 1.0
    rooms = [room(replica) for replica in takers]
    known = [each for each in rooms if each is not None]
    return Pace(
        per_s=share * sum(replica.admission_per_s for replica in takers),
        room=int(share * sum(known)) if len(known) == len(rooms) else None,
    )


def takes(replica: ReplicaRecord) -> bool:
    """Whether nodes may be sent there."""
    return replica.state is ReplicaState.READY and replica.drain is None and room(replica) != 0


def leaves(replica: ReplicaRecord) -> bool:
    """Whether its own streams are on the way to the others, or will be in a moment."""
    return replica.state is ReplicaState.DRAINING or (replica.state in LIVING and replica.drain is not None)


def room(replica: ReplicaRecord) -> int | None:
    """Streams that it takes before it is nearly full; None when it does not say how many it may hold (an older
    server)."""
    if not replica.max_streams:
        return None
    return max(0, int(replica.max_streams * NEARLY_FULL) - replica.streams)


def last_to_take(own_id: str, replicas: Iterable[ReplicaRecord]) -> bool:
    """Whether nobody would be left for nodes to go to once `own_id` drains: its drain is a restart."""
    return not any(takes(replica) for replica in replicas if replica.replica_id != own_id)


def needed_s(streams: int, per_s: float) -> float:
    """Seconds that so many streams take at this pace; 0 when there are none, or nobody takes any."""
    return streams / per_s if per_s > 0 else 0.0
