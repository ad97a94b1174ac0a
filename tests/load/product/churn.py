"""Streams that are opened and killed in every way, thousands of them: what each leaves behind on either side."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from fleet import logs
from fleet.clock import SystemClock
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys, load_node_keys
from fleet.v1 import gateway_pb2, session_pb2
from fleet_node.link.caller import GatewayCaller, LeafCache, open_caller
from fleet_node.link.connection import Connection
from fleet_node.link.credentials import Credentials
from fleet_node.link.handshake import PROTOCOL_VERSION, handshake
from fleet_node.link.hello import SelfDescription
from fleet_node.link.ports import Ports
from fleet_node.link.ratchet import Ratchet
from tests.fakes.lane import Direction
from tests.fakes.proxy import FaultProxy, ProxiedConnection, Side
from tests.fakes.watch import Watch
from tests.load.product.idle_links import Member, NoCommands, TelemetryFeed

_WORKERS = 16
_HELLO_BYTES = 1_500  # into the TLS handshake, or a little beyond
_SERVER_ENDS_S = 10.0


class Churn:
    """A role of `tests.load.child`: `begin`, then ask for `progress` until all is done."""

    def __init__(self) -> None:
        logs.configure(io.StringIO(), level="error")
        self._state = _State()
        self._running: asyncio.Task[None] | None = None

    async def begin(self, folders: list[str], gateway: str, streams: int) -> None:
        """Open and kill `streams` streams, a few at a time; each node has as many."""
        members = [_Node(Member.load(path)) for path in folders]
        turns = iter(zip(itertools.cycle(members), itertools.islice(itertools.cycle(_WAYS), streams), strict=False))
        host, port = gateway.split(":")

        async def work() -> None:
            async with FaultProxy((host, int(port))) as proxy:
                place = _Place(self._state, gateway, proxy)
                for node, way in turns:
                    async with node.turn:  # a node has one machine
                        await place.once(node, way)

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as workers:
                for _ in range(_WORKERS):
                    workers.create_task(work())

        self._running = asyncio.create_task(all_of_them())

    async def progress(self) -> dict[str, float]:
        """Streams that were killed so far, by way; `busy` until it is over.

        Raises:
            Exception: what stopped it.
        """
        assert self._running is not None
        if self._running.done():
            self._running.result()
        done = {f"by_{way}": float(count) for way, count in sorted(self._state.done.items())}
        return {
            "streams": sum(self._state.done.values()),
            "sent_away": self._state.sent_away,
            "busy": float(not self._running.done()),
            **done,
        }

    async def close(self) -> None:
        """Stop where it is."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})


@dataclass(slots=True)
class _State:
    done: Counter[str] = field(default_factory=Counter)
    sent_away: int = 0
    leaves: LeafCache = field(default_factory=LeafCache)


@dataclass(slots=True)
class _Node:
    member: Member
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    keys: NodeKeys = field(init=False)
    credentials: Credentials = field(init=False)
    ratchet: Ratchet = field(init=False)

    def __post_init__(self) -> None:
        member = self.member
        self.keys = load_node_keys(member.folder.path)
        self.credentials = Credentials(member.folder, member.membership, self.keys, server_time=member.server_time)
        self.ratchet = Ratchet(member.folder.ratchet)


@dataclass(slots=True)
class _Live:
    """A welcomed stream."""

    connection: Connection
    running: asyncio.Task[Refusal | None]

    async def ended(self) -> None:
        """Once this side has let go of it."""
        async with asyncio.timeout(_SERVER_ENDS_S):
            await self.running
        await self.connection.caller.close()


