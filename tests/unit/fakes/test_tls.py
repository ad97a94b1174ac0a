"""Test certificates work with gRPC and refuse strangers."""

import datetime
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.fakes.lane import Direction
from tests.fakes.proxy import FaultProxy
from tests.fakes.tls import FakeAuthority, Leaf


async def _echo(request: bytes, _: object) -> bytes:
    return request


async def _serve(leaf: Leaf) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", {"Echo": method}),))
    port = server.add_secure_port("127.0.0.1:0", leaf.server_credentials())
    await server.start()
    return server, port


@pytest.fixture
async def port(tls_authority: FakeAuthority) -> AsyncIterator[int]:
    server, port = await _serve(tls_authority.issue())
    yield port
    await server.stop(None)


async def _call(port: int, authority: FakeAuthority) -> bytes:
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", authority.channel_credentials()) as channel:
        call: Any = channel.unary_unary("/echo.Echo/Echo")
        answer: bytes = await call(b"hello", timeout=10)
        return answer


async def test_a_leaf_serves_grpc_over_tls(port: int, tls_authority: FakeAuthority) -> None:
    assert await _call(port, tls_authority) == b"hello"


async def test_grpc_over_tls_goes_through_the_proxy_and_feels_its_faults(
    port: int, tls_authority: FakeAuthority
) -> None:
    async with FaultProxy(("127.0.0.1", port)) as proxy:
        assert await _call(proxy.port, tls_authority) == b"hello"
        assert proxy.forwarded_bytes(Direction.UP) > 0
        proxy.cut_after(Direction.DOWN, 100)  # within the TLS handshake
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await _call(proxy.port, tls_authority)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        proxy.heal()
        assert await _call(proxy.port, tls_authority) == b"hello"


async def test_another_authority_is_refused(port: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await _call(port, FakeAuthority())
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_leaf_that_ran_out_is_refused(tls_authority: FakeAuthority) -> None:
    server, port = await _serve(tls_authority.issue(valid_for=-datetime.timedelta(hours=1)))
    with pytest.raises(grpc.aio.AioRpcError):
        await _call(port, tls_authority)
    await server.stop(None)


def test_files_keep_the_key_private(tls_authority: FakeAuthority, tmp_path: Path) -> None:
    leaf = tls_authority.issue("gateway.example")
    cert_path, key_path = leaf.write(tmp_path)
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert cert_path.read_bytes() == leaf.cert_pem
    assert b"PRIVATE" not in repr(leaf).encode()
