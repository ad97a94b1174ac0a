"""Reports of one stream: everything queued is recorded in one call, and acknowledged after its commit.

Results are recorded whichever stream they arrive on: a superseded stream may still deliver them. While the database
is away they wait here, bounded for each stream and over all of them, and the reader stops taking frames before that
bound breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1 import command_pb2
from fleet_server.commands.service import CommandService
from fleet_server.streams.pump import Pump

log = get_logger(__name__)

MAX_WAITING = 2048
MAX_WAITING_BYTES = 4 * 1024 * 1024
MAX_HELD_BYTES = 128 * 1024 * 1024


class HeldReports:
    """Bytes of the reports that all streams hold.

    Past the bound whoever holds more than an even share takes no more; those with less go on up to it, so nobody is
    silenced by what others sent, and all of them together stay below twice the bound and a frame for each stream.
    Whoever waits holds bytes of its own, and goes on once these are recorded: it waits for nobody else.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._told = False
        self.held_bytes = 0
        self.holders = 0

    def crowded(self, own_bytes: int) -> bool:
        """Whether a stream that holds `own_bytes` has to wait."""
        return self.held_bytes >= self._max_bytes and own_bytes * self.holders >= self._max_bytes

    def add(self, own_bytes: int, size_bytes: int) -> None:
        """A stream that held `own_bytes` holds `size_bytes` more."""
        if not own_bytes:
            self.holders += 1
        self.held_bytes += size_bytes
        if self.held_bytes >= self._max_bytes and not self._told:
            self._told = True
            log.warning("reports_held_back", held_bytes=self.held_bytes, streams=self.holders)

    def remove(self, own_bytes: int, size_bytes: int) -> None:
        """Of the `own_bytes` that a stream held `size_bytes` are recorded, or given up."""
        if size_bytes and own_bytes == size_bytes:
            self.holders -= 1
        self.held_bytes -= size_bytes
        if self._told and self.held_bytes < self._max_bytes // 2:
            self._told = False
            log.info("reports_flow_again", held_bytes=self.held_bytes)


class ReportLane:
    """Records one node's reports in order.

    Args:
        held: shared by all streams.
        ack: called with the highest report_no that is durable.
        failed: told when the lane cannot go on.
    """

    def __init__(
        self,
        *,
        node_id: str,
        commands: CommandService,
        clock: Clock,
        held: HeldReports,
        ack: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._node_id = node_id
        self._commands = commands
        self._held = held
        self._ack = ack
        self._waiting: list[command_pb2.Report] = []
        self._held_bytes = 0  # of what waits, and of what is being recorded
        self._room: asyncio.Future[None] | None = None  # made by whoever waits
        self._failed = failed
        self._standing_still = False
        self._pump = Pump(self._record, clock, self._stand_still)

    def put(self, reports: command_pb2.ReportList, size_bytes: int) -> None:
        """Queue reports in report_no order; `size_bytes` as they came."""
        if self._standing_still:
            return
        self._waiting.extend(reports.reports)
        self._held.add(self._held_bytes, size_bytes)
        self._held_bytes += size_bytes
        self._pump.kick()

    @property
    def full(self) -> bool:
        """Whether no further frame of reports may be taken for now."""
        return (
            len(self._waiting) >= MAX_WAITING
            or self._held_bytes >= MAX_WAITING_BYTES
            or self._held.crowded(self._held_bytes)
        )

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
        self._let_go(size_bytes)
        if not self.full:
            self._open()
        self._ack(batch[-1].report_no)

    def _stand_still(self, error: Exception) -> None:
        self._standing_still = True
        self._let_go(self._held_bytes)
        self._open()
        self._failed(error)

    def _let_go(self, size_bytes: int) -> None:
        self._held.remove(self._held_bytes, size_bytes)
        self._held_bytes -= size_bytes

    def _open(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
