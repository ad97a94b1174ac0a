"""What is broken, when, and for how long: made up front from a seed, so that a seed repeats it. Pure.

A fault has a target, and two faults never hold one target at once: a process that was killed is not frozen as well.
Faults of different targets overlap as they fall. Each kind is drawn once before any is drawn again, so that a short
run has seen most of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_S = 9.0
_QUIET_S = 1.0
"""Nothing is broken in the first second: everything is shown to work first."""


class Kind(StrEnum):
    """A fault; the name says what is done to the target."""

    KILL_REPLICA = "kill-replica"
    DRAIN_REPLICA = "drain-replica"
    HURRY_REPLICA = "hurry-replica"
    ORDER_DRAIN = "order-drain"
    FREEZE_REPLICA = "freeze-replica"
    KILL_NODES = "kill-nodes"
    STOP_NODES = "stop-nodes"
    FREEZE_NODES = "freeze-nodes"
    KILL_NODE = "kill-node"
    STOP_NODE = "stop-node"
    FREEZE_NODE = "freeze-node"
    CUT_LINK = "cut-link"
    PART_LINK = "part-link"
    DEAFEN_LINK = "deafen-link"
    HOLD_LINK = "hold-link"
    SLOW_LINK = "slow-link"
    PART_DATABASE = "part-database"
    DEAFEN_DATABASE = "deafen-database"
    SLOW_DATABASE = "slow-database"
    CRASH_DATABASE = "crash-database"
    RESTART_DATABASE = "restart-database"
    END_SESSIONS = "end-sessions"
    END_LISTENERS = "end-listeners"
    DRAIN_NODES = "drain-nodes"
    ROTATE_KEY = "rotate-key"


_OF_REPLICA = (Kind.KILL_REPLICA, Kind.DRAIN_REPLICA, Kind.HURRY_REPLICA, Kind.ORDER_DRAIN, Kind.FREEZE_REPLICA)
_OF_GROUP = (Kind.KILL_NODES, Kind.STOP_NODES, Kind.FREEZE_NODES)
_OF_NODE = (Kind.KILL_NODE, Kind.STOP_NODE, Kind.FREEZE_NODE)
_OF_LINK = (Kind.CUT_LINK, Kind.PART_LINK, Kind.DEAFEN_LINK, Kind.HOLD_LINK, Kind.SLOW_LINK)
_OF_DATABASE_LINK = (Kind.PART_DATABASE, Kind.DEAFEN_DATABASE, Kind.SLOW_DATABASE)
_AT_ONCE = frozenset({Kind.CUT_LINK, Kind.END_SESSIONS, Kind.END_LISTENERS})
"""Faults that are over when they have been done."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What there is to break.

    Args:
        replicas: names of the server processes.
        groups: names of the processes of many nodes each.
        nodes: names of the processes of one node each.
        patterns: selectors of nodes that are drained together.
    """

    replicas: Sequence[str]
    groups: Sequence[str]
    nodes: Sequence[str]
    patterns: Sequence[str]

    @property
    def sites(self) -> list[str]:
        """Where nodes stand: each has a link of its own to each replica. The single nodes share one."""
        return [*self.groups, "nodes"]


@dataclass(frozen=True, slots=True)
class Event:
    """One fault.

    Args:
        at_s: seconds after the start.
        lasts_s: seconds until it is undone; 0 for what is over at once.
        kind: what is done.
        target: to whom; of a link `SITE~REPLICA`.
        strength: from 0 to less than 1: how slow, which direction.
    """

    at_s: float
    lasts_s: float
    kind: Kind
    target: str
    strength: float

    def __str__(self) -> str:
        lasting = f" for {self.lasts_s:.1f} s" if self.lasts_s else ""
        return f"{self.at_s:6.1f} s  {self.kind.value:<16} {self.target}{lasting}"


def plan(seed: int, seconds: float, shape: Shape, *, gap_s: float) -> list[Event]:
    """Every fault of a run, by time. All are undone when `seconds` are over.

    Args:
        seed: the same one makes the same plan.
        seconds: how long things are broken.
        shape: what there is.
        gap_s: mean seconds between two faults.
    """
    chance = random.Random(seed)
    longest_s = min(LONGEST_S, seconds / 4)
    taken_until_s: dict[str, float] = {}
    events: list[Event] = []
    deck: list[Kind] = []
    at_s = _QUIET_S
    while True:
        at_s += chance.expovariate(1 / gap_s)
        if at_s >= seconds - longest_s / 4:
            return events
        if not deck:
            deck = [kind for kind in Kind if _targets(kind, shape)]
            chance.shuffle(deck)
        kind = deck.pop()
        lasts_s = 0.0 if kind in _AT_ONCE else round(chance.uniform(longest_s / 8, min(longest_s, seconds - at_s)), 2)
        strength = min(round(chance.random(), 3), 0.999)  # less than 1: it chooses among directions
        free = [target for target in _targets(kind, shape) if taken_until_s.get(_lane(kind, target), 0.0) < at_s]
        if not free:
            continue
        target = chance.choice(free)
        taken_until_s[_lane(kind, target)] = at_s + lasts_s
        events.append(Event(round(at_s, 2), lasts_s, kind, target, strength))


def _lane(kind: Kind, target: str) -> str:
    """What only one fault at a time may hold."""
    return f"{kind} {target}" if kind in _AT_ONCE else target


def _targets(kind: Kind, shape: Shape) -> list[str]:
    if kind in _OF_REPLICA:
        return list(shape.replicas)
    if kind in _OF_GROUP:
        return list(shape.groups)
    if kind in _OF_NODE:
        return list(shape.nodes)
    if kind in _OF_LINK:
        return [f"{site}~{replica}" for site in shape.sites for replica in shape.replicas]
    if kind in _OF_DATABASE_LINK:
        return [f"database~{replica}" for replica in shape.replicas]
    if kind is Kind.DRAIN_NODES:
        return list(shape.patterns)
    return ["keys"] if kind is Kind.ROTATE_KEY else ["database"]
