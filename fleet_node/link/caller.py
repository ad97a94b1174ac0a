"""One TLS connection to a gateway, pinned to the leaf certificate that was seen first.

gRPC does not show the server's certificate, so the leaf is fetched beforehand under the pinned CA, the channel is
opened with that leaf as its only root, and its hash is signed in the handshake (docs/protocol.md, "Session").
"""

from __future__ import annotations

import errno
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fleet import status, tls, trust
from fleet.errors import Reason, Refusal
from fleet.transport import FIXED_WINDOW
from fleet.v1 import enrollment_pb2, gateway_pb2, gateway_pb2_grpc, session_pb2, trust_pb2
from fleet_node.link import rules

_CALL_TIMEOUT_S = 10.0
_LEAF_TIMEOUT_S = 5.0
_OPTIONS = (
    *FIXED_WINDOW,
    ("grpc.use_local_subchannel_pool", 1),  # or a takeover would share the connection, and stay where it was
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 60_000),  # reconnecting is the link's decision, never the channel's
)

T = TypeVar("T")
Stream = grpc.aio.StreamStreamCall[gateway_pb2.NodeFrame, gateway_pb2.ServerFrame]


@dataclass(frozen=True, slots=True, repr=False)
class ClientCertificate:
    """What an mTLS listener is shown.

    Args:
        path: PEM file of certificate and key, which `ssl` takes nothing else than.
    """

    path: Path
    certificate_pem: bytes
    key_pem: bytes


class LeafCache:
    """Leaf certificates by endpoint, so that a reconnect costs one TLS connection and not two. What was verified under
    other CAs does not count: one of them may have been revoked.

    Replicas show one leaf (docs/adr/0021-tls-keys-rest-in-the-database.md), so an endpoint that is new is taken to show
    what the last one did: a storm of nodes that meet another replica is half the TLS handshakes then. Where that is not
    so, the connection fails, for the leaf is its only root, and the endpoint is asked for its own.
    """

    def __init__(self) -> None:
        self._leaves: dict[str, tuple[tuple[bytes, ...], bytes]] = {}
        self._last: tuple[tuple[bytes, ...], bytes] = ((), b"")
        self._unlike: set[str] = set()

    async def get(self, endpoint: str, ca_der: Sequence[bytes], client: Path | None = None) -> bytes:
        """DER of the endpoint's leaf, verified under `ca_der`.

        Raises:
            Refusal: WRONG_CERTIFICATE or UNAVAILABLE.
        """
        wanted = tuple(ca_der)
        verified_under, leaf = self._leaves.get(endpoint, ((), b""))
        if verified_under == wanted:
            return leaf
        verified_under, leaf = self._last
        if verified_under != wanted or endpoint in self._unlike:
            leaf = await _fetch(endpoint, ca_der, client)
            self._last = wanted, leaf
            self._unlike.discard(endpoint)
        self._leaves[endpoint] = wanted, leaf
        return leaf

    def forget(self, endpoint: str) -> None:
        """The server does not show this leaf any more, or never did."""
        self._leaves.pop(endpoint, None)
        self._unlike.add(endpoint)


