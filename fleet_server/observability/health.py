"""Health of the server: grpc.health.v1 on its listeners, and the same answers for /healthz and /readyz.

Ready means that nodes should be sent here. A drain takes the gateway out of service at once
(docs/protocol.md, "Drain") while operators, who steer the drain, still see the admin service serving.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2  # type: ignore[import-untyped]

from fleet import status
from fleet.errors import Refusal
from fleet.metrics_listener import Health
from fleet_server.boundary import Context, RequestReader

WHOLE_SERVER = ""
"""What load balancers ask for, of every listener."""

GATEWAY_SERVICE = "fleet.v1.Gateway"
ADMIN_SERVICE = "fleet.v1.Admin"
_OUT_OF_SERVICE_IN_A_DRAIN = (WHOLE_SERVER, GATEWAY_SERVICE)
_ALL = (*_OUT_OF_SERVICE_IN_A_DRAIN, ADMIN_SERVICE)
_NOBODY = "?"

MAX_WATCHERS = 64
"""Watch calls at a time: each is a stream that never ends, and needs no credentials."""

MAX_SERVICE_NAME_CHARS = 128


class ServerHealth:
    """What this replica says of itself. Starts as not ready; build it with `create`."""

    def __init__(self, servicer: Any, hung: Callable[[], str]) -> None:
        self._servicer = servicer
        self._hung = hung
        self._ready = False
        self._why = "starting"

    @classmethod
    async def create(cls, hung: Callable[[], str] = str) -> ServerHealth:
        """A replica that is starting: alive, serving nothing.

        Args:
            hung: what hangs in this process, that a restart would help; empty for nothing.
        """
        created = cls(health.aio.HealthServicer(), hung)
        await created._set(_ALL, serving=False)
        return created

    def register(self, server: grpc.aio.Server, service: str) -> None:
        """Add grpc.health.v1 to a listener's server, before that server starts.

        Args:
            server: of the listener.
            service: the one that it serves: of others it knows nothing.
        """
        bounded = _BoundedHealth(self._servicer, (WHOLE_SERVER, service))
        coding = {"request_deserializer": _check_request, "response_serializer": _serialize}
        handlers = {
            "Check": grpc.stream_unary_rpc_method_handler(bounded.check, **coding),
            "Watch": grpc.stream_stream_rpc_method_handler(bounded.watch, **coding),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers),))

    async def set_ready(self) -> None:
        """All listeners are up: send nodes and operators here."""
        self._ready, self._why = True, "ready"
        await self._set(_ALL, serving=True)

    async def set_draining(self, why: str = "draining") -> None:
        """Send no more nodes here. Live streams go on, and so does the admin service."""
        self._ready, self._why = False, why
        await self._set(_OUT_OF_SERVICE_IN_A_DRAIN, serving=False)

    async def close(self) -> None:
        """The process ends: nothing is served any more, and no later call changes that."""
        self._ready, self._why = False, "stopping"
        await self._servicer.enter_graceful_shutdown()

    def readyz(self) -> Health:
        """The answer to /readyz."""
        return Health(self._ready, self._why)

    def healthz(self) -> Health:
        """The answer to /healthz: a process that answers has a running event loop; it needs a restart when something
        else hangs in it, and none because the database is away."""
        hung = self._hung()
        return Health(not hung, hung or "alive")

    async def _set(self, services: Sequence[str], *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in services:
            await self._servicer.set(service, status)


class _BoundedHealth:
    """One listener's view of the library's servicer, with caps, for it needs no credentials: requests are read as
    `RequestReader` says, and its Watch would keep whatever name a stranger asks for, as often as asked. Its List is
    not offered: the services are named in docs/protocol.md."""

    def __init__(self, servicer: Any, services: Collection[str]) -> None:
        self._servicer = servicer
        self._services = services
        self._requests = RequestReader(prompt_s=0.1, slow_s=9.9, places=8)
        self._watchers = 0

    async def check(self, _: object, context: Context) -> Any:
        """Answer once. A service that this listener does not serve is NOT_FOUND (grpc.health.v1)."""
        return await self._servicer.Check(await self._request(context), context)

    async def watch(self, _: object, context: Context) -> None:
        """Answer now and on each change. A service that this listener does not serve is SERVICE_UNKNOWN."""
        request = await self._request(context)
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watchers: poll Check instead.")
        self._watchers += 1
        try:
            await self._servicer.Watch(request, context)
        finally:
            self._watchers -= 1

    async def _request(self, context: Context) -> Any:
        try:
            request = await self._requests.read(context)
        except Refusal as refusal:
            await context.abort(*status.encode(refusal))
        if len(request.service) > MAX_SERVICE_NAME_CHARS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This is no service name.")
        return request if request.service in self._services else health_pb2.HealthCheckRequest(service=_NOBODY)


def _check_request(raw: bytes) -> Any:
    try:
        return health_pb2.HealthCheckRequest.FromString(raw)
    except DecodeError:
        return health_pb2.HealthCheckRequest(service=_NOBODY)


def _serialize(message: Any) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
