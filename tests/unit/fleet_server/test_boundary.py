"""Nothing passes the boundary but what was meant to be said: over real gRPC and TLS."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from fleet import status
from fleet.errors import Reason, Refusal
from fleet.metrics import Registry
from fleet_server.boundary import Boundary, Context, peer_address, require_tls13
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
