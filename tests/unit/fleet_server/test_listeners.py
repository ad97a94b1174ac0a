"""What listeners tell gRPC, as strangers meet it."""

import asyncio
import socket
from collections.abc import Callable

import grpc
import pytest
from hyperframe.frame import HeadersFrame, SettingsFrame

from fleet_server import listeners
from tests.fakes.tls import FakeAuthority

CREDENTIALS = FakeAuthority().issue().server_credentials()
NOTHING = grpc.method_handlers_generic_handler("t.T", {})
OPENERS: dict[str, Callable[[float], grpc.aio.Server]] = {
    "gateway": lambda idle_s: listeners.open_gateway(NOTHING, 10, 1024 * 1024, idle_s=idle_s),
    "admin": lambda idle_s: listeners.open_admin([NOTHING], idle_s=idle_s),
}


@pytest.mark.parametrize("which", OPENERS)
@pytest.mark.parametrize("sent", [b"", HeadersFrame(1, data=b"\x83", flags=[]).serialize()], ids=["nothing", "headers"])
async def test_a_connection_on_which_no_call_begins_is_ended(which: str, sent: bytes) -> None:
    """The attack: places and memory held for ever, by silence or by headers that are never finished."""
    server = OPENERS[which](0.2)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize() + sent)
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
    finally:
        writer.transport.abort()
        await server.stop(0)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "another process holds the port"),
        ("192.0.2.77", "this machine has no such address"),
        ("no-such-host.invalid", "there is no host of that name"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_is_told_with_its_cause(host: str, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"{host}:{taken.getsockname()[1]}"
        with pytest.raises(listeners.ListenError, match=why) as refused:
            listeners.bind(listeners.open_admin([NOTHING]), listen, CREDENTIALS, "admin_listen")
    assert f"cannot listen on {listen} (admin_listen)" in str(refused.value)
