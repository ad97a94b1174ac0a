"""A node written by hand on raw gRPC: it does one step of the protocol after the other, each as wrong as a test wants.

It shares nothing with `fleet_node` but its files, so it also stands for somebody who stole them.
"""

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet import status, tls
from fleet.channel import FrameKeys, derive_frame_keys, node_end
from fleet.envelope import Domain, Signer
from fleet.errors import Refusal
from fleet.tls_certificates import CertifiedKey
from fleet.v1 import command_pb2, gateway_pb2, gateway_pb2_grpc, session_pb2, trust_pb2
from tests.integration.installation import Installation, RunningNode

_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """What a node proves itself with."""

    cluster_id: str
    node_id: str
    api_key: str
    signer: Signer
    leaf_sha256: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Session:
    """What a handshake gave."""

    token: bytes
    keys: FrameKeys


class HandmadeNode:
    """See the module. `async with HandmadeNode(installation, node)`.

    Args:
        installation: the server.
        node: enrolled, not running; whose files are used.
        endpoint: where to connect, the gateway unless given.
        certificate: of the client; none unless given.
    """

    def __init__(
        self, installation: Installation, node: RunningNode, endpoint: str = "", certificate: CertifiedKey | None = None
    ) -> None:
        self._endpoint = endpoint or installation.gateway
        client = (certificate.private_key_pem, certificate.certificate_pem) if certificate is not None else ()
        self._channel = grpc.aio.secure_channel(
            self._endpoint,
            grpc.ssl_channel_credentials(installation.ca_pem, *client),
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )
        self.stub = gateway_pb2_grpc.GatewayStub(self._channel)
        self.me = Identity(
            cluster_id=node.membership.cluster_id,
            node_id=node.node_id,
            api_key=node.membership.api_key.reveal(),
            signer=node.enrollment().keys().identity,
            leaf_sha256=tls.certificate_sha256(installation.server.certificates.leaf_der),
        )

    def posing(self, **changes: Any) -> Self:
        """From now on prove something else."""
        self.me = replace(self.me, **changes)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def ask(self, method: str, request: Any) -> Any:
        """A unary call.

        Raises:
            Refusal: what the server said.
        """
        try:
            return await getattr(self.stub, method)(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    async def raw(self, method: str, request: bytes) -> bytes:
        """A unary call with bytes that nobody has looked at."""
        try:
            call: Any = self._channel.unary_unary(f"/fleet.v1.Gateway/{method}")
            answer: bytes = await call(request, timeout=_TIMEOUT_S)
            return answer
        except grpc.aio.AioRpcError as error:
            raise status.decode(error) from error

    # -- handshake --------------------------------------------------------------------------------------------------
    async def begin(self) -> bytes:
        """A challenge."""
        request = session_pb2.BeginHandshakeRequest(
            api_key=self.me.api_key, node_id=self.me.node_id, protocol_version=1
        )
        return (await self.ask("BeginHandshake", request)).challenge

    def answer(
        self, challenge: bytes, *, domain: Domain = Domain.HANDSHAKE, **changes: Any
    ) -> tuple[trust_pb2.Signed, X25519PrivateKey]:
        """The node's signed half; `changes` replaces fields of the statement."""
        share = X25519PrivateKey.generate()
        made: dict[str, Any] = {
            "challenge": challenge,
            "client_nonce": os.urandom(32),
            "node_id": self.me.node_id,
            "cluster_id": self.me.cluster_id,
            "server_leaf_sha256": self.me.leaf_sha256,
            "protocol_version": 1,
            "x25519_share": share.public_key().public_bytes_raw(),
        }
        statement = session_pb2.HandshakeStatement(**(made | changes)).SerializeToString()
        return self.me.signer.sign(domain, statement), share

    async def complete(self, signed: trust_pb2.Signed, share: X25519PrivateKey) -> Session:
        """Hand the answer in."""
        request = session_pb2.CompleteHandshakeRequest(api_key=self.me.api_key, signed=signed)
        said = await self.ask("CompleteHandshake", request)
        statement = session_pb2.HandshakeServerStatement.FromString(said.signed.statement)
        keys = derive_frame_keys(share, statement.x25519_share, signed.statement, said.signed.statement)
        return Session(said.session_token, keys)

    async def handshake(self, **changes: Any) -> Session:
        """All of it."""
        return await self.complete(*self.answer(await self.begin(), **changes))

    # -- stream -----------------------------------------------------------------------------------------------------
    def hello(self, session: Session, body: gateway_pb2.HelloBody | None = None, **changes: Any) -> gateway_pb2.Hello:
        """A true hello; `changes` replaces fields of its proof's statement."""
        if body is None:
            body = hello_body()
        raw = body.SerializeToString()
        made: dict[str, Any] = {
            "session_token_sha256": hashlib.sha256(session.token).digest(),
            "node_id": self.me.node_id,
            "cluster_id": self.me.cluster_id,
            "nonce": os.urandom(32),
            "hello_sha256": hashlib.sha256(raw).digest(),
        }
        statement = session_pb2.StreamStatement(**(made | changes)).SerializeToString()
        return gateway_pb2.Hello(proof=self.me.signer.sign(Domain.STREAM, statement), body=raw)

    @asynccontextmanager
    async def connect(self, session: Session) -> AsyncIterator["HandmadeStream"]:
        """Open a stream on which nothing was said yet."""
        token = base64.urlsafe_b64encode(session.token).decode().rstrip("=")
        metadata = (("authorization", f"Bearer {self.me.api_key}"), ("fleet-session", token))
        call: Any = self._channel.stream_stream("/fleet.v1.Gateway/Connect")(metadata=metadata)
        stream = HandmadeStream(call, session)
        try:
            yield stream
        finally:
            call.cancel()

    @asynccontextmanager
    async def welcomed(
        self, body: gateway_pb2.HelloBody | None = None, **changes: Any
    ) -> AsyncIterator["HandmadeStream"]:
        """A live stream."""
        session = await self.handshake()
        async with self.connect(session) as stream:
            await stream.send(gateway_pb2.NodeFrame(hello=self.hello(session, body, **changes)))
            await stream.wait_welcome()
            yield stream


def hello_body(**changes: Any) -> gateway_pb2.HelloBody:
    """What a fresh node with one action says of itself."""
    action = gateway_pb2.ActionDescriptor(
        action="simulated.noop", arguments_schema=b'{"type":"object","additionalProperties":false}', timeout_ms=10_000
    )
    made: dict[str, Any] = {
        "software_version": "0.1.0",
        "protocol_version": 1,
        "max_in_flight": 32,
        "node_time_ms": time.time_ns() // 1_000_000,
        "drivers": [gateway_pb2.DriverDescriptor(name="simulated", version="1.0", actions=[action])],
        "boot_id": os.urandom(16),
    }
    return gateway_pb2.HelloBody(**(made | changes))


class HandmadeStream:
    """One stream; frames are sent as they are given."""

    def __init__(self, call: Any, session: Session) -> None:
        self._call = call
        self.sealer, self.opener = node_end(session.keys)
        self.welcome = gateway_pb2.Welcome()

    async def send(self, frame: gateway_pb2.NodeFrame) -> None:
        """Send a frame."""
        await self.send_raw(frame.SerializeToString())

    async def send_raw(self, data: bytes) -> None:
        """Send bytes; a stream that has ended takes them silently, as a network does."""
        try:
            await self._call.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def control(self, **body: Any) -> None:
        """Send a `NodeControl` under a good MAC."""
        await self.send(self.sealed(gateway_pb2.NodeControl(**body).SerializeToString()))

    def sealed(self, body: bytes) -> gateway_pb2.NodeFrame:
        """The next control frame."""
        return gateway_pb2.NodeFrame(control=self.sealer.seal(body))

    async def wait_welcome(self) -> None:
        """The server's first frame.

        Raises:
            Refusal: it said something else.
        """
        frame = await self._read()
        if frame is None:
            raise await self.wait_refusal()
        control = gateway_pb2.ServerControl.FromString(self.opener.open(frame.control))
        assert control.WhichOneof("body") == "welcome"
        self.welcome = control.welcome

    async def wait_control(self, kind: str) -> Any:
        """The next control of that kind; others are read over."""
        async with asyncio.timeout(_TIMEOUT_S):
            while (frame := await self._read()) is not None:
                control = gateway_pb2.ServerControl.FromString(self.opener.open(frame.control))
                if control.WhichOneof("body") == kind:
                    return getattr(control, kind)
        raise await self.wait_refusal()

    async def wait_statement(self) -> command_pb2.CommandStatement:
        """The next signed commands."""
        frame = await self.wait_control("commands")
        return command_pb2.CommandStatement.FromString(frame.signed.statement)

    async def wait_refusal(self) -> Refusal:
        """Why the server ended the stream."""
        async with asyncio.timeout(_TIMEOUT_S):
            while await self._read() is not None:
                pass
            code = await self._call.code()
            error = grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )
        return status.decode(error)

    async def _read(self) -> gateway_pb2.ServerFrame | None:
        try:
            data = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            return None
        return gateway_pb2.ServerFrame.FromString(data) if isinstance(data, bytes) else None
