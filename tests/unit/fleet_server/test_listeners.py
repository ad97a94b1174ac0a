"""What listeners tell gRPC, as strangers meet it."""

import asyncio
from collections.abc import Callable

import grpc
import pytest
from hyperframe.frame import HeadersFrame, SettingsFrame

from fleet_server import listeners

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
