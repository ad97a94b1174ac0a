"""The port where peers reach a node's probe service. A node goes on without it: what is wrong is logged and shown."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path

import grpc

from fleet.clock import Clock
from fleet.logs import get_logger
from fleet.transport import FIXED_WINDOW
from fleet_node.routes.door import LOOPBACK, Door
from fleet_node.routes.intake import ProbeLimits
from fleet_node.routes.leaf import load_or_make_leaf
from fleet_node.routes.probe_caller import ProbeCaller
from fleet_node.routes.probe_rules import MAX_MESSAGE_BYTES
from fleet_node.routes.rpc import ProbeService
from fleet_node.routes.view import RouteView

log = get_logger(__name__)

_STOP_GRACE_S = 1.0
_STOP_LIMIT_S = 5.0
_OPTIONS = (
    *FIXED_WINDOW,
    ("grpc.so_reuseport", 0),  # or a second node on this machine would silently share the port
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),  # a little more than may be is refused by name
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_allowed_incoming_connections", 1024),  # for whoever calls past the door, on this machine
    ("grpc.max_concurrent_streams", 128),  # of one peer: after a failure it walks all its routes at once
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Who is not heard of any more is reaped, and so is who holds a connection without a word: the longest pause between
    # two walks of a candidate is shorter.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_connection_idle_ms", 150_000),
)


class ProbeListener:
    """Serves the probe service on one port.

    Args:
        listen: "host:port".
        leaf_path: where its certificate and key rest, in the state folder.
        view: the snapshot in force.
        caller: calls the next node of a path.
        clock: the node's.
        limits: how much is taken.
    """

    def __init__(
        self,
        listen: str,
        leaf_path: Path,
        view: RouteView,
        caller: ProbeCaller,
        clock: Clock,
        limits: ProbeLimits | None = None,
    ) -> None:
        self._listen = listen
        self._leaf_path = leaf_path
        self._clock = clock
        limits = limits or ProbeLimits()
        self.door = Door(limits)
        self.service = ProbeService(view, caller, clock, limits, self.door)
        self._server: grpc.aio.Server | None = None
        self.certificate = b""
        """DER of what it shows; empty while it does not listen."""
        self.bound = ""
        """"host:port" as it is open now, or why it is not."""

    async def start(self) -> None:
        """Open the port. Nothing is raised: a port that is taken keeps no node from its work."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self.service.handlers(),))
        try:
            leaf = load_or_make_leaf(self._leaf_path, dt.datetime.fromtimestamp(self._clock.now_ms() / 1000, dt.UTC))
            credentials = grpc.ssl_server_credentials([(leaf.private_key_pem, leaf.certificate_pem)])
            inner = server.add_secure_port(f"{LOOPBACK}:0", credentials)
            await server.start()
            port = await self._open(inner)
        except (OSError, RuntimeError, ValueError) as error:
            self.bound = f"not listening on {self._listen}: {_why(error)}"
            log.error("probe_listener_failed", address=self._listen, error=str(error))
            await server.stop(None)
            return
        self._server, self.certificate = server, leaf.certificate_der
        self.bound = f"{self._listen.rpartition(':')[0]}:{port}"
        log.info("probe_listener_open", address=self.bound)

    async def close(self) -> None:
        """Close the port; walks under way have a second."""
        server, self._server, self.certificate = self._server, None, b""
        if server is None:
            return
        self.bound = "closed"
        self.door.shut()
        try:
            async with asyncio.timeout(_STOP_LIMIT_S):  # a deaf peer would hang it
                await server.stop(_STOP_GRACE_S)
        except TimeoutError:
            log.warning("probe_listener_not_closed_in_time", after_s=_STOP_LIMIT_S)
        finally:
            self.door.close()

    async def _open(self, inner: int) -> int:
        try:
            return await self.door.open(self._listen, inner)
        except (OSError, ValueError, OverflowError) as error:
            raise RuntimeError(str(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "the port is taken, or the address is not this machine's: choose another `probe_listen`"
