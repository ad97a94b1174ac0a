"""Reports of one stream: everything queued is recorded in one call, and acknowledged after its commit.

Results are recorded whichever stream they arrive on: a superseded stream may still deliver them. While the database
is away they wait here, bounded, and the reader stops taking frames before that bound breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet.clock import Clock
from fleet.v1 import command_pb2
from fleet_server.commands.service import CommandService
from fleet_server.streams.pump import Pump

MAX_WAITING = 2048
MAX_WAITING_BYTES = 4 * 1024 * 1024


class ReportLane:
    """Records one node's reports in order.

    Args:
        ack: called with the highest report_no that is durable.
        failed: told when the lane cannot go on.
    """

    def __init__(
        self,
        *,
        node_id: str,
        commands: CommandService,
        clock: Clock,
        ack: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._node_id = node_id
        self._commands = commands
        self._ack = ack
        self._waiting: list[command_pb2.Report] = []
        self._held_bytes = 0  # of what waits, and of what is being recorded
        self._room: asyncio.Future[None] | None = None  # made by whoever waits
        self._failed = failed
        self._standing_still = False
        self._pump = Pump(self._record, clock, self._stand_still)

    def put(self, reports: command_pb2.ReportList, size_bytes: int) -> None:
        """Queue reports in report_no order; `size_bytes` as they came."""
        self._waiting.extend(reports.reports)
        self._held_bytes += size_bytes
        self._pump.kick()

    @property
    def full(self) -> bool:
        """Whether no further frame of reports may be taken for now."""
        return len(self._waiting) >= MAX_WAITING or self._held_bytes >= MAX_WAITING_BYTES

    async def wait_room(self) -> None:
        """Return once another frame of reports may be taken, or none will be recorded any more."""
        while self.full and not self._standing_still:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def wait_idle(self) -> None:
        """Return once no commit is under way."""
        await self._pump.wait_idle()

    async def _record(self) -> None:
        batch, size_bytes = self._waiting, self._held_bytes
        if not batch:
            return
        self._waiting = []
        try:
            await self._commands.record_reports(self._node_id, batch)
        except Exception:
            self._waiting = batch + self._waiting
            raise
        self._held_bytes -= size_bytes
        if not self.full:
            self._open()
        self._ack(batch[-1].report_no)

    def _stand_still(self, error: Exception) -> None:
        self._standing_still = True
        self._open()
        self._failed(error)

    def _open(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
