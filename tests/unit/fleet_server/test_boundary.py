"""Nothing passes the boundary but what was meant to be said: over real gRPC and TLS."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from fleet import status
from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet_server.boundary import (
    Boundary,
    Context,
    RequestReader,
    network_of,
    peer_address,
    read_message,
    require_tls13,
)
from fleet_server.observability.metrics import StreamMetrics
from tests.fakes.tls import FakeAuthority

SECRET = "password=hunter2"


@asynccontextmanager
async def _serving(tls_authority: FakeAuthority, boundary: Boundary) -> AsyncIterator[grpc.aio.Channel]:
    async def fail() -> bytes:
        raise RuntimeError(SECRET)

    async def refuse() -> bytes:
        raise Refusal(Reason.OVERLOADED, "come back", retry_after_s=1.5, metadata={"k": "v"})

    async def unary(request: bytes, context: Context) -> bytes:
        require_tls13(context)
        if request == b"peer":
            return peer_address(context).encode()
        return await boundary.call("Unary", context, fail() if request == b"fail" else refuse())

    async def stream(request: bytes, context: Context) -> AsyncIterator[bytes]:
        async def messages() -> AsyncIterator[bytes]:
            yield b"one"
            raise RuntimeError(SECRET)

        async for message in boundary.stream("Stream", context, messages()):
            yield message

    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_secure_port("127.0.0.1:0", tls_authority.issue().server_credentials())
    await server.start()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", tls_authority.channel_credentials()) as channel:
            yield channel
    finally:
        await server.stop(0)


async def _error(call: grpc.aio.UnaryUnaryCall) -> grpc.aio.AioRpcError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


async def test_an_unexpected_error_becomes_an_incident_without_its_text(tls_authority: FakeAuthority) -> None:
    boundary = Boundary(StreamMetrics(Registry()).refusals)
    async with _serving(tls_authority, boundary) as channel:
        error = await _error(channel.unary_unary("/t.T/Unary")(b"fail"))
    refusal = status.decode(error)
    assert refusal.reason is Reason.INTERNAL
    assert len(refusal.metadata["incident"]) == 12
    assert SECRET not in f"{error} {error.details()} {error.trailing_metadata()}"


async def test_a_refusal_arrives_whole(tls_authority: FakeAuthority) -> None:
    metrics = StreamMetrics(Registry())
    async with _serving(tls_authority, Boundary(metrics.refusals)) as channel:
        error = await _error(channel.unary_unary("/t.T/Unary")(b"refuse"))
    refusal = status.decode(error)
    assert (refusal.reason, refusal.detail, refusal.retry_after_s) == (Reason.OVERLOADED, "come back", 1.5)
    assert refusal.metadata == {"k": "v"}
    assert metrics.refusals.labels("OVERLOADED", "Unary").value == 1


async def test_a_stream_that_fails_midway_tells_no_more(tls_authority: FakeAuthority) -> None:
    boundary = Boundary(StreamMetrics(Registry()).refusals)
    async with _serving(tls_authority, boundary) as channel:
        call = channel.unary_stream("/t.T/Stream")(b"")
        assert await call.read() == b"one"
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            assert status.decode(error).reason is Reason.INTERNAL
            assert SECRET not in f"{error} {error.details()}"
        else:
            raise AssertionError("the stream went on")


async def test_the_peer_is_an_address_without_port(tls_authority: FakeAuthority) -> None:
    boundary = Boundary(StreamMetrics(Registry()).refusals)
    async with _serving(tls_authority, boundary) as channel:
        assert await asyncio.wait_for(channel.unary_unary("/t.T/Unary")(b"peer"), 10) == b"127.0.0.1"


@asynccontextmanager
async def _reading(reader: RequestReader) -> AsyncIterator[grpc.aio.Channel]:
    boundary = Boundary(StreamMetrics(Registry()).refusals)

    async def echo(_: object, context: Context) -> bytes:
        return await boundary.call("Echo", context, reader.read(context))

    server = grpc.aio.server()
    handlers = {"Echo": grpc.stream_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def test_a_request_that_never_comes_is_waited_for_no_longer_than_said() -> None:
    async with _reading(RequestReader(prompt_s=0.01, slow_s=0.01)) as channel:
        unfinished = channel.stream_unary("/t.T/Echo")()
        assert status.decode(await _error(unfinished)).reason is Reason.MALFORMED
        assert await channel.unary_unary("/t.T/Echo")(b"whole") == b"whole"


async def test_a_call_that_ends_without_a_request_is_malformed() -> None:
    async with _reading(RequestReader()) as channel:
        empty = channel.stream_unary("/t.T/Echo")()
        await empty.done_writing()
        assert status.decode(await _error(empty)).reason is Reason.MALFORMED


async def test_a_read_that_comes_after_the_server_has_stopped_finds_the_end() -> None:
    """A drain ends with streams that are at work: their next read is no error of the server's own."""
    found: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    stopped = asyncio.Event()

    async def read_late(context: Context) -> None:
        await stopped.wait()
        try:
            found.set_result(await read_message(context))
        except Exception as error:
            found.set_exception(error)

    async def handler(_: object, context: Context) -> bytes:
        reading = asyncio.create_task(read_late(context))
        await asyncio.wait({reading})
        return b""

    server = grpc.aio.server()
    handlers = {"Late": grpc.stream_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/t.T/Late")()
        await call.write(b"one")
        await server.stop(0)
        stopped.set()
        assert await asyncio.wait_for(found, 10) is None


async def test_slow_callers_have_few_places_and_take_none_from_prompt_ones() -> None:
    """The attack: calls that are begun and never finished, as many as the connections carry."""
    async with _reading(RequestReader(prompt_s=0.01, slow_s=60.0, places=2)) as channel:
        unfinished = [channel.stream_unary("/t.T/Echo")() for _ in range(8)]
        ends = asyncio.as_completed([_error(call) for call in unfinished])
        refused = [status.decode(await next(ends)).reason for _ in range(6)]
        assert refused == [Reason.OVERLOADED] * 6
        assert await channel.unary_unary("/t.T/Echo")(b"prompt") == b"prompt"
        for call in unfinished:
            call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await next(ends)


class Unfinished:
    """A call whose request does not come until the test says so."""

    def __init__(self, peer: str, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._peer = peer
        self._metadata = metadata
        self.request = asyncio.get_running_loop().create_future()

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata

    async def read(self) -> bytes:
        return await self.request


async def _refused(reading: asyncio.Task[bytes]) -> Reason:
    with pytest.raises(Refusal) as caught:
        await asyncio.wait_for(reading, 10)
    return caught.value.reason


async def test_slow_callers_of_one_address_leave_room_for_those_of_others() -> None:
    """The attack: one address holds every place, so that nobody elsewhere may be slow."""
    reader = RequestReader(prompt_s=0.001, slow_s=60.0, places=3)

    def begin(peer: str) -> tuple[Unfinished, asyncio.Task[bytes]]:
        call = Unfinished(peer)
        return call, asyncio.create_task(reader.read(call))  # type: ignore[arg-type]

    crowd = [begin("ipv4:198.51.100.66:1000") for _ in range(3)]
    assert await _refused(begin("ipv4:198.51.100.66:1001")[1]) is Reason.OVERLOADED
    slow, answer = begin("ipv6:[2001:db8::7]:1002")
    assert await _refused(crowd[0][1]) is Reason.OVERLOADED
    assert await _refused(begin("ipv4:198.51.100.66:1003")[1]) is Reason.OVERLOADED
    slow.request.set_result(b"slow, and whole")
    assert await asyncio.wait_for(answer, 10) == b"slow, and whole"
    for call, reading in crowd[1:]:
        assert not reading.done()
        call.request.set_result(b"")
        await reading


async def test_a_call_with_too_much_metadata_is_not_waited_for() -> None:
    """gRPC hands over up to 16 MiB of it, whatever it is told."""
    metadata = tuple((f"x-{number}-bin", bytes(8_000)) for number in range(3))
    call = Unfinished("ipv4:192.0.2.1:1000", metadata)
    reading = asyncio.create_task(RequestReader(prompt_s=60.0).read(call))  # type: ignore[arg-type]
    assert await _refused(reading) is Reason.MALFORMED


async def test_what_came_is_read_however_late_the_loop_is() -> None:
    """A storm: the loop looks when the time is long over, and what came meanwhile is no slow request."""
    reader = RequestReader(prompt_s=0.005, slow_s=60.0, places=0)
    call = Unfinished("ipv4:192.0.2.1:1000")
    reading = asyncio.create_task(reader.read(call))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()

    def lag(turns: int) -> None:
        time.sleep(0.01)
        if turns:
            loop.call_soon(lag, turns - 1)
        else:
            call.request.set_result(b"prompt")

    loop.call_soon(lag, 4)
    assert await reading == b"prompt"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_what_shares_a_bucket(address: str, network: str) -> None:
    assert network_of(address) == network
