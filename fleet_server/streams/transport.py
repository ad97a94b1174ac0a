"""The wire under a stream."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

import grpc

from fleet.v1 import gateway_pb2
from fleet_server.boundary import Context, read_message
from fleet_server.streams.frames import BadFrame


class Transport(Protocol):
    """The wire under a stream; grpc in the server, memory in unit tests."""

    async def read(self) -> gateway_pb2.NodeFrame | BadFrame | None:
        """Next frame; None at EOF or when the connection broke. Never cancelled (grpc/grpc#43360)."""
        ...

    async def write(self, frame: gateway_pb2.ServerFrame) -> bool:
        """Hand a frame to the transport; False once the call is over. Waits for as long as the peer does not read."""
        ...


class GrpcTransport:
    """A grpc.aio call as a stream's transport."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self) -> Coroutine[Any, Any, gateway_pb2.NodeFrame | BadFrame | None]:
        """Next frame; None at EOF or once the call is over."""
        return read_message(self._context)

    async def write(self, frame: gateway_pb2.ServerFrame) -> bool:
        """Hand a frame to gRPC; False once the call is over."""
        try:
            await self._context.write(frame)
        except (grpc.aio.BaseError, grpc.aio.AioRpcError):
            return False
        return True
