"""A TCP proxy that tests put between a client and a server, to fail their network on purpose.

`FaultProxy` listens on an ephemeral loopback port and connects each client on to `target`. A fault asked
of the proxy holds for every live connection and every later one until `heal`; a fault asked of one
`ProxiedConnection` holds for that one alone. The faults:

| call | what happens |
|---|---|
| `cut(side)` | RST to one or both ends; a side that is spared is left half-open and hears nothing |
| `end(direction)` | FIN in one direction; the other still flows |
| `deafen(direction)` | bytes are no longer read: no error, no close, the sender's buffers fill |
| `hold` / `release` | bytes are taken but kept back, then delivered in order |
| `slow` | bytes a second and one-way latency |
| `cut_after(direction, n)` | RST once exactly n bytes went that way: a frame torn in the middle |
| `refuse` | new connections get RST at once, as from a host where nothing listens |

Tests wait with `wait_*`, never by sleeping. Everything here belongs to one event loop; a synchronous test
uses `proxy_thread.FaultProxyThread`.
"""

import asyncio
import itertools
import socket
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from tests.fakes.connection import LINGER_RST, WAIT_TIMEOUT_S, ProxiedConnection, Side
from tests.fakes.lane import Direction, LaneFaults
from tests.fakes.watch import Watch

_BACKLOG = 1024

__all__ = ["Direction", "FaultProxy", "ProxiedConnection", "Side", "Target"]

Target = tuple[str, int] | str
"""`(host, port)`, or the path of a Unix socket."""


class FaultProxy:
    """The listening proxy; an async context manager. `target` is `(host, port)` or the path of a Unix
    socket."""

    def __init__(self, target: Target) -> None:
        self.target = target
        """May be changed at any time; later connections go to the new one (a server that restarted on
        another port)."""
        self.faults = {direction: LaneFaults() for direction in Direction}
        """The faults that a new connection starts with."""
        self.watch = Watch()
        self.connections: list[ProxiedConnection] = []
        """Live connections, oldest first."""
        self._numbers = itertools.count(1)
        self._opened = 0
        self._refused_by_target = 0
        self._closed_bytes = dict.fromkeys(Direction, 0)
        # Bound but never listening: it keeps the port ours while `refuse` has closed the listener.
        self._holder = _bound_socket(0)
        self._accepting: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None
        self._carriers: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        """The address to connect to."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The port to connect to; stays the same while connections are refused."""
        return int(self._holder.getsockname()[1])

    @property
    def address(self) -> str:
        """`host:port`, as gRPC targets are written."""
        return f"{self.host}:{self.port}"

    @property
    def opened(self) -> int:
        """Connections ever carried through to the target."""
        return self._opened

    @property
    def refused_by_target(self) -> int:
        """Clients that were reset because the target could not be reached."""
        return self._refused_by_target

    def forwarded_bytes(self, direction: Direction) -> int:
        """Bytes forwarded in `direction` over all connections, past ones included."""
        live = sum(each.forwarded_bytes(direction) for each in self.connections)
        return self._closed_bytes[direction] + live

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Reset every connection and stop listening."""
        self.refuse()
        self.cut()
        for task in self._carriers:
            task.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)
        self._holder.close()

    def refuse(self) -> None:
        """Refuse new connections until `heal`; live ones go on."""
        if self._accepting is not None and self._listener is not None:
            # Taken from the loop first: its number may be another socket's as soon as it is closed.
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting.cancel()
            self._listener.close()
            self._accepting = self._listener = None

    def heal(self) -> None:
        """Accept connections again and lift every fault, on live connections too."""
        for direction in Direction:
            self.faults[direction] = LaneFaults()
        for connection in self.connections:
            connection.heal()
        self._listen()

    def cut(self, side: Side = Side.BOTH) -> None:
        """Reset `side` of every live connection."""
        for connection in list(self.connections):
            connection.cut(side)

    def end(self, direction: Direction) -> None:
        """Half-close every live connection in `direction`."""
        for connection in self.connections:
            connection.end(direction)

    def deafen(self, direction: Direction | None = None) -> None:
        """`ProxiedConnection.deafen` for every live and later connection."""
        self._set_faults(direction, reading=False, forwarding=False)

    def hold(self, direction: Direction | None = None) -> None:
        """`ProxiedConnection.hold` for every live and later connection."""
        self._set_faults(direction, forwarding=False)

    def release(self, direction: Direction | None = None) -> None:
        """`ProxiedConnection.release` for every live and later connection."""
        self._set_faults(direction, reading=True, forwarding=True)

    def slow(
        self,
        direction: Direction | None = None,
        bytes_per_s: float | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """`ProxiedConnection.slow` for every live and later connection."""
        self._set_faults(direction, bytes_per_s=bytes_per_s, latency_s=latency_s)

    def cut_after(self, direction: Direction, n_bytes: int) -> None:
        """`ProxiedConnection.cut_after` for every live and later connection."""
        self._set_faults(direction, cut_after_bytes=n_bytes)

    async def wait_connections(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once exactly `count` connections are live."""
        await self.watch.wait_until(
            lambda: len(self.connections) == count,
            lambda: f"{len(self.connections)} live connections, expected {count}",
            timeout_s,
        )

    async def wait_opened(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> ProxiedConnection:
        """Return the newest live connection once `count` connections were ever opened and one is live."""
        await self.watch.wait_until(
            lambda: self._opened >= count and bool(self.connections),
            lambda: f"{self._opened} connections ever opened, expected {count} and one live",
            timeout_s,
        )
        return self.connections[-1]

    async def wait_bytes(self, direction: Direction, n_bytes: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once at least `n_bytes` in all were forwarded in `direction`."""
        await self.watch.wait_until(
            lambda: self.forwarded_bytes(direction) >= n_bytes,
            lambda: f"{self.forwarded_bytes(direction)} of {n_bytes} bytes {direction.value}",
            timeout_s,
        )

    def _set_faults(self, direction: Direction | None, **changes: Any) -> None:
        for each in Direction if direction is None else (direction,):
            self.faults[each] = replace(self.faults[each], **changes)
        for connection in self.connections:
            connection.set_faults(direction, **changes)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _bound_socket(self.port)
            self._listener.listen(_BACKLOG)
            self._accepting = asyncio.create_task(self._accept(self._listener))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            task = asyncio.create_task(self._carry(client))
            self._carriers.add(task)
            task.add_done_callback(self._carriers.discard)

    async def _carry(self, client: socket.socket) -> None:
        try:
            server = await self._connect()
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
            client.close()
            self._refused_by_target += 1
            self.watch.changed()
            return
        _send_at_once(client)
        _send_at_once(server)
        connection = ProxiedConnection(next(self._numbers), client, server, self.faults, self.watch, self._forget)
        self.connections.append(connection)
        self._opened += 1
        self.watch.changed()
        await connection.carry()

    async def _connect(self) -> socket.socket:
        family = socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(server, self.target)
        except BaseException:
            server.close()
            raise
        return server

    def _forget(self, connection: ProxiedConnection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            for direction in Direction:
                self._closed_bytes[direction] += connection.forwarded_bytes(direction)
            self.watch.changed()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setblocking(False)
    bound.bind(("127.0.0.1", port))
    return bound


def _send_at_once(end: socket.socket) -> None:
    if end.family == socket.AF_INET:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
