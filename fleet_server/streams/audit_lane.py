"""Rows of a node's own audit: stored frame by frame, acknowledged after their commit.

An honest node sends the next frame after the acknowledgement of the last one. Of one that does not, a few frames wait;
the rest is dropped, and comes again because nobody acknowledges it.
"""

from __future__ import annotations

from collections.abc import Callable

from fleet.clock import Clock
from fleet.v1 import gateway_pb2
from fleet_server.audit.node_audit import NodeAudit
from fleet_server.streams.pump import Pump

MAX_WAITING = 2


class AuditLane:
    """Stores one stream's audit frames in order.

    Args:
        epoch: of the stream.
        opened_chain: newest audit chain that was given to the node.
        send: queues a control frame.
        failed: told when a frame cannot be stored; the stream ends then.
    """

    __slots__ = ("_audit", "_epoch", "_node_id", "_opened_chain", "_pump", "_send", "_sent_back", "_waiting")

    def __init__(
        self,
        node_id: str,
        audit: NodeAudit,
        clock: Clock,
        *,
        epoch: int,
        opened_chain: int,
        send: Callable[[gateway_pb2.ServerControl], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._node_id = node_id
        self._epoch = epoch
        self._audit = audit
        self._opened_chain = opened_chain
        self._send = send
        self._waiting: list[gateway_pb2.AuditRows] = []
        self._sent_back = False
        self._pump = Pump(self._store, clock, failed)

    def put(self, rows: gateway_pb2.AuditRows) -> None:
        """Queue a frame, unless too many wait already."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(rows)
            self._pump.kick()

    async def wait_idle(self) -> None:
        """Return once no commit is under way."""
        await self._pump.wait_idle()

    async def _store(self) -> None:
        while self._waiting:
            frame = self._waiting[0]
            ack = await self._audit.take(
                self._node_id, self._epoch, frame, opened_chain=self._opened_chain, sent_back=self._sent_back
            )
            del self._waiting[0]
            self._sent_back = bool(frame.rows) and ack.number < frame.rows[-1].number
            self._send(gateway_pb2.ServerControl(audit_ack=ack))
