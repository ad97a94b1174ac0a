"""Gives the audit's rows to the newest stream: one frame at a time, the next one after its acknowledgement.

What there is to tell gathers for five seconds, is chained once and sent; what comes in meanwhile gathers for the next
round. So a busy node tells many commands in few rows, and few frames: a row a command costs both sides a third of what
the command does. After a long time offline the frames follow each other as fast as the server commits them. The server
says where to go on: it may have less than it once acknowledged, when its database was restored.
"""

from __future__ import annotations

import asyncio

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.v1 import gateway_pb2
from fleet_node.commands.journal import Journal
from fleet_node.commands.store import JournalStore, JournalUnavailableError
from fleet_node.link.ports import Uplink
from fleet_node.observability.metrics import CommandMetrics

log = get_logger(__name__)

GATHER_S = 5.0
_RETRY_S = 30.0


class AuditSender:
    """See the module.

    Args:
        journal: where the rows are; started before the first stream.
        clock: for the time in which rows gather.
    """

    def __init__(self, *, journal: Journal, clock: Clock, metrics: CommandMetrics) -> None:
        self._journal = journal
        self._clock = clock
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._ready: bytes | None = None
        self._acked = asyncio.Event()
        self._ack = gateway_pb2.AuditAck()
        self._known = False  # whether the server has said how far it is
        self._sent = 0

    def opened(self, uplink: Uplink) -> None:
        """A stream was welcomed: rows that nobody acknowledged go out again on it."""
        self.close()
        self._task = asyncio.get_running_loop().create_task(self._run(uplink))

    def take(self) -> bytes | None:
        """The frame that is ready, a serialised `NodeControl`, once."""
        ready, self._ready = self._ready, None
        return ready

    def acked(self, ack: gateway_pb2.AuditAck) -> None:
        """The server said how far it is."""
        self._ack = ack
        self._known = True
        if ack.paused:
            log.warning("audit_not_taken", reason=ack.paused, retry_after_ms=ack.retry_after_ms)
        self._acked.set()

    def close(self) -> None:
        """Give out nothing more."""
        self._ready = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, uplink: Uplink) -> None:
        self._journal.audit_news.set()  # what the last stream left
        while True:
            await self._journal.audit_news.wait()
            await self._clock.sleep(GATHER_S)
            self._journal.audit_news.clear()
            try:
                await self._send_all(uplink)
            except JournalUnavailableError as error:
                log.error("audit_not_read", error=str(error))
                await self._clock.sleep(_RETRY_S)
                self._journal.audit_news.set()

    async def _send_all(self, uplink: Uplink) -> None:
        await self._journal.query(JournalStore.chain_audit)
        while rows := await self._next():
            self._acked.clear()
            self._sent = rows[-1].number
            self._ready = gateway_pb2.NodeControl(audit=gateway_pb2.AuditRows(rows=rows)).SerializeToString()
            uplink.wake()
            await self._acked.wait()
            if self._ack.number >= self._sent:
                self._metrics.audit_sent.inc(len(rows))
            pause_s = self._ack.retry_after_ms / 1000
            if self._ack.number < rows[0].number:
                pause_s = max(pause_s, GATHER_S)  # nothing was taken: it may not be asked for without end
            if pause_s:
                await self._clock.sleep(pause_s)

    async def _next(self) -> list[gateway_pb2.AuditRow]:
        if not self._known:
            return await self._journal.query(lambda store: store.next_audit(0, store.audit.acked_number))
        number = min(self._ack.number, self._sent)
        return await self._journal.query(lambda store: store.next_audit(number, number))
