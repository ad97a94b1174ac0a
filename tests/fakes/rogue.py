"""A gateway in the wrong hands: it holds an installation's own keys, and may send a node whatever it likes.

Mental model
    It speaks `fleet.v1.Gateway` over real TLS, proves itself with the stolen authority key, and then the test drives
    it: true statements, statements with one thing wrong, captured ones again. It knows no database and checks
    nothing of what the node proves; what the node answers waits in `RogueStream` until the test takes it.
    Heartbeats are an hour apart unless told otherwise, so that no test depends on pings. Reports, telemetry
    and audit rows, which it throws away, are acknowledged unless `acknowledges` is False.
    Everything runs on the loop that started it.
"""

import asyncio
import hashlib
import os
from typing import Any, Self

import grpc

from fleet.channel import ChannelError
from fleet.v1 import gateway_pb2, session_pb2, trust_pb2
from tests.fakes.rogue_stream import FINAL_STATES, RogueStream, StolenTrust, command, tampered
from tests.fakes.served import ServedGateway

__all__ = ["FINAL_STATES", "RogueGateway", "RogueStream", "StolenTrust", "command", "tampered"]

HEARTBEAT_MS = 3_600_000


class RogueGateway(ServedGateway[RogueStream]):
    """The gateway; `async with RogueGateway(trust) as rogue` opens it on a free port of 127.0.0.1.

    Args:
        trust: what it stole.
        welcome: replaces fields of every welcome, such as `drained=True`.
        acknowledges: whether new streams acknowledge reports, telemetry and audit rows.
    """

    def __init__(self, trust: StolenTrust, *, welcome: dict[str, Any] | None = None, acknowledges: bool = True) -> None:
        super().__init__()
        self.trust = trust
        self._welcome = welcome or {}
        self._acknowledges = acknowledges
        self._readers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.listen(self.trust.leaf)
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.end()
        await self.close(0.2)

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
        return self.shake_hands(request.signed, self.trust.authority)

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # as grpc.aio has it
        stream = self._open((await context.read()).hello)
        await context.write(stream.sealed(welcome=stream.welcome))
        self.welcomed(stream)
        reader = asyncio.create_task(_read(stream, context))  # never cancelled: the end of the call ends it
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            async for frame in stream.frames():
                await context.write(frame)
        finally:
            stream.note_ended()

    def _open(self, hello: gateway_pb2.Hello) -> RogueStream:
        proof = session_pb2.StreamStatement.FromString(hello.proof.statement)
        said = {"heartbeat_interval_ms": HEARTBEAT_MS, "next_ratchet": os.urandom(32), "replica_id": "rogue"}
        return RogueStream(
            trust=self.trust,
            node_id=proof.node_id,
            binding=hashlib.sha256(hello.proof.statement).digest(),
            hello=gateway_pb2.HelloBody.FromString(hello.body),
            welcome=self.welcome("rogue", **(said | self._welcome)),
            proof=proof,
            keys=self.keys_of(proof),
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
