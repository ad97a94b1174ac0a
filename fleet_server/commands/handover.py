"""Hand over: a command whose node waits for work leaves with the very commit that issued it.

A stream that has sent everything and has room is a lane that waits. Its node's next command need not be committed as
QUEUED, claimed in a second transaction and read back: it is written as SENT, and handed to the lane once that stands.
Nothing rests on the handing: a lane that cannot take what it is given (it moved on, or is held, meanwhile) claims it
as it claims everything else, and a stream that ended leaves it to the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from fleet_server.commands.runs import PendingCommand, Run

_HANDED_AT_ONCE = 32


class Lane(Protocol):
    """The sending side of a node's newest stream."""

    def key_for(self, epoch: int, first_seq: int, count: int) -> bytes | None:
        """Id of the key that would sign these commands at once; None when they have to be claimed in their turn.

        Any thread may ask, so the answer is a guess: `take` decides.
        """
        ...

    def take(self, commands: Sequence[PendingCommand], key_id: bytes | None) -> None:
        """Sign with that key and send, or claim later, as when another key signs by now; on the event loop."""
        ...


FindLane = Callable[[str], Lane | None]
"""Lane of a node's newest stream on this replica; any thread may ask."""


def _no_lane(_: str) -> Lane | None:
    return None


class Handover:
    """Knows the lanes of this replica; none before `connect`."""

    def __init__(self) -> None:
        self._find: FindLane = _no_lane

    def connect(self, find: FindLane) -> None:
        """Hand over to these lanes from now on."""
        self._find = find

    def has_lane(self, node_id: str) -> bool:
        """Whether the node has a stream on this replica."""
        return self._find(node_id) is not None

    def key_for(self, node_id: str, epoch: int, first_seq: int, count: int) -> bytes | None:
        """Key that signs these commands as soon as they are committed; None when nobody waits for them.

        Args:
            epoch: of the node's newest stream, at whichever replica, which stays that until the commit.
        """
        lane = self._find(node_id)
        return None if lane is None else lane.key_for(epoch, first_seq, count)

    def hand_nowait(self, runs: Sequence[Run]) -> None:
        """Give committed commands to their lanes, a few in each turn of the loop: signing thousands takes its time."""
        for run in runs[:_HANDED_AT_ONCE]:
            lane = self._find(run.node_id)
            if lane is not None:
                lane.take(run.pending(), run.rows[0].key_id)
        if len(runs) > _HANDED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self.hand_nowait, runs[_HANDED_AT_ONCE:])
