"""Strangers who abuse HTTP/2 itself: the server stays up, serves its nodes, and its memory stays bounded.

gRPC's core answers all of it; what it is told (`fleet_server.listeners`) and what it was built with decide. A client of
single HTTP/2 frames does what no gRPC client would. One server stands all of it, one after another.
"""

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import hpack
import psutil
import pytest
import pytest_asyncio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from tests.fakes.process import Processes
from tests.integration.installation import Template
from tests.integration.processes import InstalledServer, ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

_MIB = 1024 * 1024
_READ_TIMEOUT_S = 10.0
_PATIENCE_S = 0.3
"""So long a server that neither ends a call nor takes more of it is waited for: longer than a prompt caller has."""
_PIECE = 16_384
_FIRST_WINDOW = 65_535
_WHOLE_MIB = 320
"""More than all tests together may leave behind: what one left free the next ones use."""


class Abuser:
    """One TLS connection that speaks HTTP/2 frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._window = self._first_window = _FIRST_WINDOW
        self._granted: defaultdict[int, int] = defaultdict(int)
        self._heard = asyncio.Event()
        self.ended: set[int] = set()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, server: ServerProcess, port: int) -> AsyncIterator["Abuser"]:
        context = ssl.create_default_context(cadata=server.ca_pem.decode())
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        abuser = cls(reader, writer)
        try:
            await abuser.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize())
            yield abuser
        finally:
            abuser._reading.cancel()
            await asyncio.gather(abuser._reading, return_exceptions=True)
            writer.transport.abort()

    @property
    def closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self._reading.done()

    async def send(self, data: bytes) -> None:
        """Send frames; a connection that is gone takes none."""
        if not self.closed:
            with contextlib.suppress(ConnectionError):
                self._writer.write(data)
                await self._writer.drain()

    async def push(self, calls: Sequence[int], body: bytes) -> None:
        """Send as much of a body in each call as the server takes, and leave the calls unfinished."""
        left = dict.fromkeys(calls, len(body))
        while left and not self.closed:
            self._heard.clear()
            pieces = [piece for call in calls if (piece := self._next_piece(left, call, body))]
            if pieces:
                await self.send(b"".join(pieces))
            elif not await self._hears():
                break

    async def wait_ended(self, call: int) -> None:
        """Return once the server has ended a call, or the connection."""
        async with asyncio.timeout(_READ_TIMEOUT_S):
            while call not in self.ended and not self.closed:
                self._heard.clear()
                await self._heard.wait()

    async def wait_closed(self) -> None:
        """Return once the server has ended the connection."""
        async with asyncio.timeout(_READ_TIMEOUT_S):
            await asyncio.wait({self._reading})

    def _next_piece(self, left: dict[int, int], call: int, body: bytes) -> bytes:
        if call in self.ended or not left.get(call, 0):
            left.pop(call, None)
            return b""
        size = min(left[call], self._window, self._first_window + self._granted[call], _PIECE)
        if size <= 0:
            return b""
        start = len(body) - left[call]
        left[call] -= size
        self._window -= size
        self._granted[call] -= size
        return DataFrame(call, data=body[start : start + size]).serialize()

    async def _hears(self) -> bool:
        """Whether the server says anything; there is no event for its not doing so."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._heard.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(9)))
                frame.parse_body(memoryview(await self._reader.readexactly(length)))
                await self._take(frame)
                self._heard.set()

    async def _take(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self._first_window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, self._first_window)
            await self.send(SettingsFrame(0, flags=["ACK"]).serialize())
        elif isinstance(frame, WindowUpdateFrame) and frame.stream_id:
            self._granted[frame.stream_id] += frame.window_increment
        elif isinstance(frame, WindowUpdateFrame):
            self._window += frame.window_increment
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            await self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]).serialize())
        elif isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)


def head_of_call(path: str, more: Iterable[tuple[str, str]] = ()) -> bytes:
    """Headers of a call, packed so that they may be sent any number of times."""
    headers = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost")]
    headers += [("content-type", "application/grpc"), ("te", "trailers"), *more]
    packed: bytes = hpack.Encoder().encode(headers, huffman=False)
    return packed


