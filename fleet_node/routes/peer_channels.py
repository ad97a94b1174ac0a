"""Connections to peers' probe listeners, each pinned to the one certificate that the snapshot names.

Mental model
    A connection stays open from walk to walk: a TLS handshake costs more than all else of a walk, and its time is none
    of the path's. A call that failed for want of an answer retires its channel, so that the next walk connects anew: no
    backoff of gRPC hides a link that has healed, and no half-open connection one that is cut. A retired channel is
    closed once nobody uses it any more.
    gRPC does not show the certificate that it refused. It is fetched once more with `ssl`, which also proves that
    whoever answers has its key: where it is another peer's, that peer answered.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from fleet import status, tls
from fleet.clock import Clock
from fleet.transport import FIXED_WINDOW
from fleet.v1 import route_pb2
from fleet_node.routes.probe_rules import MAX_MESSAGE_BYTES
from fleet_node.routes.walk_rules import BAD_RECORD, REFUSED, UNREACHABLE, WRONG_NODE, Failure, Onward, refused

CERTIFICATE_NAME = "probe.fleet.invalid"
"""The name in every probe listener's certificate: it is pinned, so that names say nothing (RFC 6761: `invalid`)."""
MAX_CHANNELS = 256
_WALK = "/fleet.v1.Probe/Walk"
_MAX_FETCH_S = 1.0
_OPTIONS = (
    *FIXED_WINDOW,
    ("grpc.use_local_subchannel_pool", 1),  # or a fresh channel would share the connection that failed
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # it would lead to the gateway; peers are dialled
    ("grpc.initial_reconnect_backoff_ms", 60_000),  # reconnecting is decided here
    ("grpc.ssl_target_name_override", CERTIFICATE_NAME),
)
_CONNECTING = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class CallFailed(Exception):
    """A peer did not answer.

    Args:
        onward: what came of the call instead.
    """

    def __init__(self, onward: Onward) -> None:
        super().__init__(onward.failure)
        self.onward = onward


@dataclass(frozen=True, slots=True)
class Reply:
    """What a peer answered: serialised, and microseconds from call to answer."""

    raw: bytes
    elapsed_us: int


class _NoConnection(CallFailed):
    """Nobody was called: another endpoint may lead to the peer."""


class _Channel:
    """A channel to one endpoint of one peer, and who uses it."""

    def __init__(self, peer: route_pb2.Peer, endpoint: str) -> None:
        self.node_id, self.endpoint = peer.node_id, endpoint
        self._certificate, self._endpoints = peer.probe_certificate, tuple(peer.probe_endpoints)
        self.users = 0
        self.retired = False
        credentials = grpc.ssl_channel_credentials(tls.der_to_pem(peer.probe_certificate))
        self.grpc = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self.walk: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.grpc.unary_unary(_WALK)

    def leads_to(self, peer: route_pb2.Peer) -> bool:
        """Whether the snapshot still says so of the peer."""
        return self._certificate == peer.probe_certificate and self._endpoints == tuple(peer.probe_endpoints)


