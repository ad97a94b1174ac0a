"""Service Gateway: the node-facing calls, registered with deserializers that check before they parse.

All but Connect are reachable without a session, so they pass a global concurrency cap first, and refusals cost less
than requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.v1 import enrollment_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_server.boundary import (
    Boundary,
    Context,
    RequestReader,
    check_metadata,
    peer_address,
    peer_certificate,
    require_tls13,
)
from fleet_server.enrollment.service import EnrollmentService
from fleet_server.sessions.claim import StreamClaim
from fleet_server.streams import frames
from fleet_server.streams.frames import BadFrame, FrameLimits
from fleet_server.streams.registry import StreamRegistry
from fleet_server.streams.rooms import Rooms
from fleet_server.streams.stream import Stream
from fleet_server.streams.transport import GrpcTransport
from fleet_server.trust.bundles import part

log = get_logger(__name__)

SERVICE = "fleet.v1.Gateway"
_HELLO_TIMEOUT_S = 10.0

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Gateway:
    """The node-facing service.

    Args:
        replica_id: who this replica is, for welcomes.
        require_active: refuses every node while the installation is not activated.
        max_unary_calls: calls without a session that are worked on at once.
        limits: largest frames.
    """

    def __init__(
        self,
        *,
        rooms: Rooms,
        enrollment: EnrollmentService,
        registry: StreamRegistry,
        boundary: Boundary,
        require_active: Callable[[], None],
        replica_id: str,
        max_unary_calls: int,
        limits: FrameLimits,
    ) -> None:
        self._rooms = rooms
        self._enrollment = enrollment
        self._registry = registry
        self._boundary = boundary
        self._require_active = require_active
        self._replica_id = replica_id
        self._max_unary_calls = max_unary_calls
        self._limits = limits
        self._unary_calls = 0
        self._requests = RequestReader()
        self._closing: set[asyncio.Task[None]] = set()
        self._draining = False

    def handlers(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        sessions, enrollment = self._rooms.sessions, self._enrollment
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Enroll": self._unary("Enroll", enrollment_pb2.EnrollRequest, enrollment.enroll, strangers=True),
                "GetBootstrap": self._unary(
                    "GetBootstrap", enrollment_pb2.GetBootstrapRequest, enrollment.get_bootstrap, strangers=True
                ),
                "GetTrustChain": self._unary("GetTrustChain", trust_pb2.GetTrustChainRequest, self._trust_chain),
                "BeginHandshake": self._unary("BeginHandshake", session_pb2.BeginHandshakeRequest, self._begin),
                "CompleteHandshake": self._unary_certified(
                    "CompleteHandshake", session_pb2.CompleteHandshakeRequest, sessions.complete
                ),
                "Connect": grpc.stream_stream_rpc_method_handler(
                    self._connect,
                    request_deserializer=partial(frames.node_frame, limits=self._limits),
                    response_serializer=gateway_pb2.ServerFrame.SerializeToString,
                ),
            },
        )

    def stop_admitting(self) -> None:
        """New handshakes and streams are sent elsewhere from now on; live streams go on."""
        self._draining = True

    def _unary(
        self,
        name: str,
        request_type: type[Request],
        handle: Callable[[Request, str], Awaitable[Response]],
        *,
        strangers: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        def certified(request: Request, address: str, certificate_pem: bytes) -> Awaitable[Response]:
            if strangers and certificate_pem:
                raise Refusal(Reason.NOT_FOUND, f"{name} is for machines without a certificate: use gateway_listen")
            return handle(request, address)

        return self._unary_certified(name, request_type, certified)

    def _unary_certified(
        self, name: str, request_type: type[Request], handle: Callable[[Request, str, bytes], Awaitable[Response]]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        async def run(context: Context) -> Response:
            require_tls13(context)
            self._check_admitting()
            request: Request | BadFrame = await self._requests.read(context)
            if isinstance(request, BadFrame):
                raise request.refusal()
            self._check_load(name)
            self._unary_calls += 1
            try:
                return await handle(request, peer_address(context), peer_certificate(context))
            finally:
                self._unary_calls -= 1

        async def handler(_: object, context: Context) -> Response:
            return await self._boundary.call(name, context, run(context))

        return grpc.stream_unary_rpc_method_handler(  # unary for the caller; see `RequestReader`
            handler,
            request_deserializer=frames.unary(request_type),
            response_serializer=request_serializer,
        )

    async def _begin(
        self, request: session_pb2.BeginHandshakeRequest, address: str
    ) -> session_pb2.BeginHandshakeResponse:
        # Those who were let in count: a herd that comes to the last places would do whole handshakes for nothing.
        self._registry.check_room(expected=self._rooms.sessions.admission.under_way)
        return await self._rooms.sessions.begin(request, address)

    async def _trust_chain(
        self, request: trust_pb2.GetTrustChainRequest, address: str
    ) -> trust_pb2.GetTrustChainResponse:
        self._rooms.sessions.admission.admit_chain(address)
        # Who asks saw a signature that its own bundles do not explain: another replica may have published just now.
        held = request.from_generation, request.from_number
        chain = await self._rooms.trust.fresh_chain(request.cluster_id, *held)
        bundles = part(chain)
        return trust_pb2.GetTrustChainResponse(bundles=bundles, more=len(bundles) < len(chain))

    async def _connect(self, _: object, context: Context) -> None:
        await self._boundary.call("Connect", context, self._serve(context))

    async def _serve(self, context: Context) -> None:
        require_tls13(context)
        check_metadata(context)
        self._check_admitting()
        self._registry.check_room()
        stream = await self._open(context)
        self._registry.add(stream)
        log.info("stream_opened", node_id=stream.node_id, stream_id=stream.stream_id, epoch=stream.epoch)
        try:
            await stream.run()
        finally:
            self._registry.remove(stream)
            await asyncio.shield(self._close(stream))

    async def _open(self, context: Context) -> Stream:
        """Take the hello and answer it. Neither (schemas of all actions, for one) stays as long as the stream does."""
        transport = GrpcTransport(context)
        api_key, token = _credentials(context)
        address = peer_address(context)
        with self._rooms.sessions.waiting_for_hello(api_key, address) as wanted:
            hello = await _first_frame(transport, wanted)
        stream_id = secrets.token_hex(8)
        gone = asyncio.Event()
        claim = await self._hold(
            self._rooms.sessions.claim(
                api_key,
                token,
                hello,
                address,
                stream_id=stream_id,
                replica_id=self._replica_id,
                certificate_pem=peer_certificate(context),
                is_gone=gone.is_set,
            ),
            gone,
        )
        stream = Stream(self._rooms, transport, claim, stream_id=stream_id, takeover_of=claim.takeover_of)
        stream.greet(self._welcome(stream, claim))
        return stream

    async def _hold(self, claim: Coroutine[object, object, StreamClaim], gone: asyncio.Event) -> StreamClaim:
        """Await a claim. For whoever is gone before it is written nothing is, as `gone` tells; whoever is gone before
        it is committed is not shown online without a stream."""
        claiming = asyncio.create_task(claim)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            gone.set()
            claiming.add_done_callback(self._disown)
            raise

    def _disown(self, claiming: asyncio.Task[StreamClaim]) -> None:
        if claiming.cancelled() or claiming.exception() is not None:
            return
        claim = claiming.result()
        closing = asyncio.create_task(self._record_close(claim.node.node_id, claim.epoch))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, stream: Stream) -> None:
        log.info("stream_closed", node_id=stream.node_id, stream_id=stream.stream_id, reason=stream.close_reason)
        await stream.wait_recorded()
        await self._record_close(stream.node_id, stream.epoch)

    async def _record_close(self, node_id: str, epoch: int) -> None:
        try:
            await self._rooms.nodes.close_stream(node_id, epoch)
        except Refusal:
            log.warning("stream_close_recorded_later", node_id=node_id, epoch=epoch)

    def _welcome(self, stream: Stream, claim: StreamClaim) -> gateway_pb2.Welcome:
        return gateway_pb2.Welcome(
            stream_id=stream.stream_id,
            stream_epoch=stream.epoch,
            server_time_ms=self._rooms.clock.now_ms(),
            heartbeat_interval_ms=self._registry.heartbeat_interval_ms,
            max_frame_bytes=self._limits.frame,
            max_telemetry_bytes=self._limits.telemetry,
            next_ratchet=claim.turn.handed_on,
            session_expires_at_ms=claim.session_expires_at_ms,
            replica_id=self._replica_id,
            drained=claim.node.drain_state != "NONE",
            seq_floor=claim.turn.seq_floor,
        )

    def _check_load(self, name: str) -> None:
        # Who was let in finds a place still: it would come back to the end of the line, with everything to do again.
        places = self._max_unary_calls * (2 if name == "CompleteHandshake" else 1)
        if self._unary_calls >= places:
            raise self._rooms.sessions.admission.overloaded()

    def _check_admitting(self) -> None:
        self._require_active()
        if self._draining:
            raise Refusal(Reason.DRAINING, "this replica is stopping: connect again", retry_after_s=0.5)


def request_serializer(message: Message) -> bytes:
    """Serialise an answer."""
    return message.SerializeToString()


async def _first_frame(transport: GrpcTransport, wanted: asyncio.Future[None]) -> gateway_pb2.Hello:
    reading = asyncio.create_task(transport.read())  # never cancelled: the abort ends it (grpc/grpc#43360)
    either: tuple[asyncio.Future[Any], ...] = (reading, wanted)
    await asyncio.wait(either, timeout=_HELLO_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    if not reading.done() and wanted.done():
        raise Refusal(
            Reason.OVERLOADED,
            "this api_key opens streams and sends no hello on them: send it at once, and end those streams",
            retry_after_s=1.0,
        )
    if not reading.done():
        raise Refusal(Reason.MALFORMED, "no hello arrived within 10 s")
    frame = reading.result()
    if frame is None:
        raise Refusal(Reason.MALFORMED, "the stream ended before its hello")
    if isinstance(frame, BadFrame):
        raise frame.refusal()
    if frame.WhichOneof("frame") != "hello":
        raise Refusal(Reason.MALFORMED, "the first frame of a stream is a hello")
    return frame.hello


def _credentials(context: Context) -> tuple[str, bytes]:
    api_key, token = "", b""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            api_key = value.removeprefix("Bearer ")
        elif key == "fleet-session" and isinstance(value, str):
            token = _decode_token(value)
    if not api_key or not token:
        raise Refusal(Reason.UNKNOWN_CREDENTIAL, "Connect needs `authorization` and `fleet-session` metadata")
    return api_key, token


def _decode_token(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise Refusal(Reason.MALFORMED, "the session token is not base64url") from error
