"""One direction of a proxied connection: reads from one socket, writes to the other, and misbehaves as told.

A lane is a reader task and a writer task around a queue. The two switches give the faults their meaning:

| reading | forwarding | what the two ends see |
|---|---|---|
| yes | yes | a working network |
| yes | no | held: the sender notices nothing, the receiver gets nothing until release |
| no | no | deaf: the sender's window fills and stays full, nobody is told |
"""

import asyncio
import enum
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.fakes.watch import Watch

_READ_BYTES = 64 * 1024
_QUEUE_BYTES = 256 * 1024
_HELD_BYTES = 64 * 1024 * 1024


class Direction(enum.Enum):
    """Which way bytes flow through the proxy."""

    UP = "client to server"
    DOWN = "server to client"


@dataclass
class LaneFaults:
    """What one direction does to the bytes; the defaults are a working network."""

    reading: bool = True
    forwarding: bool = True
    bytes_per_s: float | None = None
    latency_s: float = 0.0
    cut_after_bytes: int | None = None
    """Total forwarded bytes of this direction at which the whole connection is reset."""


class Lane:
    """Carries bytes `source` -> `sink` under `faults`; `on_change` hears of every byte, `on_cut` of a
    reached byte limit."""

    def __init__(
        self,
        direction: Direction,
        source: socket.socket,
        sink: socket.socket,
        faults: LaneFaults,
        on_change: Callable[[], None],
        on_cut: Callable[[], None],
    ) -> None:
        self.direction = direction
        self.faults = faults
        self.received_bytes = 0
        self.forwarded_bytes = 0
        self.ended = False
        """The source sent EOF (or the test ended this direction) and the sink was told."""
        self._source = source
        self._sink = sink
        self._on_change = on_change
        self._on_cut = on_cut
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._source_ended = False
        self._watch = Watch()

    def stir(self) -> None:
        """Have both tasks look at `faults` again."""
        self._watch.changed()

    def end(self) -> None:
        """Send FIN to the sink after what is queued, and read no more: a half-close by the source."""
        self._source_ended = True
        self.stir()

    async def run(self) -> None:
        """Carry bytes until the source ends or the connection fails; then half-close the sink.

        Raises:
            OSError: one of the two sockets failed, which ends the whole connection.
        """
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read())
            await self._write()
            reader.cancel()
        self._sink.shutdown(socket.SHUT_WR)
        self.ended = True
        self._on_change()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._source_ended:
            await self._watch.wait(self._may_read)
            chunk = await loop.sock_recv(self._source, _READ_BYTES)
            # A read begun before the fault may end after it: not even that chunk may
            # go further.
            await self._watch.wait(lambda: self.faults.reading)
            if not chunk:
                self._source_ended = True
            else:
                self.received_bytes += len(chunk)
                self._queued_bytes += len(chunk)
                self._queue.append((loop.time() + self.faults.latency_s, chunk))
            self._on_change()
            self.stir()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._watch.wait(self._may_write)
            if not self._queue:
                return
            due_s, chunk = self._queue.popleft()
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            for part in self._paced(chunk):
                await self._watch.wait(lambda: self.faults.forwarding)
                await self._forward(part)
            self._queued_bytes -= len(chunk)
            self.stir()

    async def _forward(self, part: bytes) -> None:
        limit = self.faults.cut_after_bytes
        allowed = part if limit is None else part[: max(0, limit - self.forwarded_bytes)]
        if allowed:
            await asyncio.get_running_loop().sock_sendall(self._sink, allowed)
            self.forwarded_bytes += len(allowed)
            self._on_change()
        if limit is not None and self.forwarded_bytes >= limit:
            self._on_cut()
            await asyncio.get_running_loop().create_future()  # the cut cancels this task
        if self.faults.bytes_per_s is not None:
            await asyncio.sleep(len(part) / self.faults.bytes_per_s)

    def _paced(self, chunk: bytes) -> list[bytes]:
        """Parts small enough that a slow lane trickles (about 20 ms each) instead of bursting."""
        if self.faults.bytes_per_s is None:
            return [chunk]
        part_bytes = max(1, int(self.faults.bytes_per_s / 50))
        return [chunk[i : i + part_bytes] for i in range(0, len(chunk), part_bytes)]

    def _may_read(self) -> bool:
        limit = _QUEUE_BYTES if self.faults.forwarding else _HELD_BYTES
        return self._source_ended or (self.faults.reading and self._queued_bytes < limit)

    def _may_write(self) -> bool:
        return self.faults.forwarding and (bool(self._queue) or self._source_ended)