def call_ids(count: int) -> Sequence[int]:
    """Of a connection's first calls."""
    return range(1, 2 * count, 2)


def opened(path: str, calls: Iterable[int], *, reset: bool = False) -> bytes:
    """Headers of calls that say nothing, each reset at once if `reset`."""
    head = head_of_call(path)
    frames: list[Frame] = []
    for call in calls:
        frames.append(HeadersFrame(call, data=head, flags=["END_HEADERS"]))
        if reset:
            frames.append(RstStreamFrame(call, error_code=8))
    return b"".join(frame.serialize() for frame in frames)


@dataclass(frozen=True)
class Door:
    """A listener, and the call on it that a stranger may make.

    Args:
        calls: that one connection may have open.
        connections: that hold thousands of calls together, or 800 of nodes.
        paths: of calls that read a request, were they let.
    """

    server: ServerProcess
    port: int
    path: str
    calls: int
    connections: int
    paths: Sequence[str]

    def abuser(self) -> contextlib.AbstractAsyncContextManager[Abuser]:
        """A new connection to it."""
        return Abuser.connected(self.server, self.port)


@dataclass(frozen=True)
class Abused:
    """The server that stands it, and how large it was before."""

    server: ServerProcess
    first: int


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def abused(tmp_path_factory: pytest.TempPathFactory, template: Template) -> AsyncIterator[Abused]:
    """A server process with one node that works."""
    folder = tmp_path_factory.mktemp("abused")
    (folder / "logs").mkdir()
    processes = Processes(folder / "logs")
    try:
        async with InstalledServer(folder, template, processes) as running:
            await running.add_node("n-1")
            await running.owner.run("n-1", count=5)
            yield Abused(running, rss(running))
    finally:
        processes.end_all()


@pytest.fixture(params=["nodes", "operators"])
def door(request: pytest.FixtureRequest, abused: Abused) -> Door:
    """Each listener in turn."""
    server = abused.server
    if request.param == "nodes":
        gateway = "/fleet.v1.Gateway/"
        paths = [gateway + name for name in ("Enroll", "BeginHandshake", "CompleteHandshake", "Connect")]
        return Door(server, server.gateway_port, gateway + "Connect", 8, 100, paths)
    paths = [
        "/fleet.v1.Installation/Activate",
        "/grpc.health.v1.Health/Check",
        "/fleet.v1.Admin/IssueCommands",
        "/fleet.v1.Admin/WatchNodes",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ]
    return Door(server, server.admin_port, "/fleet.v1.Installation/Activate", 100, 40, paths)


def rss(server: ServerProcess) -> int:
    assert server.process is not None
    return psutil.Process(server.process.pid).memory_info().rss


@contextlib.asynccontextmanager
async def standing(abused: Abused, *, within_mib: int) -> AsyncIterator[None]:
    """What is done here costs the node no stream and no command, and the server no more memory than that."""
    server, before = abused.server, rss(abused.server)
    stream_id = server.nodes["n-1"].link.stream_id
    yield
    assert server.process is not None
    assert server.process.exit_code is None, server.process.tail()
    views = await server.owner.run("n-1")
    assert [view.state for view in views] == [SUCCEEDED]
    assert server.nodes["n-1"].link.stream_id == stream_id
    grown, whole = (rss(server) - size for size in (before, abused.first))
    assert grown < within_mib * _MIB, f"{grown / _MIB:.0f} MiB more than before"
    assert whole < _WHOLE_MIB * _MIB, f"{whole / _MIB:.0f} MiB more than at first"


async def test_rapid_resets(abused: Abused, door: Door) -> None:
    """CVE-2023-44487: calls opened and reset at once, by the thousand."""
    flood = opened(door.path, call_ids(2_000), reset=True)
    async with standing(abused, within_mib=48):
        for _ in range(5):
            async with door.abuser() as abuser:
                await abuser.send(flood)


async def test_many_connections_each_with_as_many_silent_calls_as_it_may_have(abused: Abused, door: Door) -> None:
    silent = opened(door.path, call_ids(door.calls))
    async with contextlib.AsyncExitStack() as stack, standing(abused, within_mib=96):
        for _ in range(door.connections):
            abuser = await stack.enter_async_context(door.abuser())
            await abuser.send(silent)


