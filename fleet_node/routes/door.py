"""The door before a probe listener: hands bytes on to gRPC, and closes on strangers who are none of its business.

Mental model
    gRPC keeps up to 16 MiB of headers that never end for each connection, for as long as that is open, and counts
    connections of strangers and of peers alike (docs/architecture.md, "What gRPC needs to be told"). So it listens on
    loopback alone, and this is what listens for the network. A connection is a stranger's until a probe came over it
    that a peer signed. Strangers are few, for a short time, and send little; where they are too many, the oldest one of
    the network that has most of them goes. A peer has few connections, and sends little from one probe to the next.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import cast

from fleet_node.routes.intake import ProbeLimits, network

LOOPBACK = "127.0.0.1"
LAST_WORDS_S = 1.0


class Passage:
    """One connection, and its other half to gRPC.

    Args:
        door: it came through.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._outer = _Half(self)
        self._inner = _Half(self)
        self._left = door.limits.silent_bytes
        self._closed = False
        self._joining: asyncio.Task[None] | None = None
        self._ends: asyncio.TimerHandle | None = None
        self.address = ""
        """Who calls, without the port."""
        self.port = 0
        """By which gRPC knows it."""
        self.node_id = ""
        """The peer that proved itself; empty: a stranger's."""

    def outer(self) -> asyncio.Protocol:
        """What the network side talks to."""
        return self._outer

    def prove(self, node_id: str) -> None:
        """A probe of that peer came over it."""
        self._left = self._door.limits.silent_bytes
        if self.node_id or self._closed:
            return
        self.node_id = node_id
        if self._ends is not None:
            self._ends.cancel()
        self._door.known(self)

    def close(self) -> None:
        """End it, at once."""
        self._closed = True
        if self._ends is not None:
            self._ends.cancel()
        if self._joining is not None:
            self._joining.cancel()
        self._door.gone(self)
        for half in (self._outer, self._inner):
            if half.transport is not None:
                half.transport.abort()

    def made(self, half: _Half, transport: asyncio.Transport) -> None:
        """One half is connected."""
        if half is self._inner:
            return
        transport.pause_reading()
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._end_in(self._door.limits.stranger_s)
        self._joining = asyncio.get_running_loop().create_task(self._join())
        self._door.came(self)

    def received(self, half: _Half, data: bytes) -> None:
        """Bytes of one half, for the other."""
        if half is self._outer:
            self._left -= len(data)
            if self._left < 0:
                self.close()
                return
        other = self._other(half)
        if other.transport is not None:
            other.transport.write(data)

    def hold(self, half: _Half, held: bool) -> None:
        """One half takes no more for now, or does again: so the other is not read."""
        transport = self._other(half).transport
        if transport is not None and not transport.is_closing():
            (transport.pause_reading if held else transport.resume_reading)()

    def lost(self, half: _Half) -> None:
        """One half has ended. What gRPC said last still goes out, if the other end takes it soon."""
        if half is self._outer or self._outer.transport is None:
            self.close()
        elif not self._outer.transport.is_closing():
            self._outer.transport.close()
            self._end_in(LAST_WORDS_S)

    def _end_in(self, seconds: float) -> None:
        if self._ends is not None:
            self._ends.cancel()
        self._ends = asyncio.get_running_loop().call_later(seconds, self.close)

    async def _join(self) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: self._inner, LOOPBACK, self._door.port
            )
        except OSError:
            self.close()
            return
        self.port = transport.get_extra_info("sockname")[1]
        self._door.joined(self)
        self.hold(self._inner, False)

    def _other(self, half: _Half) -> _Half:
        return self._inner if half is self._outer else self._outer


class _Half(asyncio.Protocol):
    """One socket of a passage."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._passage.made(self, self.transport)

    def data_received(self, data: bytes) -> None:
        self._passage.received(self, data)

    def pause_writing(self) -> None:
        self._passage.hold(self, True)

    def resume_writing(self) -> None:
        self._passage.hold(self, False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._passage.lost(self)


class Door:
    """See the module's mental model. Belongs to the event loop.

    Args:
        limits: how much is let through.
    """

    def __init__(self, limits: ProbeLimits) -> None:
        self.limits = limits
        self.port = 0
        """Of gRPC, on loopback."""
        self._server: asyncio.Server | None = None
        self._strangers: dict[Passage, None] = {}
        self._peers: dict[str, list[Passage]] = {}
        self._by_port: dict[int, Passage] = {}

    async def open(self, listen: str, port: int) -> int:
        """Listen for the network; the port that is open.

        Args:
            listen: "host:port".
            port: where gRPC listens, on loopback.

        Raises:
            OSError, ValueError: it cannot.
        """
        host, _, number = listen.rpartition(":")
        self.port, loop = port, asyncio.get_running_loop()
        if host == "[::]" and socket.has_dualstack_ipv6():  # every address of the machine, the old ones too
            every = socket.create_server(("::", int(number)), family=socket.AF_INET6, dualstack_ipv6=True)
            self._server = await loop.create_server(lambda: Passage(self).outer(), sock=every)
        else:
            self._server = await loop.create_server(lambda: Passage(self).outer(), host.strip("[]"), int(number))
        return int(self._server.sockets[0].getsockname()[1])

    def shut(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """Listen no more, and end all connections."""
        self.shut()
        for passage in [*self._strangers, *(each for all_ in self._peers.values() for each in all_)]:
            passage.close()

    def of(self, peer: str) -> Passage | None:
        """The connection that a call came over.

        Args:
            peer: what gRPC calls its other end, "ipv4:127.0.0.1:port".
        """
        port = peer.rpartition(":")[2]
        return self._by_port.get(int(port)) if port.isdecimal() else None

    # -- what passages tell -------------------------------------------------------------------------------------------
    def came(self, passage: Passage) -> None:
        """A stranger."""
        self._strangers[passage] = None
        if len(self._strangers) > self.limits.strangers:
            crowd, _ = Counter(network(each.address) for each in self._strangers).most_common(1)[0]
            next(each for each in self._strangers if network(each.address) == crowd).close()

    def joined(self, passage: Passage) -> None:
        """gRPC knows it by its port now."""
        self._by_port[passage.port] = passage

    def known(self, passage: Passage) -> None:
        """It is a peer's."""
        self._strangers.pop(passage, None)
        passages = self._peers.setdefault(passage.node_id, [])
        passages.append(passage)
        if len(passages) > self.limits.peer_connections:
            passages[0].close()

    def gone(self, passage: Passage) -> None:
        """It has ended."""
        self._strangers.pop(passage, None)
        if self._by_port.get(passage.port) is passage:
            del self._by_port[passage.port]
        passages = self._peers.get(passage.node_id, [])
        if passage in passages:
            passages.remove(passage)
            if not passages:
                del self._peers[passage.node_id]
