"""Poll: commands that wait to be sent, found whoever was to wake their stream.

A wake-up is a hint: one may be lost with the replica that was to send it, a row may have come another way, and a stream
that paused has nobody to wake it. One read for the whole fleet, over the index of open commands, costs an idle server
next to nothing; streams that asked each for itself cost it a transaction a heartbeat.
"""

from __future__ import annotations

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.commands import store
from fleet_server.commands.ports import Rooms

log = get_logger(__name__)

INTERVAL_S = 2.0


class Poll:
    """Wakes the nodes that have something to be sent."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def run(self) -> None:
        """Poll until cancelled; a database that is away is asked again."""
        while True:
            await self._rooms.clock.sleep(INTERVAL_S)
            try:
                await self.poll()
            except Refusal as refusal:
                log.debug("command_poll_put_off", reason=str(refusal.reason))

    async def poll(self) -> None:
        """One round."""
        node_ids = await self._rooms.database.read(store.nodes_with_unanswered)
        self._rooms.wakeup.wake_nowait([f"node:{node_id}" for node_id in node_ids])