@dataclass(slots=True)
class _Place:
    """Where one worker kills streams, one after another: straight at the gateway, or through a proxy of its own."""

    state: _State
    gateway: str
    proxy: FaultProxy

    async def once(self, node: _Node, way: _Way) -> None:
        """One stream; a server that is busy is obeyed."""
        while True:
            try:
                await way(self, node)
            except Refusal as refusal:
                if refusal.reason is not Reason.OVERLOADED or refusal.retry_after_s is None:
                    raise
                self.state.sent_away += 1
                await asyncio.sleep(refusal.retry_after_s)
                continue
            self.state.done[way.__name__] += 1
            return

    async def open(self, node: _Node, endpoint: str = "", takeover_of: str = "") -> _Live:
        """A live stream."""
        caller = await self.caller(node, endpoint)
        member = node.member
        try:
            session = await handshake(
                caller,
                membership=member.membership,
                keys=node.keys,
                trust=member.trust,
                server_time=member.server_time,
            )
            connection = Connection(
                caller=caller,
                session=session,
                shown=node.credentials.first(),
                credentials=node.credentials,
                ports=Ports(NoCommands(), TelemetryFeed(0, 0.0, Watch(), flood=False), member.trust, node.ratchet),
                about=SelfDescription("load", {}, [], secrets.token_bytes(16)),
                clock=SystemClock(),
                server_time=member.server_time,
            )
            await connection.open(takeover_of)
        except BaseException:
            await caller.close()
            raise
        return _Live(connection, asyncio.create_task(connection.run()))

    async def open_proxied(self, node: _Node) -> tuple[_Live, ProxiedConnection]:
        """A live stream, and its way through the proxy."""
        live = await self.open(node, self.proxy.address)
        return live, self.proxy.connections[-1]

    async def caller(self, node: _Node, endpoint: str = "") -> GatewayCaller:
        """A connection, perhaps not made yet."""
        return await open_caller([endpoint or self.gateway], (node.member.membership.tls_ca_der,), self.state.leaves)


_Way = Callable[[_Place, _Node], Awaitable[None]]


async def goodbye(place: _Place, node: _Node) -> None:
    """The node leaves in order."""
    live = await place.open(node)
    live.connection.leave("SHUTDOWN")
    await live.ended()


async def cancel(place: _Place, node: _Node) -> None:
    """The node cancels the call."""
    live = await place.open(node)
    live.connection._call.cancel()
    await live.ended()


async def fin(place: _Place, node: _Node) -> None:
    """The node's connection is closed under the stream."""
    live = await place.open(node)
    await live.connection.caller.close()
    await live.ended()


async def rst(place: _Place, node: _Node) -> None:
    """Both ends are reset."""
    live, connection = await place.open_proxied(node)
    connection.cut()
    await live.ended()


async def half_open(place: _Place, node: _Node) -> None:
    """The server hears nothing of it, and the node's next stream supersedes this one."""
    live, connection = await place.open_proxied(node)
    connection.cut(Side.CLIENT)
    await live.ended()
    await goodbye(place, node)


async def in_handshake(place: _Place, node: _Node) -> None:
    """The connection breaks in the middle of TLS, and another one between challenge and answer."""
    caller = await place.caller(node, place.proxy.address)
    request = session_pb2.BeginHandshakeRequest(
        api_key=node.member.membership.api_key.reveal(),
        node_id=node.member.membership.node_id,
        protocol_version=PROTOCOL_VERSION,
    )
    place.proxy.cut_after(Direction.UP, _HELLO_BYTES)
    with contextlib.suppress(Refusal):
        await caller.begin_handshake(request)
    place.proxy.heal()
    await caller.close()
    caller = await place.caller(node)
    try:
        await caller.begin_handshake(request)
    finally:
        await caller.close()


async def server_abort(place: _Place, node: _Node) -> None:
    """The node says what nobody may: the server ends the stream."""
    live = await place.open(node)
    await live.connection._write(gateway_pb2.NodeFrame(hello=gateway_pb2.Hello()))
    await live.ended()


async def takeover(place: _Place, node: _Node) -> None:
    """A second stream takes over from the first, which then leaves; then the second one does."""
    first = await place.open(node)
    try:
        second = await place.open(node, takeover_of=first.connection.welcome.stream_id)
    finally:
        first.connection.leave("TAKEOVER")
        await first.ended()
    second.connection.leave("SHUTDOWN")
    await second.ended()


_WAYS: Sequence[_Way] = (goodbye, cancel, fin, rst, half_open, in_handshake, server_abort, takeover)
