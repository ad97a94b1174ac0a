"""gRPC reflection for operators: what the library offers, for whoever shows a token.

It reads what callers stream to it, so it would read a stranger's megabytes too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from fleet_server.admin.access import OperatorService
from fleet_server.boundary import Boundary, Context, bearer_token, require_tls13

_METHOD = "ServerReflectionInfo"


class Reflection:
    """The service.

    Args:
        services: full names of what the listener serves.
    """

    def __init__(self, *, services: Sequence[str], access: OperatorService, boundary: Boundary) -> None:
        self._servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
        self._access = access
        self._boundary = boundary

    def handlers(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        method = grpc.stream_stream_rpc_method_handler(
            self._handle,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {_METHOD: method})

    async def _handle(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for answer in self._boundary.stream(_METHOD, context, self._answers(requests, context)):
            yield answer

    async def _answers(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        require_tls13(context)
        await self._access.authenticate(bearer_token(context))
        async for answer in self._servicer.ServerReflectionInfo(requests, context):
            yield answer
