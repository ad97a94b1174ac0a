"""What waits to be written to one stream, in the order of what matters: control frames first, cumulative acks folded
into one."""

from __future__ import annotations

import asyncio
from collections import deque

from fleet.v1 import command_pb2, gateway_pb2, telemetry_pb2

MAX_QUEUED = 512


class Outbox:
    """Queue between the lanes of a stream and its one writer. Acks are cumulative, so only the newest is kept."""

    __slots__ = ("_closed", "_frames", "_report_ack", "_telemetry_ack", "_wake")

    def __init__(self) -> None:
        self._frames: deque[gateway_pb2.ServerControl] = deque()
        self._report_ack = 0
        self._telemetry_ack = 0
        self._closed = False
        self._wake = asyncio.Event()

    def put(self, frame: gateway_pb2.ServerControl) -> bool:
        """Queue a control frame. False when the peer has stopped reading for so long that the queue is full."""
        if self._closed or len(self._frames) >= MAX_QUEUED:
            return False
        self._frames.append(frame)
        self._wake.set()
        return True

    def ack_reports(self, report_no: int) -> None:
        """Every report up to `report_no` is committed."""
        self._report_ack = max(self._report_ack, report_no)
        self._wake.set()

    def ack_telemetry(self, batch_seq: int) -> None:
        """Every batch up to `batch_seq` is committed or declared lost."""
        self._telemetry_ack = max(self._telemetry_ack, batch_seq)
        self._wake.set()

    def close(self) -> None:
        """Take nothing more; what is queued is still handed out."""
        self._closed = True
        self._wake.set()

    async def next(self) -> gateway_pb2.ServerControl | None:
        """The next frame to write; None once closed and empty."""
        while True:
            self._wake.clear()
            frame = self._pop()
            if frame is not None:
                return frame
            if self._closed:
                return None
            await self._wake.wait()

    def _pop(self) -> gateway_pb2.ServerControl | None:
        if self._frames:
            return self._frames.popleft()
        if self._report_ack:
            number, self._report_ack = self._report_ack, 0
            return gateway_pb2.ServerControl(result_ack=command_pb2.ResultAck(report_no=number))
        if self._telemetry_ack:
            number, self._telemetry_ack = self._telemetry_ack, 0
            return gateway_pb2.ServerControl(telemetry_ack=telemetry_pb2.TelemetryAck(batch_seq=number))
        return None
