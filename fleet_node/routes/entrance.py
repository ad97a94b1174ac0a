"""The room's door: what the link and the program hold of it.

Most nodes have no routes. So the room behind it is built when it is needed: with a probe listener, with routes from the
time before a restart, or with the first snapshot that the server sends. Until then none of its code is loaded
(docs/performance.md, A7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fleet.v1 import gateway_pb2, trust_pb2
from fleet_node.link.ports import Uplink
from fleet_node.routes.parts import RouteParts

if TYPE_CHECKING:
    from fleet_node.routes.listener import ProbeListener
    from fleet_node.routes.probe_caller import ProbeCaller
    from fleet_node.routes.service import RouteService
    from fleet_node.routes.view import RouteView


class Routes:
    """Implements `RoutePort`.

    Args:
        parts: what the room is built on.
        build: makes it; the product's own by default.
    """

    def __init__(self, parts: RouteParts, build: Callable[[RouteParts], RouteService] | None = None) -> None:
        self._parts = parts
        self._build = build or _build
        self._service: RouteService | None = None
        self._there = asyncio.Event()
        self._stream: _Stream | None = None

    @property
    def config_version(self) -> int:
        """See `RoutePort`."""
        return self._service.config_version if self._service is not None else 0

    @property
    def probe_listener(self) -> gateway_pb2.ProbeListener | None:
        """See `RoutePort`."""
        return self._service.probe_listener if self._service is not None else None

    def opened(self, uplink: Uplink) -> _Stream:
        """See `RoutePort`."""
        self._stream = _Stream(self, uplink)
        if self._service is not None:
            self._service.opened(uplink)
        return self._stream

    async def start(self) -> None:
        """Build the room where it is needed already, and open its listener. Before the first hello, which names it."""
        if self._parts.listen or self._parts.snapshot_path.exists():
            await self.room().start()

    async def run(self) -> None:
        """Walk, once there is a room, until it is cancelled."""
        await self._there.wait()
        await self.room().run()

    async def close(self) -> None:
        """Close what is open."""
        if self._service is not None:
            await self._service.close()

    def status(self) -> Mapping[str, Any] | None:
        """What `fleet-node status` shows; None while there is no room."""
        return self._service.status() if self._service is not None else None

    def show(self) -> None:
        """Bring figures that are read rather than counted up to date."""
        if self._service is not None:
            self._service.show()

    def room(self) -> RouteService:
        """The room, built now if it is not there yet."""
        if self._service is None:
            self._service = self._build(self._parts)
            if self._stream is not None:
                self._service.opened(self._stream.uplink)
            self._there.set()
        return self._service

    def next_health(self, stream: _Stream) -> bytes | None:
        """What goes out next on `stream`; None when a newer one took over."""
        return self._service.next_health() if self._service is not None and stream is self._stream else None

    def ended(self, stream: _Stream) -> None:
        """`stream` has ended."""
        if stream is self._stream:
            self._stream = None
            if self._service is not None:
                self._service.closed()


class _Stream:
    """Implements `RouteStream`."""

    def __init__(self, routes: Routes, uplink: Uplink) -> None:
        self.uplink = uplink
        self._routes = routes

    async def config_frame(self, signed: trust_pb2.Signed) -> None:
        """See `RouteStream`."""
        applied = await self._routes.room().take_config(signed)
        self.uplink.send_control(gateway_pb2.NodeControl(config_applied=applied))

    async def lease_frame(self, signed: trust_pb2.Signed) -> None:
        """See `RouteStream`."""
        ack = await self._routes.room().take_lease(signed)
        self.uplink.send_control(gateway_pb2.NodeControl(lease_ack=ack))

    def next_health(self) -> bytes | None:
        """See `RouteStream`."""
        return self._routes.next_health(self)

    def close(self) -> None:
        """See `RouteStream`."""
        self._routes.ended(self)


def _build(parts: RouteParts) -> RouteService:
    from fleet_node.routes.service import RouteService

    return RouteService(parts, listener_of=_listener_of(parts) if parts.listen else None)


def _listener_of(parts: RouteParts) -> Callable[[RouteView, ProbeCaller], ProbeListener]:
    from fleet_node.routes.listener import ProbeListener  # makes certificates: a MiB that a source does not need

    return lambda view, caller: ProbeListener(parts.listen, parts.leaf_path, view, caller, parts.clock)