class GatewayCaller:
    """The Gateway service over one connection. Every failure is raised as a `Refusal`."""

    def __init__(
        self, endpoint: str, leaf_der: bytes, leaves: LeafCache, certificate: ClientCertificate | None = None
    ) -> None:
        self.endpoint = endpoint
        self.certified = certificate is not None
        self.admitted = False
        """Whether a handshake was completed over this connection."""
        self.leaf_sha256 = tls.certificate_sha256(leaf_der)
        self._leaves = leaves
        self._ends: dict[Stream, grpc.aio.AioRpcError] = {}
        shown = (None, None) if certificate is None else (certificate.key_pem, certificate.certificate_pem)
        credentials = grpc.ssl_channel_credentials(tls.der_to_pem(leaf_der), *shown)
        self._channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self._stub = gateway_pb2_grpc.GatewayStub(self._channel)

    async def enroll(self, request: enrollment_pb2.EnrollRequest) -> enrollment_pb2.EnrollResponse:
        """Ask to join."""
        return await self._checked(self._stub.Enroll(request, timeout=_CALL_TIMEOUT_S))

    async def get_bootstrap(self, request: enrollment_pb2.GetBootstrapRequest) -> enrollment_pb2.GetBootstrapResponse:
        """Poll for the decision."""
        return await self._checked(self._stub.GetBootstrap(request, timeout=_CALL_TIMEOUT_S))

    async def begin_handshake(self, request: session_pb2.BeginHandshakeRequest) -> session_pb2.BeginHandshakeResponse:
        """Ask for a challenge."""
        return await self._checked(self._stub.BeginHandshake(request, timeout=_CALL_TIMEOUT_S))

    async def complete_handshake(
        self, request: session_pb2.CompleteHandshakeRequest
    ) -> session_pb2.CompleteHandshakeResponse:
        """Answer the challenge."""
        answer = await self._checked(self._stub.CompleteHandshake(request, timeout=_CALL_TIMEOUT_S))
        self.admitted = True
        return answer

    async def get_trust_chain(self, request: trust_pb2.GetTrustChainRequest) -> trust_pb2.GetTrustChainResponse:
        """Ask for the bundles after the one that is held."""
        return await self._checked(self._stub.GetTrustChain(request, timeout=_CALL_TIMEOUT_S))

    async def trust_chain(self, request: trust_pb2.GetTrustChainRequest) -> AsyncIterator[Sequence[trust_pb2.Signed]]:
        """What `get_trust_chain` answers, part by part, each asked for from the last link before it. Ends where the
        chain does, where it leads no further, or where it is longer than a node may keep.

        Raises:
            Refusal: as the server says.
        """
        asked, left_bytes = trust_pb2.GetTrustChainRequest(), trust.MAX_KEPT_BYTES
        asked.CopyFrom(request)
        while True:
            answer = await self.get_trust_chain(asked)
            left_bytes -= answer.ByteSize()
            if not answer.bundles or left_bytes < 0:
                return
            yield answer.bundles
            try:
                last = trust.claimed(answer.bundles[-1])
            except trust.TrustError:
                return
            if not answer.more or (last.generation, last.number) <= (asked.from_generation, asked.from_number):
                return
            asked.from_generation, asked.from_number = last.generation, last.number

    def connect(self, metadata: tuple[tuple[str, str], ...]) -> Stream:
        """Open the stream; it must be finished or cancelled (grpc/grpc#43462)."""
        call = self._stub.Connect(metadata=metadata)
        call.add_done_callback(self._note_end)
        return call

    async def stream_failure(self, call: Stream) -> Refusal | None:
        """Why a stream ended, once it has; None when the server ended it in order."""
        await call.code()
        error = self._ends[call]
        return None if error.code() is grpc.StatusCode.OK else self._refusal(error)

    def _note_end(self, call: Stream) -> None:
        """Keep the first status of a stream: grpc.aio puts INTERNAL in its place when a write was under way."""
        if call not in self._ends:
            self._ends[call] = grpc.aio.AioRpcError(
                _at_once(call.code()),
                _at_once(call.initial_metadata()),
                _at_once(call.trailing_metadata()),
                _at_once(call.details()),
            )

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    async def _checked(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: grpc.aio.AioRpcError) -> Refusal:
        refusal = status.decode(error)
        if refusal.reason is Reason.WRONG_CERTIFICATE or "CERTIFICATE_VERIFY_FAILED" in (error.details() or ""):
            self._leaves.forget(self.endpoint)  # it was renewed, or somebody stands in between: look again
        return refusal


