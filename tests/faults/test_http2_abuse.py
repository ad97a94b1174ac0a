"""Strangers who abuse HTTP/2 itself: the server stays up, serves its nodes, and its memory stays bounded.

gRPC's core answers all of it; what it is told (`fleet_server.listeners`) and what it was built with decide. A client of
single HTTP/2 frames does what no gRPC client would.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.exceptions
import psutil
import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame, PingFrame

from fleet.v1.command_pb2 import COMMAND_STATE_SUCCEEDED as SUCCEEDED
from tests.fakes.process import Processes
from tests.integration.installation import Installation, Template
from tests.integration.processes import ServerProcess

_MIB = 1024 * 1024
_READ_TIMEOUT_S = 10.0
_FULL_MESSAGE = 4 * _MIB - 100


class Abuser:
    """One TLS connection that speaks HTTP/2 frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, installation: Installation, port: int) -> AsyncIterator["Abuser"]:
        context = ssl.create_default_context(cadata=installation.ca_pem.decode())
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        abuser = cls(reader, writer)
        try:
            await abuser.flush()
            yield abuser
        finally:
            abuser._reading.cancel()
            await asyncio.gather(abuser._reading, return_exceptions=True)
            writer.transport.abort()

    @property
    def closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self._reading.done()

    async def flush(self) -> None:
        """Send what is ready; a connection that is gone takes nothing."""
        data = self.h2.data_to_send()
        if not self.closed and data:
            with contextlib.suppress(ConnectionError):
                self.writer.write(data)
                await self.writer.drain()

    async def send(self, data: bytes) -> None:
        """Send frames that no library would make."""
        if not self.closed:
            with contextlib.suppress(ConnectionError):
                self.writer.write(data)
                await self.writer.drain()

    def open_call(self, path: str) -> int:
        """Headers of a call that says nothing; its stream id."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", path),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
        )
        return stream_id

    async def push(self, stream_id: int, body: bytes) -> None:
        """Send as much of a body as the server takes, and leave the call unfinished."""
        sent = idle = 0
        while sent < len(body) and idle < 15 and not self.closed:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                window = self.h2.local_flow_control_window(stream_id)
                size = min(window, self.h2.max_outbound_frame_size, len(body) - sent)
                if size > 0:
                    self.h2.send_data(stream_id, body[sent : sent + size])
                    sent, idle = sent + size, 0
                    await self.flush()
                    continue
            idle += 1
            await asyncio.sleep(0.01)  # the server ends the call, or gives a window, or does neither

    async def wait_closed(self) -> None:
        """Return once the server has ended the connection."""
        async with asyncio.timeout(_READ_TIMEOUT_S):
            await asyncio.wait({self._reading})

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError, h2.exceptions.ProtocolError):
            while data := await self._reader.read(65_536):
                self.h2.receive_data(data)


@dataclass(frozen=True)
class Door:
    """A listener, and the call on it that a stranger may make.

    Args:
        calls: that one connection may have open.
    """

    server: ServerProcess
    port: int
    path: str
    calls: int

    def abuser(self) -> contextlib.AbstractAsyncContextManager[Abuser]:
        """A new connection to it."""
        return Abuser.connected(self.server, self.port)


@pytest.fixture
async def served(tmp_path: Path, template: Template, processes: Processes) -> AsyncIterator[ServerProcess]:
    """A server process with one node that works."""
    async with ServerProcess(tmp_path, template, processes) as running:
        await running.add_node("n-1")
        await running.owner.run("n-1", count=5)
        yield running


@pytest.fixture(params=["nodes", "operators"])
def door(request: pytest.FixtureRequest, served: ServerProcess) -> Door:
    """Each listener in turn."""
    if request.param == "nodes":
        return Door(served, served.gateway_port, "/fleet.v1.Gateway/Connect", 8)
    return Door(served, served.admin_port, "/fleet.v1.Installation/Activate", 100)


def rss(server: ServerProcess) -> int:
    assert server.process is not None
    return psutil.Process(server.process.pid).memory_info().rss


def stands(server: ServerProcess) -> tuple[str, int]:
    """The node's stream, and how large the server is."""
    return server.nodes["n-1"].link.stream_id, rss(server)


async def still_serves(server: ServerProcess, stream_id: str, before: int, *, within_mib: int) -> None:
    """The node kept its stream and runs commands, and the server has not grown by more than that."""
    assert server.process is not None
    assert server.process.exit_code is None, server.process.tail()
    views = await server.owner.run("n-1")
    assert [view.state for view in views] == [SUCCEEDED]
    assert server.nodes["n-1"].link.stream_id == stream_id
    assert rss(server) - before < within_mib * _MIB


async def test_rapid_resets(door: Door) -> None:
    """CVE-2023-44487: calls opened and reset at once, by the thousand."""
    stream_id, before = stands(door.server)
    for _ in range(5):
        async with door.abuser() as abuser:
            for number in range(2_000):
                if abuser.closed:
                    break
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    call = abuser.open_call(door.path)
                    abuser.h2.reset_stream(call, h2.errors.ErrorCodes.CANCEL)
                if number % 100 == 99:
                    await abuser.flush()
    await still_serves(door.server, stream_id, before, within_mib=48)