async def test_more_calls_than_a_connection_may_have_are_refused(abused: Abused, door: Door) -> None:
    calls = call_ids(5_000)
    async with standing(abused, within_mib=48), door.abuser() as abuser:
        await abuser.send(opened(door.path, calls))
        await abuser.wait_ended(calls[-1])


async def test_headers_that_never_end(abused: Abused, door: Door) -> None:
    async with contextlib.AsyncExitStack() as stack, standing(abused, within_mib=64):
        for _ in range(100):
            abuser = await stack.enter_async_context(door.abuser())
            await abuser.send(HeadersFrame(1, data=b"\x83", flags=[]).serialize())  # no END_HEADERS, and then nothing


async def test_headers_without_end_in_ever_more_pieces(abused: Abused, door: Door) -> None:
    """CVE-2024-27316: one field of megabytes, in CONTINUATION frames."""
    piece = b"\x00\x01a\x7f\xe1\xff\x03" + b"v" * 16_000  # a literal field of some 64 KiB, and on
    more = ContinuationFrame(1, data=b"v" * 16_000, flags=[]).serialize()
    # gRPC's allocator keeps some of it for a while: after 45 such connections it stood where it stood after 10.
    async with standing(abused, within_mib=160):
        for _ in range(3):
            async with door.abuser() as abuser:
                await abuser.send(HeadersFrame(1, data=piece, flags=[]).serialize())
                for _ in range(2_000):
                    if abuser.closed:
                        break
                    await abuser.send(more)
                await abuser.wait_closed()


async def test_giant_metadata(abused: Abused, door: Door) -> None:
    """As much as gRPC lets through, whatever it is told, in calls that would be waited for."""
    packed = head_of_call(door.paths[0], [(f"x-{number}", "v" * 8_000) for number in range(1_500)])
    pieces = [packed[start : start + _PIECE] for start in range(0, len(packed), _PIECE)]
    frames: list[Frame] = [HeadersFrame(1, data=pieces[0], flags=[])]
    frames += [ContinuationFrame(1, data=piece, flags=[]) for piece in pieces[1:-1]]
    frames += [ContinuationFrame(1, data=pieces[-1], flags=["END_HEADERS"])]
    giant = b"".join(frame.serialize() for frame in frames)
    async with contextlib.AsyncExitStack() as stack, standing(abused, within_mib=128):
        for _ in range(6):
            abuser = await stack.enter_async_context(door.abuser())
            await abuser.send(giant)
            await abuser.wait_ended(1)


async def test_a_flood_of_pings(abused: Abused, door: Door) -> None:
    pings = PingFrame(0, opaque_data=b"12345678").serialize() * 1_000
    async with standing(abused, within_mib=48), door.abuser() as abuser:
        for _ in range(100):
            if abuser.closed:
                break
            await abuser.send(pings)


async def test_connections_that_never_finish_their_tls(abused: Abused, door: Door) -> None:
    writers = []
    try:
        async with standing(abused, within_mib=64):
            for _ in range(300):
                _, writer = await asyncio.open_connection("127.0.0.1", door.port)
                writer.write(b"\x16\x03\x01\x02\x00")  # the first bytes of a handshake
                writers.append(writer)
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_large_requests_that_never_end(abused: Abused, door: Door) -> None:
    """400 requests of 4 MiB, kept whole 1.6 GiB."""
    size = 4 * _MIB - 100
    body = b"\x00" + size.to_bytes(4, "big") + bytes(size - 1000)
    calls = call_ids(door.calls)
    heads = b"".join(opened(door.paths[number % len(door.paths)], [call]) for number, call in enumerate(calls))

    async def abuse(abuser: Abuser) -> None:
        await abuser.send(heads)
        await abuser.push(calls, body)

    # What the places allow (eight of 4 MiB at each open service for operators, 32 of 1 MiB for nodes), what comes
    # before anybody counts as slow, and what the allocator keeps: up to 140 MiB were seen.
    async with contextlib.AsyncExitStack() as stack, standing(abused, within_mib=192):
        abusers = [await stack.enter_async_context(door.abuser()) for _ in range(400 // door.calls)]
        await asyncio.gather(*map(abuse, abusers))