class KeptCaller:
    """The connection to a server that is busy, through the delay that it asked for: coming back to it then costs
    neither side another TLS handshake, of which a storm has the most.

    Only what would be opened alike is kept: without a certificate of the node's, and under the same CAs. And only where
    the server had no time for the handshake: one that had, and then takes no further stream, is full. It stays so, and
    the way to another one leads over a new connection.
    """

    def __init__(self) -> None:
        self._kept: tuple[GatewayCaller, Sequence[bytes]] | None = None

    async def settle(self, caller: GatewayCaller, error: BaseException, ca_der: Sequence[bytes]) -> None:
        """Keep a connection that did not come to a stream, or close it.

        Args:
            error: why it did not.
            ca_der: CAs under which it was opened.
        """
        await self.close()
        if rules.is_busy(error) and not caller.admitted and not caller.certified:
            self._kept = caller, ca_der
        else:
            await caller.close()

    async def take(self, endpoints: Sequence[str], ca_der: Sequence[bytes], *, certified: bool) -> GatewayCaller | None:
        """What was kept, if it leads to one of `endpoints` and was opened under these CAs; else it is closed."""
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        caller, opened_under = kept
        if not certified and caller.endpoint in endpoints and tuple(opened_under) == tuple(ca_der):
            return caller
        await caller.close()
        return None

    async def close(self) -> None:
        """Close what is kept."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            await kept[0].close()


def _at_once(answer: Coroutine[Any, None, T]) -> T:
    """What a coroutine returns that has nothing to wait for: of a call that is over, everything is known."""
    try:
        answer.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    answer.close()
    raise RuntimeError("a finished call had to be waited for")


async def open_caller(
    endpoints: Sequence[str],
    ca_der: Sequence[bytes],
    leaves: LeafCache | None = None,
    certificate: ClientCertificate | None = None,
    *,
    behind: Sequence[str] = (),
) -> GatewayCaller:
    """Connect to the first endpoint that shows a good certificate, in random order so that a fleet spreads.

    Args:
        certificate: of this node, for endpoints that want one.
        behind: endpoints that are tried behind all others, in this order.

    Raises:
        Refusal: none will do; WRONG_CERTIFICATE if one of them showed a wrong one, or the reason of the last one.
    """
    leaves = leaves or LeafCache()
    failure = Refusal(Reason.UNAVAILABLE, "no gateway endpoint is known")
    last = {endpoint: place for place, endpoint in enumerate(behind)}
    for endpoint in sorted(random.sample(list(endpoints), len(endpoints)), key=lambda endpoint: last.get(endpoint, -1)):
        try:
            leaf = await leaves.get(endpoint, ca_der, certificate.path if certificate is not None else None)
            return GatewayCaller(endpoint, leaf, leaves, certificate)
        except Refusal as refusal:
            if failure.reason is not Reason.WRONG_CERTIFICATE:
                failure = refusal
    raise failure


async def unverified_chain(
    endpoint: str, asked: trust_pb2.GetTrustChainRequest, certificate: ClientCertificate | None = None
) -> Sequence[trust_pb2.Signed]:
    """Signed bundles from whoever answers at an endpoint: only their signatures count, and nothing secret is said.

    Raises:
        Refusal: nobody answers, or not in order.
    """
    try:
        path = certificate.path if certificate is not None else None
        leaf = await tls.fetch_unverified_leaf(endpoint, _LEAF_TIMEOUT_S, path)
    except (OSError, TimeoutError, ValueError) as error:
        raise Refusal(Reason.UNAVAILABLE, f"cannot reach {endpoint} ({_why(error)})") from error
    caller = GatewayCaller(endpoint, leaf, LeafCache(), certificate)
    try:
        return [signed async for part in caller.trust_chain(asked) for signed in part]
    finally:
        await caller.close()


async def _fetch(endpoint: str, ca_der: Sequence[bytes], client: Path | None) -> bytes:
    try:
        return await tls.fetch_leaf(endpoint, ca_der, _LEAF_TIMEOUT_S, client)
    except ssl.SSLCertVerificationError as error:
        raise Refusal(
            Reason.WRONG_CERTIFICATE,
            f"{endpoint} shows a certificate that is not of the pinned CA or for this name ({error.verify_message}): "
            "check the endpoint, and that nothing in between opens TLS",
        ) from error
    except (OSError, TimeoutError, ValueError) as error:
        raise Refusal(
            Reason.UNAVAILABLE,
            f"cannot reach {endpoint} ({_why(error)}): is the gateway up, and do firewalls let"
            " this machine out to that port?",
        ) from error


def _why(error: Exception) -> str:
    """Without asyncio's own words, which repeat the address."""
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