async def test_many_connections_each_with_as_many_silent_calls_as_it_may_have(door: Door) -> None:
    stream_id, before = stands(door.server)
    async with contextlib.AsyncExitStack() as stack:
        abusers = [await stack.enter_async_context(door.abuser()) for _ in range(100)]
        for abuser in abusers:
            for _ in range(door.calls):
                abuser.open_call(door.path)
            await abuser.flush()
        await still_serves(door.server, stream_id, before, within_mib=96)


async def test_more_calls_than_a_connection_may_have_are_refused(door: Door) -> None:
    stream_id, before = stands(door.server)
    async with door.abuser() as abuser:
        abuser.h2.remote_settings.update({3: 100_000})  # as if the server had allowed it: it did not
        for number in range(5_000):
            if abuser.closed:
                break
            with contextlib.suppress(h2.exceptions.ProtocolError):
                abuser.open_call(door.path)
            if number % 100 == 99:
                await abuser.flush()
    await still_serves(door.server, stream_id, before, within_mib=48)


async def test_headers_that_never_end(door: Door) -> None:
    stream_id, before = stands(door.server)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            abuser = await stack.enter_async_context(door.abuser())
            await abuser.send(HeadersFrame(1, data=b"\x83", flags=[]).serialize())  # no END_HEADERS, and then nothing
        await still_serves(door.server, stream_id, before, within_mib=64)


async def test_headers_without_end_in_ever_more_pieces(door: Door) -> None:
    """CVE-2024-27316: one field of megabytes, in CONTINUATION frames."""
    stream_id, before = stands(door.server)
    piece = b"\x00\x01a\x7f\xe1\xff\x03" + b"v" * 16_000  # a literal field of some 64 KiB, and on
    for _ in range(3):
        async with door.abuser() as abuser:
            await abuser.send(HeadersFrame(1, data=piece, flags=[]).serialize())
            for _ in range(2_000):
                if abuser.closed:
                    break
                await abuser.send(ContinuationFrame(1, data=b"v" * 16_000, flags=[]).serialize())
            await abuser.wait_closed()
    # gRPC's allocator keeps some of it for a while: after 45 such connections it stood where it stood after 10.
    await still_serves(door.server, stream_id, before, within_mib=160)


async def test_giant_metadata(door: Door) -> None:
    stream_id, before = stands(door.server)
    for _ in range(10):
        async with door.abuser() as abuser:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                call = abuser.h2.get_next_available_stream_id()
                headers = [(":method", "POST"), (":scheme", "https"), (":path", door.path), (":authority", "localhost")]
                headers += [("content-type", "application/grpc"), ("te", "trailers")]
                headers += [(f"x-{number}", "v" * 8_000) for number in range(100)]
                abuser.h2.send_headers(call, headers)
            await abuser.flush()
    await still_serves(door.server, stream_id, before, within_mib=48)


async def test_a_flood_of_pings(door: Door) -> None:
    stream_id, before = stands(door.server)
    pings = PingFrame(0, opaque_data=b"12345678").serialize() * 1_000
    async with door.abuser() as abuser:
        for _ in range(100):
            if abuser.closed:
                break
            await abuser.send(pings)
    await still_serves(door.server, stream_id, before, within_mib=48)


async def test_connections_that_never_finish_their_tls(door: Door) -> None:
    stream_id, before = stands(door.server)
    writers = []
    try:
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"\x16\x03\x01\x02\x00")  # the first bytes of a handshake
            writers.append(writer)
        await still_serves(door.server, stream_id, before, within_mib=64)
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_large_requests_on_the_operators_listener_that_never_end(served: ServerProcess) -> None:
    stream_id, before = stands(served)
    body = b"\x00" + _FULL_MESSAGE.to_bytes(4, "big") + bytes(_FULL_MESSAGE - 1000)
    paths = (
        "/fleet.v1.Admin/IssueCommands",
        "/fleet.v1.Admin/WatchNodes",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/fleet.v1.Installation/Activate",
        "/grpc.health.v1.Health/Check",
    )

    async def abuse(abuser: Abuser) -> None:
        for number in range(100):
            if abuser.closed:
                break
            with contextlib.suppress(h2.exceptions.ProtocolError):
                await abuser.push(abuser.open_call(paths[number % len(paths)]), body)

    async with contextlib.AsyncExitStack() as stack:
        abusers = [await stack.enter_async_context(Abuser.connected(served, served.admin_port)) for _ in range(4)]
        await asyncio.gather(*map(abuse, abusers))
        # Kept whole they are 1.6 GiB. What may be kept: eight slow ones of each open service, those of the first tenth
        # of a second, and what the allocator has not given back; 110 to 140 MiB were seen.
        await still_serves(served, stream_id, before, within_mib=256)
