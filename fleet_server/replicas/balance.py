"""Which nodes' worth of streams a replica hands on when another one has joined, or has come back. Pure.

Mental model
    Every replica reads the same heartbeats and decides for itself, each few seconds, from the same figures: who holds
    more than its share, who holds less, and which part of what is missing there is its own to give. The parts of all
    who give add up to what is missing, so together they never overshoot. A step is small (a share of the own streams,
    a quarter of what the takers have time for), and the next one waits until the one before has had its effect.
    Giving begins well above the share and ends close to it: a fleet that is about even is left alone. Nobody gives
    while a replica drains or a storm goes on. Where nodes do not stay away (a balancer sends them back, a network
    keeps them here), it is given up for a while that doubles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet_server.replicas.pacing import leaves, room, takes
from fleet_server.replicas.rules import ReplicaRecord, ReplicaState

ROUND_S = 5.0
"""Between steps: heartbeats come each 2 s, and a node moves within its slot."""
BEGIN_ABOVE = 0.20
END_ABOVE = 0.05
"""Of the share, above it."""
BEGIN_STREAMS = 10
"""A few streams more than the share are no reason to move any."""
STEP_SHARE = 0.10
"""Of the own streams, in one step."""
ADMISSION_SHARE = 0.25
"""Of what the takers have time for: nodes that come by themselves, or from a drain that begins, have the rest."""
STORM_SHARE = 0.5
"""Of what a replica admits: while it takes on more than that, nodes come back to it as it is."""
STUCK_SHARE = 2 / 3
"""Of nodes that were moved: when more of them stayed, or came back, moving them is of no use."""
STUCK_NODES = 6
"""So many are looked at together: of two that a balancer draws lots for, both often come back."""
QUIET_S = 600.0
MAX_QUIET_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Excess:
    """How this replica stands.

    Args:
        streams: above its share; negative below it.
        share: of the fleet's streams, that is its own.
    """

    streams: float
    share: float


@dataclass(frozen=True, slots=True)
class Step:
    """What a replica hands on now.

    Args:
        parts: streams, by the replica that they are meant for; empty for none.
        per_s: streams a second that may leave.
    """

    parts: Mapping[str, int]
    per_s: float = 0.0


NO_STEP = Step({})


class Balance:
    """What one replica gives, from step to step."""

    def __init__(self) -> None:
        self.giving = False
        self._quiet_s = QUIET_S
        self._quiet_until_s = 0.0
        self._told = self._stayed = 0

    def step(self, own_id: str, replicas: Sequence[ReplicaRecord], now_s: float) -> Step:
        """What to hand on now.

        Args:
            own_id: this replica, whose row may be as old as those of the others.
            replicas: all, as their heartbeats told.
            now_s: monotonic seconds.
        """
        standing = excess_of(own_id, replicas)
        if standing is None or now_s < self._quiet_until_s or disturbed(replicas):
            self.giving = False
            return NO_STEP
        bound = END_ABOVE * standing.share if self.giving else max(BEGIN_STREAMS, BEGIN_ABOVE * standing.share)
        self.giving = standing.streams > bound
        return _step(own_id, replicas, standing) if self.giving else NO_STEP

    def settled(self, told: int, stayed: int, now_s: float) -> bool:
        """A step has had its time: of `told` nodes `stayed` are here, still or again. Whether to go on."""
        self._told += told
        self._stayed += stayed
        if self._told < STUCK_NODES:
            return True
        stuck = self._stayed > self._told * STUCK_SHARE
        self._told = self._stayed = 0
        if stuck:
            self.giving = False
            self._quiet_until_s = now_s + self._quiet_s
            self._quiet_s = min(MAX_QUIET_S, self._quiet_s * 2)
            return False
        self._quiet_s = QUIET_S
        return True

    def quiet_s(self, now_s: float) -> float:
        """Seconds for which it is given up; 0 while it is not."""
        return max(0.0, self._quiet_until_s - now_s)


def disturbed(replicas: Sequence[ReplicaRecord]) -> bool:
    """Whether a replica drains, or nodes come back to one as fast as it lets them: no time to move others."""
    return any(
        leaves(replica)
        or (
            replica.state is ReplicaState.READY
            and replica.admitted_per_s > STORM_SHARE * max(replica.admission_per_s, 1.0)
        )
        for replica in replicas
    )


def excess_of(own_id: str, replicas: Sequence[ReplicaRecord]) -> Excess | None:
    """How the replica stands among those that take nodes; None when it is none of them, or alone."""
    shares = _shares(replicas)
    own = [replica for replica in replicas if replica.replica_id == own_id]
    if own_id not in shares or len(shares) < 2:
        return None
    return Excess(own[0].streams - shares[own_id], shares[own_id])


def _shares(replicas: Sequence[ReplicaRecord]) -> Mapping[str, float]:
    """What each replica that serves would hold of all streams: as much as others, or by what each may hold where that
    is not the same."""
    serving = [each for each in replicas if each.state is ReplicaState.READY and each.drain is None]
    if any(each.max_streams == 0 for each in serving):
        weights = {each.replica_id: 1.0 for each in serving}
    else:
        weights = {each.replica_id: float(each.max_streams) for each in serving}
    whole, streams = sum(weights.values()), sum(each.streams for each in serving)
    return {name: streams * weight / whole for name, weight in weights.items()}


def _step(own_id: str, replicas: Sequence[ReplicaRecord], standing: Excess) -> Step:
    shares = _shares(replicas)
    above = {each.replica_id: each.streams - shares[each.replica_id] for each in replicas if each.replica_id in shares}
    givers = sum(excess for excess in above.values() if excess > 0)
    own_part = standing.streams / givers
    takers = {each.replica_id: each for each in replicas if above.get(each.replica_id, 0) < 0 and takes(each)}
    missing = {name: _missing(taker, -above[name]) for name, taker in takers.items()}
    own_streams = standing.streams + standing.share
    per_s = ADMISSION_SHARE * own_part * sum(taker.admission_per_s for taker in takers.values())
    left = int(min(standing.streams, max(1.0, STEP_SHARE * own_streams), ROUND_S * per_s))
    parts: dict[str, int] = {}
    for name in sorted(missing, key=lambda name: (-missing[name], name)):
        # Rounded down: what is left over is for a later step, and two givers never round up at the same taker.
        part = min(left, int(missing[name] * own_part))
        if part > 0:
            parts[name] = part
            left -= part
    return Step(parts, per_s)


def _missing(taker: ReplicaRecord, below: float) -> float:
    space = room(taker)
    return below if space is None else min(below, float(space))
