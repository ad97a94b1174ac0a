"""gRPC listeners: one Server object each, so that one can be drained while the other goes on.

Options are explained in docs/architecture.md, "What gRPC needs to be told".
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from fleet.transport import FIXED_WINDOW

_MIB = 1024 * 1024
_COMMON = (
    *FIXED_WINDOW,
    # A peer that stopped reading would hang abort() and stop() for ever; these two reap its transport.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Beyond a thousand calls that wait for their turn gRPC cancels some by chance, without a word about when to come
    # back. A storm is let in by our own admission, which says that.
    ("grpc.server.max_pending_requests", 16_384),
    ("grpc.server.max_pending_requests_hard_limit", 32_768),
)
_GATEWAY = (*_COMMON, ("grpc.max_concurrent_streams", 8))
_SLIGHTLY_TOO_LARGE = 64 * 1024
"""A frame over its limit by so much is read and refused by name. What is larger gRPC refuses by what its header says,
before it takes up memory: strangers begin messages too."""
IDLE_S = 30.0
"""So long a connection without a call is kept. Strangers would hold places for ever, and in each 16 MiB of headers that
they never finish, which gRPC counts as no call. Clients connect again by themselves."""
_SPARE_CONNECTIONS = 1_000  # nodes that fetch the leaf, enroll or hand over hold a second one for a moment
_ADMIN = (
    *_COMMON,
    ("grpc.max_receive_message_length", 4 * _MIB),
    ("grpc.max_concurrent_streams", 100),  # a client that begins more before it has heard of it fails some
    ("grpc.max_allowed_incoming_connections", 512),
)

_CAUSES = {
    errno.EADDRINUSE: "another process holds the port; choose another one",
    errno.EADDRNOTAVAIL: "this machine has no such address; write one that it has, or 0.0.0.0 for all",
    errno.EACCES: "this user may not take that port; choose one above 1023",
}


class ListenError(Exception):
    """A listener cannot be opened; the message names the setting."""


@dataclass(slots=True)
class Listener:
    """One open port."""

    server: grpc.aio.Server
    host: str
    port: int

    @property
    def address(self) -> str:
        """host:port as it is open now."""
        return f"{self.host}:{self.port}"


def open_gateway(
    handlers: grpc.GenericRpcHandler,
    max_streams: int,
    max_frame_bytes: int,
    *,
    idle_s: float = IDLE_S,
    share_port: bool = False,
) -> grpc.aio.Server:
    """The node-facing server, not started.

    Args:
        max_streams: most streams; connections are capped a little above.
        max_frame_bytes: largest frame; messages are capped a little above.
        idle_s: seconds after which a connection without a call is ended.
        share_port: with the other workers of this machine.
    """
    caps = (
        ("grpc.max_allowed_incoming_connections", max_streams + _SPARE_CONNECTIONS),
        ("grpc.max_receive_message_length", max_frame_bytes + _SLIGHTLY_TOO_LARGE),
    )
    server = grpc.aio.server(options=(*_GATEWAY, _sharing(share_port), _idle(idle_s), *caps))
    server.add_generic_rpc_handlers((handlers,))
    return server


def open_admin(
    handlers: Sequence[grpc.GenericRpcHandler], *, idle_s: float = IDLE_S, share_port: bool = False
) -> grpc.aio.Server:
    """The operators' server, not started.

    Args:
        idle_s: seconds after which a connection without a call is ended.
        share_port: with the other workers of this machine.
    """
    server = grpc.aio.server(options=(*_ADMIN, _sharing(share_port), _idle(idle_s)))
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def _idle(idle_s: float) -> tuple[str, int]:
    return "grpc.max_connection_idle_ms", round(idle_s * 1000)


def _sharing(share_port: bool) -> tuple[str, int]:
    # Unless it is meant to, a second server must fail to bind, not share the port silently.
    return "grpc.so_reuseport", int(share_port)


def check_free(listen: str, setting: str) -> None:
    """See that nobody listens there: workers, who share a port among themselves, would share it with others too.

    Raises:
        ListenError: the port is taken. Whether the address is ours gRPC finds out: of several of a name one will do.
    """
    if _why_not(*split_listen(listen)) == _CAUSES[errno.EADDRINUSE]:
        raise cannot_listen(listen, setting)


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of a listen setting; an IPv6 host may stand in brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials, setting: str) -> Listener:
    """Give a server a port; it serves once it is started.

    Raises:
        ListenError: the port is taken or the address is not ours.
    """
    host, port = split_listen(listen)
    try:
        bound = server.add_secure_port(_shown(host, port), credentials)
    except RuntimeError as error:  # which says no more than that it failed
        raise cannot_listen(listen, setting) from error
    if bound == 0:
        raise cannot_listen(listen, setting)
    return Listener(server, host, bound)


def cannot_listen(listen: str, setting: str) -> ListenError:
    """Why a listen setting is of no use here, found out by trying it once more without gRPC."""
    host, port = split_listen(listen)
    why = _why_not(host, port) or "another process may hold the port; choose another one"
    return ListenError(f"cannot listen on {_shown(host, port)} ({setting}): {why}")


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return "there is no host of that name; write an address of this machine"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
        except OSError as error:
            return _CAUSES.get(error.errno or 0, f"{error.strerror}; choose another address")
    return ""


async def start(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials, setting: str) -> Listener:
    """Bind and start; raises as `bind`."""
    listener = bind(server, listen, credentials, setting)
    await server.start()
    return listener
