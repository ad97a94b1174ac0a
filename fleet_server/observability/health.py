"""Health of the server: grpc.health.v1 on its listeners, and the same answers for /healthz and /readyz.

Ready means that nodes should be sent here. A drain takes the gateway out of service at once
(docs/protocol.md, "Drain") while operators, who steer the drain, still see the admin service serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from fleet.metrics_listener import Health

GATEWAY_SERVICES = ("", "fleet.v1.Gateway")
"""What a drain takes out of service; the empty name, which load balancers ask for, is the whole server."""

ADMIN_SERVICES = ("fleet.v1.Admin",)

MAX_WATCHERS = 64
"""Watch calls at a time: each is a stream that never ends, and needs no credentials."""

MAX_SERVICE_NAME_CHARS = 128


class ServerHealth:
    """What this replica says of itself. Starts as not ready; build it with `create`."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer
        self._ready = False
        self._why = "starting"

    @classmethod
    async def create(cls) -> ServerHealth:
        """A replica that is starting: alive, serving nothing."""
        created = cls(health.aio.HealthServicer())
        await created._set((*GATEWAY_SERVICES, *ADMIN_SERVICES), serving=False)
        return created

    def register(self, server: grpc.aio.Server) -> None:
        """Add grpc.health.v1 to a listener's server, before that server starts."""
        health_pb2_grpc.add_HealthServicer_to_server(_BoundedHealth(self._servicer), server)

    async def set_ready(self) -> None:
        """All listeners are up: send nodes and operators here."""
        self._ready, self._why = True, "ready"
        await self._set((*GATEWAY_SERVICES, *ADMIN_SERVICES), serving=True)

    async def set_draining(self, why: str = "draining") -> None:
        """Send no more nodes here. Live streams go on, and so does the admin service."""
        self._ready, self._why = False, why
        await self._set(GATEWAY_SERVICES, serving=False)

    async def close(self) -> None:
        """The process ends: nothing is served any more, and no later call changes that."""
        self._ready, self._why = False, "stopping"
        await self._servicer.enter_graceful_shutdown()

    def readyz(self) -> Health:
        """The answer to /readyz."""
        return Health(self._ready, self._why)

    def healthz(self) -> Health:
        """The answer to /healthz: a process that answers has a running event loop, and needs no restart."""
        return Health(True, "alive")

    async def _set(self, services: Sequence[str], *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in services:
            await self._servicer.set(service, status)


class _BoundedHealth:
    """The library's servicer with caps: its Watch keeps whatever name a stranger asks for, as often as asked."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer
        self._watchers = 0

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Answer once. An unknown service is NOT_FOUND (grpc.health.v1)."""
        return await self._servicer.Check(request, context)

    async def List(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Not offered: the services are named in docs/protocol.md."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Ask Check for one service by name.")

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Answer now and on each change."""
        if len(request.service) > MAX_SERVICE_NAME_CHARS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This is no service name.")
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watchers: poll Check instead.")
        self._watchers += 1
        try:
            await self._servicer.Watch(request, context)
        finally:
            self._watchers -= 1
