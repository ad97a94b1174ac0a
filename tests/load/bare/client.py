"""Bare grpc.aio clients: streams that answer every message, or push messages, or only stay open."""

import asyncio
import random
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.load.usage import process_usage

_OWN_CONNECTION = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_BACK_WITHIN_S = 0.2
_AT_ONCE = 8
"""The least time to give a connection attempt is `grpc.min_reconnect_backoff_ms`: it stays at its default of 20 s."""


class BareClient:
    """The role of a client process; see `tests.load.child`."""

    def __init__(self) -> None:
        self._channels: list[grpc.aio.Channel] = []
        self._calls: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def echo(self, address: str, count: int, ca: str | None = None, own_connections: bool = True) -> None:
        """Open `count` streams that send back what they receive."""
        for call in self._open(address, count, "Echo", ca, own_connections):
            self._tasks.append(asyncio.create_task(_answer(call)))

    async def push(
        self, address: str, count: int, payload_bytes: int, ca: str | None = None, every_s: float = 0.0
    ) -> None:
        """Open `count` streams that send without pause, or one message `every_s` each, at random phases."""
        payload = bytes(payload_bytes)
        for call in self._open(address, count, "Ingest", ca, own_connections=True):
            self._tasks.append(asyncio.create_task(_push(call, payload, every_s)))

    async def return_always(self, address: str, count: int, ca: str | None = None) -> None:
        """Hold `count` streams and open each again, after a short random pause, whenever it is lost."""
        for channel in self._connect(address, count, ca, own_connections=True):
            self._tasks.append(asyncio.create_task(_hold(channel)))

    async def churn(self, address: str, count: int, ca: str) -> None:
        """Open and cancel `count` streams, eight at a time, each on a connection of its own."""
        credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes())

        async def some(number: int) -> None:
            for _ in range(number):
                async with grpc.aio.secure_channel(address, credentials, options=_OWN_CONNECTION) as channel:
                    call: Any = channel.stream_stream("/bare.Bare/Echo")(wait_for_ready=True)
                    await call.write(b"hello")
                    await call.wait_for_connection()
                    call.cancel()

        await asyncio.gather(*(some(count // _AT_ONCE) for _ in range(_AT_ONCE)))

    async def check_open(self) -> None:
        """Every stream that was opened is still open: a baseline of fewer streams than it says would flatter nobody.

        Raises:
            ConnectionError: with how many ended, and how the first of them did.
        """
        ended = [call for call in self._calls if call.done()]
        if ended:
            how = f"{await ended[0].code()}: {await ended[0].details()}"
            raise ConnectionError(f"{len(ended)} of {len(self._calls)} streams ended, the first with {how}")

    async def close(self) -> None:
        """Cancel every stream and close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    async def usage(self) -> dict[str, float]:
        """CPU seconds and resident bytes of this process."""
        return process_usage()

    def _connect(self, address: str, count: int, ca: str | None, own_connections: bool) -> list[grpc.aio.Channel]:
        options = _OWN_CONNECTION if own_connections else None
        credentials = None if ca is None else grpc.ssl_channel_credentials(Path(ca).read_bytes())
        for _ in range(count if own_connections else 1):
            if credentials is None:
                self._channels.append(grpc.aio.insecure_channel(address, options=options))
            else:
                self._channels.append(grpc.aio.secure_channel(address, credentials, options=options))
        return self._channels[-count:]

    def _open(self, address: str, count: int, method: str, ca: str | None, own_connections: bool) -> list[Any]:
        channels = self._connect(address, count, ca, own_connections)
        opened = []
        for index in range(count):
            multicallable: Any = channels[index % len(channels)].stream_stream(f"/bare.Bare/{method}")
            opened.append(multicallable(wait_for_ready=True))
        self._calls.extend(opened)
        return opened


async def _answer(call: Any) -> None:
    while (message := await call.read()) is not grpc.aio.EOF:
        await call.write(message)


async def _push(call: Any, payload: bytes, every_s: float) -> None:
    await asyncio.sleep(random.uniform(0, every_s))
    while True:
        await call.write(payload)
        if every_s:
            await asyncio.sleep(every_s)


async def _hold(channel: grpc.aio.Channel) -> None:
    while True:
        call: Any = channel.stream_stream("/bare.Bare/Echo")(wait_for_ready=True)
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
        await asyncio.sleep(random.uniform(0, _BACK_WITHIN_S))
