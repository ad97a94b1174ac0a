"""What every gateway in a test's hand does alike: it listens with a leaf, shakes hands with keys that the test holds,
and welcomes streams. What it then says, and what it takes from whom, is its own (`gateway`, `rogue`)."""

import hashlib
import os
import time
from typing import Any, Generic, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.channel import FrameKeys, derive_frame_keys
from fleet.envelope import Domain, Signer
from fleet.tls_certificates import CertifiedKey
from fleet.v1 import gateway_pb2, gateway_pb2_grpc, session_pb2, trust_pb2
from tests.fakes.watch import Watch

WAIT_TIMEOUT_S = 15.0
SESSION_TTL_MS = 900_000
StreamT = TypeVar("StreamT")


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class ServedGateway(gateway_pb2_grpc.GatewayServicer, Generic[StreamT]):
    """The shared part; belongs to the loop that it listens on."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.streams: list[StreamT] = []
        """Every stream that was welcomed, oldest first."""
        self.endpoint = ""
        """Where nodes reach it, once it listens."""
        self._sessions: dict[bytes, FrameKeys] = {}
        self._server: grpc.aio.Server | None = None

    async def listen(self, leaf: CertifiedKey, port: int = 0) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        gateway_pb2_grpc.add_GatewayServicer_to_server(self, self._server)
        credentials = grpc.ssl_server_credentials([(leaf.private_key_pem, leaf.certificate_pem)])
        self.endpoint = f"127.0.0.1:{self._server.add_secure_port(f'127.0.0.1:{port}', credentials)}"
        await self._server.start()

    async def close(self, grace_s: float) -> None:
        """Stop listening, and drop what still stands after `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def wait_stream(self, number: int = 1, timeout_s: float = WAIT_TIMEOUT_S) -> StreamT:
        """The `number`th stream that was ever welcomed here, counted from 1."""
        await self.watch.wait_until(
            lambda: len(self.streams) >= number, lambda: f"{len(self.streams)} of {number} streams came", timeout_s
        )
        return self.streams[number - 1]

    def welcomed(self, stream: StreamT) -> None:
        """Tell whoever waits that a stream stands."""
        self.streams.append(stream)
        self.watch.changed()

    def shake_hands(self, proof: trust_pb2.Signed, authority: Signer) -> session_pb2.CompleteHandshakeResponse:
        """The server's half, whatever the node proves."""
        said = session_pb2.HandshakeStatement.FromString(proof.statement)
        token, share = os.urandom(32), X25519PrivateKey.generate()
        token_sha256 = hashlib.sha256(token).digest()
        statement = session_pb2.HandshakeServerStatement(
            node_proof_sha256=hashlib.sha256(proof.statement + proof.signatures[0].value).digest(),
            session_token_sha256=token_sha256,
            server_time_ms=now_ms(),
            expires_at_ms=now_ms() + SESSION_TTL_MS,
            x25519_share=share.public_key().public_bytes_raw(),
        ).SerializeToString()
        self._sessions[token_sha256] = derive_frame_keys(share, said.x25519_share, proof.statement, statement)
        signed = authority.sign(Domain.HANDSHAKE_SERVER, statement)
        return session_pb2.CompleteHandshakeResponse(signed=signed, session_token=token)

    def keys_of(self, proof: session_pb2.StreamStatement) -> FrameKeys:
        """The frame keys of the session that a stream's proof names; each opens one stream."""
        return self._sessions.pop(proof.session_token_sha256)

    def welcome(self, name: str, **fields: Any) -> gateway_pb2.Welcome:
        """The welcome of the next stream, which is called `name` and its epoch; `fields` replaces any of its fields."""
        epoch = len(self.streams) + 1
        made: dict[str, Any] = {
            "stream_id": f"{name}-{epoch}",
            "stream_epoch": epoch,
            "server_time_ms": now_ms(),
            "max_frame_bytes": 1024 * 1024,
            "max_telemetry_bytes": 64 * 1024,
            "session_expires_at_ms": now_ms() + SESSION_TTL_MS,
        }
        return gateway_pb2.Welcome(**(made | fields))
