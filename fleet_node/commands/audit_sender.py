"""Gives the audit's rows to the newest stream: one frame at a time, the next one after its acknowledgement.

What there is to tell gathers for five seconds, is chained once and sent; what comes in meanwhile gathers for the next
round. So a busy node tells many commands in few rows, and few frames: a row a command costs both sides a third of what
the command does. After a long time offline the frames follow each other as fast as the server commits them. The server
says where to go on: it may have less than it once acknowledged, when its database was restored. Once a floor named
another chain, the answer to the rows of the one before decides where that begins (`AuditLog.answered`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial

from fleet.clock import Clock, ServerTime
from fleet.logs import get_logger
from fleet.node_signatures import SIGN_EVERY_S
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
        server_time: for the first row of another chain.
    """

    def __init__(self, *, journal: Journal, clock: Clock, server_time: ServerTime, metrics: CommandMetrics) -> None:
        self._journal = journal
        self._clock = clock
        self._server_time = server_time
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._ready: bytes | None = None
        self._acked = asyncio.Event()
        self._ack = gateway_pb2.AuditAck()
        self._known = False  # whether the server has said how far it is
        self._sent = 0
        self._chain = -1

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
        if ack.chain != self._chain:
            return  # late: that chain is done with
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
            await self._wait_news()
            await self._clock.sleep(GATHER_S)
            self._journal.audit_news.clear()
            try:
                await self._send_all(uplink)
            except JournalUnavailableError as error:
                log.error("audit_not_read", error=str(error))
                await self._clock.sleep(_RETRY_S)
                self._journal.audit_news.set()

    async def _wait_news(self) -> None:
        """There is more to tell, or what was told last is to be signed."""
        if not self._journal.audit_unsigned:
            await self._journal.audit_news.wait()
            return
        waits = [asyncio.ensure_future(self._journal.audit_news.wait()), asyncio.ensure_future(self._sign_time())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _sign_time(self) -> None:
        await self._clock.sleep(SIGN_EVERY_S)

    async def _send_all(self, uplink: Uplink) -> None:
        await self._journal.query(JournalStore.chain_audit)
        while rows := await self._next():
            self._acked.clear()
            self._sent = rows[-1].number
            frame = gateway_pb2.AuditRows(rows=rows, chain=self._chain)
            self._ready = gateway_pb2.NodeControl(audit=frame).SerializeToString()
            uplink.wake()
            await self._acked.wait()
            if self._ack.number >= self._sent:
                self._metrics.audit_sent.inc(len(rows))
            if await self._began_another():
                continue
            pause_s = self._ack.retry_after_ms / 1000
            if self._ack.number < rows[0].number:
                pause_s = max(pause_s, GATHER_S)  # nothing was taken: it may not be asked for without end
            if pause_s:
                await self._clock.sleep(pause_s)

    async def _began_another(self) -> bool:
        if self._journal.next_audit_chain <= self._chain:
            return False
        ack, sent, at_ms = self._ack, self._sent, self._server_time.now_ms()
        if not await self._journal.query(lambda store: _answered(store, ack, sent, at_ms)):
            return False
        log.warning("audit_chain_begun", chain=self._journal.audit_chain)
        return True

    async def _next(self) -> list[gateway_pb2.AuditRow]:
        rows = None
        while rows is None:  # a chain that was begun for a stream that ended meanwhile: look again
            if self._chain != self._journal.audit_chain:
                self._chain, self._known, self._sent = self._journal.audit_chain, False, 0
            rows = await self._journal.query(partial(self._read, self._chain, min(self._ack.number, self._sent)))
        return rows

    def _read(self, chain: int, number: int, store: JournalStore) -> list[gateway_pb2.AuditRow] | None:
        if store.audit.chain != chain:
            return None
        return store.next_audit(number, number) if self._known else store.next_audit(0, store.audit.acked_number)


def _answered(store: JournalStore, ack: gateway_pb2.AuditAck, sent: int, at_ms: int) -> bool:
    try:
        return store.audit.answered(ack, sent, at_ms)
    except sqlite3.Error as error:
        raise JournalUnavailableError(f"another chain of the audit cannot be begun ({error})") from error
