"""Poll: commands and cancels that wait to be sent, found whoever was to wake their stream.

A wake-up is a hint: one may be lost with the replica that was to send it, a row may have come another way, and a stream
that paused has nobody to wake it. One read for the whole fleet, by way of the runs that are open, costs an idle server
next to nothing; streams that asked each for itself cost it a transaction a heartbeat. A command is sent within two
seconds of its issue though nobody says a word of it (docs/architecture.md), so the read comes each second: one that
waits for a thread, and the claim that follows, have another.

Another replica that issued or cancelled something says so. It is not believed: whether a node has anything to be sent
is read first, so whoever floods this replica with names of nodes has it read at most so often, and write nothing.

The read also finds the runs whose commands have all ended. They are noted as that, so that the next read leaves them
out: by the replica that holds the node's stream, and by any if they are still there in the next round.
"""

from __future__ import annotations

from typing import NamedTuple

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.commands import open_store, store
from fleet_server.commands.cancels import Cancels
from fleet_server.commands.changes import Announcer
from fleet_server.commands.open_store import RunKey, Survey
from fleet_server.commands.ports import Rooms
from fleet_server.commands.store import Connection, Key
from fleet_server.database.wakeup import Bell

log = get_logger(__name__)

INTERVAL_S = 1.0
_HINT_PAUSE_S = 0.01
_CANCEL_PAUSE_S = 0.05
_ON_ITS_WAY_MS = 10_000
"""So long after it was marked SENT a command without an answer wakes nobody: one order to 10,000 nodes takes longer
than a round, and each round had all of them look into the database for what they had just been handed."""
_ASKED_ONE_BY_ONE = 64
_ROUND_PAUSE_S = 0.1
"""Between two rounds for the whole fleet, whatever is hinted."""
_ENDED_AT_ONCE = 2048
"""Runs in a transaction: the writer is everybody's."""


class _Found(NamedTuple):
    """What one read of the whole fleet found."""

    survey: Survey
    cancels: list[Key]


class Poll:
    """Wakes the nodes that have something to be sent."""

    def __init__(self, rooms: Rooms, announcer: Announcer, cancels: Cancels) -> None:
        self._rooms = rooms
        self._announcer = announcer
        self._cancels = cancels
        self._bell = Bell(rooms.clock)
        self._began_s = self._due_s = 0.0
        self._hinted: set[str] = set()
        self._left: set[RunKey] = set()
        rooms.wakeup.on_hint("node", self._nodes_hinted, pause_s=_HINT_PAUSE_S)
        rooms.wakeup.on_hint("cancel", self._cancels_hinted, pause_s=_CANCEL_PAUSE_S)

    async def run(self) -> None:
        """Poll until cancelled; a database that is away is asked again."""
        self._put_off()
        while True:
            await self._bell.wait(max(0.0, self._due_s - self._rooms.clock.monotonic()))
            try:
                if self._rooms.clock.monotonic() >= self._due_s:
                    self._put_off()
                    await self.poll()
                else:
                    await self.look()
            except Refusal as refusal:
                log.debug("command_poll_put_off", reason=str(refusal.reason))

    async def poll(self) -> None:
        """One round for the whole fleet."""
        self._hinted.clear()
        has_lane = self._announcer.handover.has_lane
        counts = self._announcer.counts
        counts.reading()
        sent_before_ms = self._rooms.clock.now_ms() - _ON_ITS_WAY_MS
        found = await self._rooms.database.read(lambda conn: _find(conn, sent_before_ms))
        nodes, ended = found.survey
        counts.adopt(nodes)
        self._rooms.metrics.open.set(counts.total)  # where nothing is issued and nothing ends, too
        self._cancels.found(found.cancels)
        waiting = [node.node_id for node in nodes if node.unanswered and has_lane(node.node_id)]
        self._rooms.wakeup.wake_nowait([f"node:{node_id}" for node_id in waiting])
        await self._end(ended)

    async def look(self) -> None:
        """What other replicas named since the last round: the few nodes that were, or all of them."""
        named = list(self._hinted)
        self._hinted.clear()
        if len(named) > _ASKED_ONE_BY_ONE:
            self._hasten()
        elif named:
            waiting = await self._rooms.database.read(lambda conn: store.with_queued(conn, named))
            self._rooms.wakeup.wake_nowait([f"node:{node_id}" for node_id in waiting])

    async def _end(self, ended: list[RunKey]) -> None:
        has_lane = self._announcer.handover.has_lane
        ours = [run for run in ended if run in self._left or has_lane(run[1])]
        self._left = set(ended).difference(ours)
        for start in range(0, len(ours), _ENDED_AT_ONCE):
            some = ours[start : start + _ENDED_AT_ONCE]
            await self._rooms.database.write(lambda tx, some=some: open_store.end_runs(tx.conn, some))  # type: ignore[misc]

    def _put_off(self) -> None:
        self._began_s = self._rooms.clock.monotonic()
        self._due_s = self._began_s + INTERVAL_S

    def _hasten(self) -> None:
        """Have the next round soon: at once, if the last one is not of this moment."""
        self._due_s = min(self._due_s, self._began_s + _ROUND_PAUSE_S)
        self._bell.ring_nowait()

    def _nodes_hinted(self, node_ids: frozenset[str] | None) -> None:
        if node_ids is None:
            self._hasten()
            return
        here = set(filter(self._announcer.handover.has_lane, node_ids))
        if here:
            self._hinted |= here
            self._bell.ring_nowait()

    def _cancels_hinted(self, node_ids: frozenset[str] | None) -> None:
        if node_ids is None or any(map(self._announcer.handover.has_lane, node_ids)):
            self._hasten()


def _find(conn: Connection, sent_before_ms: int) -> _Found:
    survey = open_store.survey(conn, sent_before_ms)
    return _Found(survey, open_store.asked_cancels(conn) if any(node.asked for node in survey.nodes) else [])
