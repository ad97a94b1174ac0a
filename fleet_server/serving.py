"""What a server listens with: gateway, admin and metrics, each on a listener of its own."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import grpc

from fleet.logs import get_logger
from fleet.metrics_listener import Federation, MetricsListener
from fleet_server import listeners
from fleet_server.admin.reflection import Reflection
from fleet_server.admin.rooms import admin_rooms
from fleet_server.admin.rpc import SERVICE as ADMIN_SERVICE
from fleet_server.admin.rpc import Admin
from fleet_server.boundary import Boundary
from fleet_server.installation.rpc import SERVICE as INSTALLATION_SERVICE
from fleet_server.installation.rpc import InstallationApi
from fleet_server.listeners import Listener
from fleet_server.observability.health import GATEWAY_SERVICE, ServerHealth
from fleet_server.rooms import ServerRooms
from fleet_server.streams.frames import FrameLimits
from fleet_server.streams.rooms import Rooms
from fleet_server.streams.rpc import Gateway

log = get_logger(__name__)


class Serving(NamedTuple):
    """What is open. Only the node-facing part ends before the rest does."""

    gateway: Gateway
    listener: Listener
    """The gateway's."""
    health: ServerHealth


async def open_listeners(rooms: ServerRooms, stack: contextlib.AsyncExitStack) -> Serving:
    """Listen for operators, then for nodes, ready or not: health says which.

    Args:
        rooms: all built.
        stack: closes what was opened.

    Raises:
        ListenError: an address cannot be listened on.
    """
    settings, certificates = rooms.settings, rooms.certificates
    boundary = Boundary(rooms.metrics.streams.refusals)
    health = await ServerHealth.create(lambda: "the database writer hangs" if rooms.database.is_hung() else "")
    gateway = _gateway(rooms, boundary)
    share_port = settings.workers > 1
    gateway_server = listeners.open_gateway(
        gateway.handlers(), settings.max_streams, settings.max_frame_bytes, share_port=share_port
    )
    admin_server = listeners.open_admin(_admin_handlers(rooms, boundary), share_port=share_port)
    health.register(gateway_server, GATEWAY_SERVICE)
    health.register(admin_server, ADMIN_SERVICE)
    admin = await listeners.start(admin_server, settings.admin_listen, certificates.credentials(), "admin_listen")
    stack.push_async_callback(admin_server.stop, 0.5)
    if settings.metrics_listen not in ("", "off"):
        await _open_metrics(rooms, health, stack)
    if settings.mtls_listen:
        credentials = certificates.credentials(rooms.sessions.certificates.offer())
        mtls = listeners.bind(gateway_server, settings.mtls_listen, credentials, "mtls_listen")
        log.info("mtls_listening", address=mtls.address)
    listener = await listeners.start(
        gateway_server, settings.gateway_listen, certificates.credentials(), "gateway_listen"
    )
    stack.push_async_callback(gateway_server.stop, 0)
    log.info("listening", gateway=listener.address, admin=admin.address)
    return Serving(gateway, listener, health)


def _gateway(rooms: ServerRooms, boundary: Boundary) -> Gateway:
    settings = rooms.settings
    return Gateway(
        rooms=Rooms(
            commands=rooms.commands,
            nodes=rooms.nodes,
            sessions=rooms.sessions,
            telemetry=rooms.telemetry,
            trust=rooms.trust,
            node_audit=rooms.node_audit,
            routes=rooms.routes,
            clock=rooms.clock,
            metrics=rooms.metrics,
        ),
        enrollment=rooms.enrollment,
        registry=rooms.streams,
        boundary=boundary,
        require_active=rooms.installation.require_active,
        replica_id=rooms.replica_id,
        max_unary_calls=settings.handshake_concurrency,
        limits=FrameLimits(settings.max_frame_bytes, settings.max_telemetry_frame_bytes),
    )


def _admin_handlers(rooms: ServerRooms, boundary: Boundary) -> tuple[grpc.GenericRpcHandler, ...]:
    access, require_active = rooms.operators, rooms.installation.require_active
    admin = Admin(rooms=admin_rooms(rooms), access=access, boundary=boundary, require_active=require_active)
    installation = InstallationApi(
        rooms.installation, boundary, authenticate=access.authenticate, chain=rooms.trust.fresh_chain
    )
    reflection = Reflection(services=(ADMIN_SERVICE, INSTALLATION_SERVICE), access=access, boundary=boundary)
    return admin.handlers(), installation.handlers(), reflection.handlers()


async def _open_metrics(rooms: ServerRooms, health: ServerHealth, stack: contextlib.AsyncExitStack) -> None:
    metrics = MetricsListener(
        rooms.registry,
        healthz=health.healthz,
        readyz=health.readyz,
        federate=Federation(rooms.telemetry.federate, rooms.metrics.telemetry.federation_dropped),
    )
    host, port = listeners.split_listen(rooms.settings.metrics_listen)
    try:
        port = await metrics.start(host, port)
    except OSError as error:
        raise listeners.cannot_listen(rooms.settings.metrics_listen, "metrics_listen") from error
    log.info("metrics_listening", address=f"{host}:{port}")
    stack.push_async_callback(metrics.close)
