"""A bare grpc.aio server: bytes in, bytes out, nothing else. The floor under every figure of the product.

`Echo` streams answer what the server sends them, so the server drives: throughput, round trips and fan-out are measured
here. `Ingest` streams are read and counted.
"""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.fakes.watch import Watch
from tests.load.usage import process_usage

_OPTIONS = [("grpc.so_reuseport", 0)]
_STREAMS_TIMEOUT_S = 90.0
Call = Any
"""A stream as the handler has it; the stubs know nothing of raw bytes and their EOF."""


class BareServer:
    """The role of the server process; see `tests.load.child`."""

    def __init__(self) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._calls: list[Call] = []
        self._messages = 0
        self._reply: bytes | None = None
        self._window = 0
        self._watch = Watch()
        self._awaited_messages = 0
        self._started_at_s = 0.0

    async def start(self, cert: str | None, key: str | None, port: int = 0) -> dict[str, Any]:
        """Listen on loopback, with TLS when `cert` and `key` are paths of PEM files."""
        handlers = grpc.method_handlers_generic_handler(
            "bare.Bare",
            {
                "Echo": grpc.stream_stream_rpc_method_handler(self._echo),
                "Ingest": grpc.stream_stream_rpc_method_handler(self._ingest),
            },
        )
        self._server.add_generic_rpc_handlers((handlers,))
        address = f"127.0.0.1:{port}"
        if cert is None or key is None:
            bound = self._server.add_insecure_port(address)
        else:
            pair = (Path(key).read_bytes(), Path(cert).read_bytes())
            bound = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self._started_at_s = time.perf_counter()
        await self._server.start()
        return {"port": bound}

    async def close(self) -> None:
        """Abort what is open and stop listening."""
        await self._server.stop(None)

    async def usage(self) -> dict[str, float]:
        """CPU seconds and resident bytes of this process, after a collection."""
        gc.collect()
        return process_usage()

    async def wait_streams(self, count: int) -> dict[str, float]:
        """Return once `count` streams are open; how long that took since `start`."""
        await self._watch.wait_until(
            lambda: len(self._calls) >= count,
            lambda: f"{len(self._calls)} of {count} streams",
            _STREAMS_TIMEOUT_S,
        )
        return {"seconds": time.perf_counter() - self._started_at_s}

    async def pump(self, window: int, payload_bytes: int, warm_s: float, measure_s: float) -> dict[str, float]:
        """Keep `window` messages in flight on every stream: messages answered, and CPU spent, while measured."""
        self._reply, self._window = bytes(payload_bytes), window
        for call in self._calls:  # the first message; from then on the reader is the only writer
            await call.write(self._reply)
        figures = await self._counted(warm_s, measure_s)
        self._reply = None
        return figures

    async def count(self, warm_s: float, measure_s: float) -> dict[str, float]:
        """Messages that come in, and CPU spent on them, while measured."""
        return await self._counted(warm_s, measure_s)

    async def round_trips(self, count: int, payload_bytes: int) -> dict[str, list[float]]:
        """Seconds of `count` round trips, one after another, on the first stream."""
        payload, seconds = bytes(payload_bytes), []
        for _ in range(count):
            sent_at_s = time.perf_counter()
            await self._exchange(self._calls[:1], payload)
            seconds.append(time.perf_counter() - sent_at_s)
        return {"seconds": seconds}

    async def fan_out(self, payload_bytes: int) -> dict[str, float]:
        """Seconds from sending one message to every stream until the last one answered."""
        sent_at_s = time.perf_counter()
        await self._exchange(self._calls, bytes(payload_bytes))
        return {"seconds": time.perf_counter() - sent_at_s}

    async def _exchange(self, calls: list[Call], payload: bytes) -> None:
        self._awaited_messages = self._messages + len(calls)
        for call in calls:
            await call.write(payload)
        await self._watch.wait(lambda: self._messages >= self._awaited_messages)
        self._awaited_messages = 0

    async def _counted(self, warm_s: float, measure_s: float) -> dict[str, float]:
        await asyncio.sleep(warm_s)
        messages, cpu_s, at_s = self._messages, process_usage()["cpu_s"], time.perf_counter()
        await asyncio.sleep(measure_s)
        return {
            "messages": self._messages - messages,
            "seconds": time.perf_counter() - at_s,
            "cpu_s": process_usage()["cpu_s"] - cpu_s,
        }

    async def _echo(self, _: object, call: Call) -> None:
        self._calls.append(call)
        self._watch.changed()
        in_flight = 1
        try:
            while await call.read() is not grpc.aio.EOF:
                self._messages += 1
                if self._reply is not None:
                    await call.write(self._reply)
                    if in_flight < self._window:
                        await call.write(self._reply)
                        in_flight += 1
                elif self._messages == self._awaited_messages:
                    self._watch.changed()
        finally:
            self._calls.remove(call)

    async def _ingest(self, _: object, call: Call) -> None:
        self._calls.append(call)
        self._watch.changed()
        try:
            while await call.read() is not grpc.aio.EOF:
                self._messages += 1
        finally:
            self._calls.remove(call)
