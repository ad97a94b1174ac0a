"""What waits to be written to one stream, in the order of what matters: control frames first, cumulative acks folded
into one, or into the commands that leave before it. Ten thousand of these wait at once, so an idle one holds an empty
list and a future, no deque and no event."""

from __future__ import annotations

import asyncio

from fleet.v1 import command_pb2, gateway_pb2, telemetry_pb2

MAX_QUEUED = 512
MAX_QUEUED_BYTES = 4 * 1024 * 1024
"""What an honest node has waiting: commands are bounded by its window, and trust bundles by what they answer."""


ACK_WAIT_S = 0.02
"""So long an acknowledgement of reports waits for commands to go along with: nobody waits for it."""


class Outbox:
    """Queue between the lanes of a stream and its one writer. Acks are cumulative, so only the newest is kept."""

    __slots__ = ("_ack_due", "_closed", "_frames", "_queued_bytes", "_report_ack", "_telemetry_ack", "_waiter")

    def __init__(self) -> None:
        self._frames: list[tuple[gateway_pb2.ServerControl, int]] = []
        self._queued_bytes = 0
        self._report_ack = 0
        self._ack_due: asyncio.TimerHandle | None = None
        self._telemetry_ack = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: gateway_pb2.ServerControl, size_bytes: int) -> bool:
        """Queue a control frame. False when the peer has stopped reading for so long that the queue is full.

        Args:
            size_bytes: of it, about; measuring it here would serialize it once more.
        """
        if self._closed or len(self._frames) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES:
            return False
        self._frames.append((frame, size_bytes))
        self._queued_bytes += size_bytes
        self._wake()
        return True

    def ack_reports(self, report_no: int) -> None:
        """Every report up to `report_no` is committed. Said with the commands that leave next, or alone in a moment."""
        self._report_ack = max(self._report_ack, report_no)
        if self._ack_due is None:
            self._ack_due = asyncio.get_running_loop().call_later(ACK_WAIT_S, self._ack_alone)

    def ack_telemetry(self, batch_seq: int) -> None:
        """Every batch up to `batch_seq` is committed or declared lost."""
        self._telemetry_ack = max(self._telemetry_ack, batch_seq)
        self._wake()

    def close(self) -> None:
        """Take nothing more; what is queued is still handed out."""
        self._closed = True
        self._wake()

    async def next(self) -> gateway_pb2.ServerControl | None:
        """The next frame to write; None once closed and empty."""
        while (frame := self._pop()) is None and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return frame

    def _ack_alone(self) -> None:
        self._ack_due = None
        self._wake()

    def _take_ack(self) -> int:
        if self._ack_due is not None:
            self._ack_due.cancel()
            self._ack_due = None
        number, self._report_ack = self._report_ack, 0
        return number

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pop(self) -> gateway_pb2.ServerControl | None:
        if self._frames:
            frame, size_bytes = self._frames.pop(0)
            self._queued_bytes -= size_bytes
            if self._report_ack and frame.HasField("commands"):
                # A node that has room for commands has mostly just reported others: one frame says both.
                frame.commands.reports_acked = self._take_ack()
            return frame
        if self._report_ack and (self._ack_due is None or self._closed):
            return gateway_pb2.ServerControl(result_ack=command_pb2.ResultAck(report_no=self._take_ack()))
        if self._telemetry_ack:
            number, self._telemetry_ack = self._telemetry_ack, 0
            return gateway_pb2.ServerControl(telemetry_ack=telemetry_pb2.TelemetryAck(batch_seq=number))
        return None
