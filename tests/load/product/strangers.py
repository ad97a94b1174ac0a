"""Callers without credentials: handshakes and enrollments that are made up, as fast as they are asked for."""

import asyncio
import os
import time

import grpc

from fleet.v1 import enrollment_pb2, gateway_pb2_grpc, session_pb2, trust_pb2
from tests.load.usage import process_usage

_CONNECTIONS = 16
_AT_ONCE = 8
"""Calls of one connection at once: as many as the server allows."""


class Strangers:
    """A role of `tests.load.child`."""

    def __init__(self) -> None:
        self._channels: list[grpc.aio.Channel] = []
        self._callers: list[asyncio.Task[None]] = []
        self._refused = 0
        self._answered = 0

    async def flood(self, address: str, ca: str, per_s: float = 0.0) -> None:
        """Call `per_s` times a second until `stop`; 0 for as fast as this core can."""
        credentials = grpc.ssl_channel_credentials(ca.encode())
        every_s = _CONNECTIONS * _AT_ONCE / per_s if per_s else 0.0
        for _ in range(_CONNECTIONS):
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            channel = grpc.aio.secure_channel(address, credentials, options=options)
            self._channels.append(channel)
            stub = gateway_pb2_grpc.GatewayStub(channel)
            self._callers += [asyncio.create_task(self._call(stub, every_s)) for _ in range(_AT_ONCE)]

    async def stop(self) -> dict[str, float]:
        """Stop calling; how many calls were refused, and how many had an answer, which is none too few."""
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        for channel in self._channels:
            await channel.close(None)
        refused, answered = self._refused, self._answered
        self._callers, self._channels, self._refused, self._answered = [], [], 0, 0
        return {"refused": refused, "answered": answered}

    async def usage(self) -> dict[str, float]:
        """CPU and memory of this process so far."""
        return process_usage()

    async def close(self) -> None:
        """End whatever still calls."""
        await self.stop()

    async def _call(self, stub: gateway_pb2_grpc.GatewayStub, every_s: float) -> None:
        api_key = "fak1." + os.urandom(48).hex()
        signed = trust_pb2.Signed(statement=os.urandom(200), signatures=[trust_pb2.Signature(value=os.urandom(64))])
        kinds = (
            (stub.BeginHandshake, session_pb2.BeginHandshakeRequest(api_key=api_key, node_id="nd_x")),
            (stub.CompleteHandshake, session_pb2.CompleteHandshakeRequest(api_key=api_key, signed=signed)),
            (stub.Enroll, enrollment_pb2.EnrollRequest(signed=signed)),
        )
        due_s = time.monotonic() + every_s * int.from_bytes(os.urandom(2), "big") / 65_536
        number = 0
        while True:
            method, request = kinds[number % len(kinds)]
            number += 1
            if every_s:
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                due_s += every_s
            try:
                await method(request, timeout=10)
                self._answered += 1
            except grpc.aio.AioRpcError:
                self._refused += 1