class PeerChannels:
    """See the module's mental model.

    Args:
        clock: measures round trips.
        whose: the node that shows a certificate (DER); empty when it is unknown.
        max_channels: kept open; the one that was used least lately is closed for another.
    """

    def __init__(self, clock: Clock, whose: Callable[[bytes], str], max_channels: int = MAX_CHANNELS) -> None:
        self._clock = clock
        self._whose = whose
        self._max_channels = max_channels
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._open: set[_Channel] = set()
        self._closed = False

    @property
    def open_channels(self) -> int:
        """Channels that are not closed yet."""
        return len(self._open)

    async def call(self, peer: route_pb2.Peer, request: bytes, timeout_s: float) -> Reply:
        """Have a peer walk on; its endpoints are tried in order, the one that led to it last first.

        Raises:
            CallFailed: it did not answer.
        """
        endpoints = self._in_order(peer)
        if not endpoints or not peer.probe_certificate:
            raise CallFailed(Onward(UNREACHABLE, failure=Failure.NO_ENDPOINT))
        if self._closed:
            raise CallFailed(Onward(UNREACHABLE, failure=Failure.UNREACHABLE))
        ends_at = self._clock.monotonic() + timeout_s
        failures: list[_NoConnection] = []
        for tried, endpoint in enumerate(endpoints):
            left_s = ends_at - self._clock.monotonic()
            try:
                return await self._call(peer, endpoint, request, left_s, left_s / (len(endpoints) - tried))
            except _NoConnection as failure:
                failures.append(failure)
        # That somebody else answers says more than that nobody does.
        raise next((each for each in failures if each.onward.result == WRONG_NODE), failures[-1])

    async def prune(self, peer_of: Callable[[str], route_pb2.Peer | None]) -> None:
        """Close channels to whom the snapshot does not lead any more."""
        for node_id, channel in list(self._channels.items()):
            peer = peer_of(node_id)
            if peer is None or not channel.leads_to(peer):
                self._retire(channel)
        await self._close_retired()

    async def close(self) -> None:
        """Close all for good, whoever uses them."""
        self._closed = True
        self._channels.clear()
        channels, self._open = self._open, set()
        for channel in channels:
            await channel.grpc.close(None)

    async def _call(
        self, peer: route_pb2.Peer, endpoint: str, request: bytes, timeout_s: float, connect_s: float
    ) -> Reply:
        ends_at = self._clock.monotonic() + timeout_s
        channel, fresh = self._take(peer, endpoint), None
        try:
            fresh = await _connect(channel, min(connect_s, timeout_s))
            began = self._clock.monotonic()
            raw: bytes = await channel.walk(request, timeout=max(0.0, ends_at - began))
            return Reply(raw, max(1, round((self._clock.monotonic() - began) * 1e6)))
        except grpc.aio.AioRpcError as error:
            raise await self._failure(peer, channel, error, fresh, ends_at) from None
        except TimeoutError:  # of connecting
            self._retire(channel)
            raise _NoConnection(Onward(UNREACHABLE, failure=Failure.UNREACHABLE)) from None
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            raise CallFailed(Onward(UNREACHABLE, failure=Failure.UNREACHABLE)) from None  # closed under the call
        finally:
            channel.users -= 1
            await self._close_retired()

    async def _failure(
        self, peer: route_pb2.Peer, channel: _Channel, error: grpc.aio.AioRpcError, fresh: bool | None, ends_at: float
    ) -> CallFailed:
        """What a failed call comes to.

        Args:
            fresh: whether the connection was made for this call; None when there was none.
        """
        code, details = error.code(), error.details() or ""
        if status.is_refusal(error):
            return CallFailed(refused(status.decode(error).reason))
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:  # than any answer may be
            return CallFailed(Onward(BAD_RECORD, failure=Failure.BAD_RECORD))
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return CallFailed(Onward(REFUSED, failure=Failure.REFUSED))
        self._retire(channel)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and fresh is not None:
            return CallFailed(Onward(UNREACHABLE, failure=Failure.TIMED_OUT, silent=fresh))
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return _NoConnection(await self._other(peer, channel.endpoint, ends_at - self._clock.monotonic()))
        unreachable = Onward(UNREACHABLE, failure=Failure.UNREACHABLE)
        return _NoConnection(unreachable) if fresh is None else CallFailed(unreachable)

    async def _other(self, peer: route_pb2.Peer, endpoint: str, left_s: float) -> Onward:
        """Who answers at an endpoint that does not show the peer's certificate."""
        try:
            node_id = self._whose(await tls.fetch_unverified_leaf(endpoint, min(max(left_s, 0.0), _MAX_FETCH_S)))
        except (ssl.SSLError, OSError, TimeoutError, ValueError):
            node_id = ""
        if node_id == peer.node_id:  # it is, and this machine holds its certificate for outdated, or it just came back
            return Onward(UNREACHABLE, failure=Failure.UNREACHABLE)
        return Onward(WRONG_NODE, failure=Failure.WRONG_NODE if node_id else Failure.UNKNOWN_NODE, node_id=node_id)

    def _in_order(self, peer: route_pb2.Peer) -> list[str]:
        endpoints = [*peer.probe_endpoints]
        held = self._channels.get(peer.node_id)
        if held is not None and held.leads_to(peer):
            endpoints.remove(held.endpoint)
            endpoints.insert(0, held.endpoint)
        return endpoints

    def _take(self, peer: route_pb2.Peer, endpoint: str) -> _Channel:
        """The peer's channel, with one user more."""
        channel = self._channels.get(peer.node_id)
        if channel is None or channel.endpoint != endpoint or not channel.leads_to(peer):
            if channel is not None:
                self._retire(channel)
            channel = self._channels[peer.node_id] = _Channel(peer, endpoint)
            self._open.add(channel)
            if len(self._channels) > self._max_channels:
                self._retire(next(iter(self._channels.values())))
        self._channels.move_to_end(peer.node_id)
        channel.users += 1
        return channel

    def _retire(self, channel: _Channel) -> None:
        """No walk begins on it any more; `_close_retired` closes it once the last has ended."""
        channel.retired = True
        if self._channels.get(channel.node_id) is channel:
            del self._channels[channel.node_id]

    async def _close_retired(self) -> None:
        unused = [channel for channel in self._open if channel.retired and not channel.users]
        self._open.difference_update(unused)
        for channel in unused:
            await channel.grpc.close(None)


async def _connect(channel: _Channel, timeout_s: float) -> bool | None:
    """Wait for a connection. Whether it was made now; None when it failed, as the next call on the channel tells.

    Raises:
        TimeoutError: nobody answers.
    """
    state = channel.grpc.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return False
    async with asyncio.timeout(timeout_s):
        while state in _CONNECTING:
            await channel.grpc.wait_for_state_change(state)
            state = channel.grpc.get_state(try_to_connect=True)
    return True if state is grpc.ChannelConnectivity.READY else None


def _is_cancelled() -> bool:
    """Whether somebody cancelled this task: gRPC raises the same error when a channel is closed under a call."""
    task: asyncio.Task[Any] | None = asyncio.current_task()
    return task is not None and task.cancelling() > 0
