"""A gateway in the wrong hands: it holds an installation's own keys, and may send a node whatever it likes.

Mental model
    It speaks `fleet.v1.Gateway` over real TLS, proves itself with the stolen authority key, and then the test drives
    it: true statements, statements with one thing wrong, captured ones again. It knows no database and checks
    nothing of what the node proves; what the node answers waits in `RogueStream` until the test takes it.
    Heartbeats are an hour apart unless told otherwise, so that no test depends on pings. Reports and telemetry are
    acknowledged unless `acknowledges` is False.
    Everything runs on the loop that started it.
"""

import asyncio
import base64
import hashlib
import os
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.channel import ChannelError, FrameKeys, derive_frame_keys
from fleet.envelope import Domain
from fleet.v1 import gateway_pb2, gateway_pb2_grpc, session_pb2, trust_pb2
from tests.fakes.rogue_stream import (
    FINAL_STATES,
    WAIT_TIMEOUT_S,
    RogueStream,
    StolenTrust,
    command,
    now_ms,
    tampered,
)
from tests.fakes.watch import Watch

__all__ = ["FINAL_STATES", "RogueGateway", "RogueStream", "StolenTrust", "command", "tampered"]

HEARTBEAT_MS = 3_600_000
SESSION_TTL_MS = 900_000


class RogueGateway(gateway_pb2_grpc.GatewayServicer):
    """The gateway; `async with RogueGateway(trust) as rogue` opens it on a free port of 127.0.0.1.

    Args:
        trust: what it stole.
        welcome: replaces fields of every welcome, such as `drained=True`.
        acknowledges: whether new streams acknowledge reports and telemetry.
    """

    def __init__(self, trust: StolenTrust, *, welcome: dict[str, Any] | None = None, acknowledges: bool = True) -> None:
        self.trust = trust
        self.streams: list[RogueStream] = []
        """Every stream that was welcomed, oldest first."""
        self._welcome = welcome or {}
        self._acknowledges = acknowledges
        self._sessions: dict[bytes, FrameKeys] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._watch = Watch()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def endpoint(self) -> str:
        """Where nodes reach it."""
        return f"127.0.0.1:{self._port}"

    async def start(self, port: int = 0) -> None:
        """Listen; port 0 takes a free one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        gateway_pb2_grpc.add_GatewayServicer_to_server(self, self._server)
        leaf = self.trust.leaf
        credentials = grpc.ssl_server_credentials([(leaf.private_key_pem, leaf.certificate_pem)])
        self._port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        """End every stream and close the port."""
        for stream in self.streams:
            stream.end()
        if self._server is not None:
            await self._server.stop(0.2)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait_stream(self, number: int = 1, timeout_s: float = WAIT_TIMEOUT_S) -> RogueStream:
        """The `number`th stream that was ever welcomed here, counted from 1."""
        await self._watch.wait_until(
            lambda: len(self.streams) >= number, lambda: f"{len(self.streams)} of {number} streams came", timeout_s
        )
        return self.streams[number - 1]

    # -- fleet.v1.Gateway -------------------------------------------------------------------------------------------
    async def GetTrustChain(self, request: Any, context: Any) -> trust_pb2.GetTrustChainResponse:
        return trust_pb2.GetTrustChainResponse(bundles=self.trust.bundles)

    async def Enroll(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it takes in nobody")

    async def GetBootstrap(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "it takes in nobody")

    async def BeginHandshake(self, request: Any, context: Any) -> session_pb2.BeginHandshakeResponse:
        return session_pb2.BeginHandshakeResponse(
            challenge=os.urandom(64), valid_for_ms=30_000, bundle_chain=self.trust.bundles
        )

    async def CompleteHandshake(self, request: Any, context: Any) -> session_pb2.CompleteHandshakeResponse:
        proof = request.signed
        said = session_pb2.HandshakeStatement.FromString(proof.statement)
        token, share = os.urandom(32), X25519PrivateKey.generate()
        statement = session_pb2.HandshakeServerStatement(
            node_proof_sha256=hashlib.sha256(proof.statement + proof.signatures[0].value).digest(),
            session_token_sha256=hashlib.sha256(token).digest(),
            server_time_ms=now_ms(),
            expires_at_ms=now_ms() + SESSION_TTL_MS,
            x25519_share=share.public_key().public_bytes_raw(),
        ).SerializeToString()
        self._sessions[token] = derive_frame_keys(share, said.x25519_share, proof.statement, statement)
        return session_pb2.CompleteHandshakeResponse(
            signed=self.trust.authority.sign(Domain.HANDSHAKE_SERVER, statement), session_token=token
        )

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # as grpc.aio has it
        stream = self._open(await context.read(), _token(context))
        await context.write(stream.sealed(welcome=stream.welcome))
        self.streams.append(stream)
        self._watch.changed()
        reader = asyncio.create_task(_read(stream, context))  # never cancelled: the end of the call ends it
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            async for frame in stream.frames():
                await context.write(frame)
        finally:
            stream.note_ended()

    def _open(self, first: Any, token: bytes) -> RogueStream:
        hello = first.hello
        proof = session_pb2.StreamStatement.FromString(hello.proof.statement)
        epoch = len(self.streams) + 1
        welcome: dict[str, Any] = {
            "stream_id": f"rogue-{epoch}",
            "stream_epoch": epoch,
            "server_time_ms": now_ms(),
            "heartbeat_interval_ms": HEARTBEAT_MS,
            "max_frame_bytes": 1024 * 1024,
            "max_telemetry_bytes": 64 * 1024,
            "next_ratchet": os.urandom(32),
            "session_expires_at_ms": now_ms() + SESSION_TTL_MS,
            "replica_id": "rogue",
        }
        return RogueStream(
            trust=self.trust,
            node_id=proof.node_id,
            binding=hashlib.sha256(hello.proof.statement).digest(),
            hello=gateway_pb2.HelloBody.FromString(hello.body),
            welcome=gateway_pb2.Welcome(**(welcome | self._welcome)),
            proof=proof,
            keys=self._sessions.pop(token),
            acknowledges=self._acknowledges,
        )


async def _read(stream: RogueStream, context: Any) -> None:
    try:
        while isinstance(frame := await context.read(), gateway_pb2.NodeFrame):
            stream.take(frame)
    except ChannelError as error:
        stream.note_ended(error)
    except grpc.aio.UsageError:
        stream.note_ended()  # the call ended under the read
    else:
        stream.note_ended()


def _token(context: Any) -> bytes:
    text = dict(context.invocation_metadata())["fleet-session"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
