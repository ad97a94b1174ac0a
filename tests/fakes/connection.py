"""One client's connection through the fault proxy, and the faults that it alone can be given."""

import asyncio
import enum
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.fakes.lane import Direction, Lane, LaneFaults
from tests.fakes.watch import Watch

LINGER_RST = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing such a socket sends RST and drops what was not delivered."""
WAIT_TIMEOUT_S = 15.0
"""How long a `wait_*` of a test goes on before it fails; generous, as it ends at once when the condition holds."""


class Side(enum.Enum):
    """The ends of a proxied connection, as `cut` addresses them."""

    CLIENT = "client"
    SERVER = "server"
    BOTH = "both"


class ProxiedConnection:
    """One client's connection through the proxy: two sockets, a lane each way, and the faults of each
    lane."""

    def __init__(
        self,
        number: int,
        client: socket.socket,
        server: socket.socket,
        faults: Mapping[Direction, LaneFaults],
        watch: Watch,
        on_closed: Callable[["ProxiedConnection"], None],
    ) -> None:
        self.number = number
        """1 for the first connection that the proxy ever carried."""
        self._sockets = {Side.CLIENT: client, Side.SERVER: server}
        self._resetting: set[Side] = set()
        self._watch = watch
        self._carrying: asyncio.Task[None] | None = None
        self._on_closed = on_closed
        pairs = {Direction.UP: (client, server), Direction.DOWN: (server, client)}
        self._lanes = {
            direction: Lane(
                direction,
                source,
                sink,
                replace(faults[direction]),
                on_change=watch.changed,
                on_cut=self._cut_soon,
            )
            for direction, (source, sink) in pairs.items()
        }

    @property
    def is_open(self) -> bool:
        """Whether the proxy still holds at least one of the two sockets."""
        return bool(self._sockets)

    def faults(self, direction: Direction) -> LaneFaults:
        """The faults in force in one direction."""
        return self._lanes[direction].faults

    def forwarded_bytes(self, direction: Direction) -> int:
        """Bytes handed on in this direction so far."""
        return self._lanes[direction].forwarded_bytes

    def received_bytes(self, direction: Direction) -> int:
        """Bytes taken from the source of this direction so far, held ones included."""
        return self._lanes[direction].received_bytes

    def ended(self, direction: Direction) -> bool:
        """Whether the sink of this direction was sent FIN."""
        return self._lanes[direction].ended

    def cut(self, side: Side = Side.BOTH) -> None:
        """Reset `side`; when one end is spared it stays half-open, with nothing read from it or sent to
        it."""
        self._resetting.update((Side.CLIENT, Side.SERVER) if side is Side.BOTH else (side,))
        self.deafen()  # not a byte more, however many turns the tasks below take to end
        if self._carrying is not None and not self._carrying.done():
            self._carrying.cancel()  # its sockets are closed when nothing waits on them any more
        else:
            self._close(self._resetting)

    def end(self, direction: Direction) -> None:
        """Half-close: FIN to the sink of `direction` after what was already read."""
        self._lanes[direction].end()

    def set_faults(self, direction: Direction | None, **changes: Any) -> None:
        """Change fields of `LaneFaults` in one direction, or in both when None."""
        for lane in self._lanes.values():
            if direction in (None, lane.direction):
                lane.faults = replace(lane.faults, **changes)
                lane.stir()

    def deafen(self, direction: Direction | None = None) -> None:
        """Stop reading and writing that direction (both when None) without closing anything."""
        self.set_faults(direction, reading=False, forwarding=False)

    def hold(self, direction: Direction | None = None) -> None:
        """Take bytes and keep them back."""
        self.set_faults(direction, forwarding=False)

    def release(self, direction: Direction | None = None) -> None:
        """Read and forward again, held bytes first."""
        self.set_faults(direction, reading=True, forwarding=True)

    def slow(
        self,
        direction: Direction | None = None,
        bytes_per_s: float | None = None,
        latency_s: float = 0.0,
    ) -> None:
        """Trickle at `bytes_per_s` (None: unlimited) and delay each chunk by `latency_s`."""
        self.set_faults(direction, bytes_per_s=bytes_per_s, latency_s=latency_s)

    def cut_after(self, direction: Direction, n_bytes: int) -> None:
        """Reset both ends once `n_bytes` in all, counted from the connection's start, went in `direction`."""
        self.set_faults(direction, cut_after_bytes=n_bytes)

    def heal(self) -> None:
        """Back to a working network; an end that was reset stays reset."""
        for lane in self._lanes.values():
            lane.faults = LaneFaults()
            lane.stir()

    async def wait_closed(self, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once neither end is held any more."""
        await self._watch.wait_until(
            lambda: not self.is_open,
            lambda: f"connection {self.number} is still open",
            timeout_s,
        )

    async def wait_bytes(self, direction: Direction, n_bytes: int, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once at least `n_bytes` were forwarded in `direction` on this connection."""
        await self._watch.wait_until(
            lambda: self.forwarded_bytes(direction) >= n_bytes,
            lambda: f"{self.forwarded_bytes(direction)} of {n_bytes} bytes {direction.value}",
            timeout_s,
        )

    async def carry(self) -> None:
        """Carry both ways until both lanes ended, an end failed or `cut`; called once, by the proxy."""
        self._carrying = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as lanes:
                for lane in self._lanes.values():
                    lanes.create_task(lane.run())
        except* OSError:
            # What one end did to its socket the other must hear as a reset.
            self._resetting.update((Side.CLIENT, Side.SERVER))
        finally:
            self._carrying = None
            self._close(self._resetting or {Side.CLIENT, Side.SERVER})

    def _cut_soon(self) -> None:
        # A lane asks for this: cancelling the task that is running must wait for its next await.
        asyncio.get_running_loop().call_soon(self.cut)

    def _close(self, sides: set[Side]) -> None:
        for side in sides & self._sockets.keys():
            end = self._sockets.pop(side)
            if side in self._resetting:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
            end.close()
        if not self._sockets:
            self._on_closed(self)
