"""A gateway as a test scripts it: real gRPC over real TLS, real signatures, no rooms behind it.

It plays the server's half of the protocol well by default; a test changes one thing and sees what the node makes of
it. `FakeInstallation` holds the keys; several `FakeGateway`s may share one, as replicas do.
"""

import asyncio
import datetime as dt
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from fleet import jointoken, sealing, status, tls, tls_certificates, trust
from fleet.channel import FrameKeys, server_end
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.identity import fingerprint
from fleet.secrets import Secret
from fleet.v1 import enrollment_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_node.enrollment.membership import Membership
from tests.fakes.served import WAIT_TIMEOUT_S, ServedGateway, now_ms

CLUSTER = "c-test"
NODE = "nd_test"


class FakeInstallation:
    """Cluster, authority, command key and TLS CA."""

    def __init__(self) -> None:
        self.authority = Signer.generate()
        self.command_key = Signer.generate()
        now = dt.datetime.now(dt.UTC)
        self.ca = tls_certificates.make_ca("test CA", now)
        self.leaf = tls_certificates.make_leaf(self.ca, ["localhost", "127.0.0.1"], now)
        self.endpoints: list[str] = []

    def bundle(
        self, number: int = 1, *, signer: Signer | None = None, expires_in_ms: int = trust.BUNDLE_LIFETIME_MS
    ) -> trust_pb2.Signed:
        """A signed bundle with the command key and the endpoints known so far."""
        issued_ms = now_ms()
        key = trust_pb2.KeyCertificateStatement(
            cluster_id=CLUSTER, public_key=self.command_key.public_key, phase=trust_pb2.KEY_PHASE_ACTIVE
        )
        statement = trust_pb2.TrustBundleStatement(
            cluster_id=CLUSTER,
            generation=1,
            number=number,
            authority_key=self.authority.public_key,
            command_keys=[self.authority.sign(Domain.KEY_CERTIFICATE, key.SerializeToString())],
            tls_ca_der=[self.ca.certificate_der],
            issued_at_ms=issued_ms,
            expires_at_ms=issued_ms + expires_in_ms,
            endpoints=self.endpoints,
        )
        return (signer or self.authority).sign(Domain.TRUST_BUNDLE, statement.SerializeToString())

    def next_generation(self, successor: Signer, *, signers: Sequence[Signer]) -> trust_pb2.Signed:
        """The first bundle of generation 2, signed by `signers`."""
        statement = trust_pb2.TrustBundleStatement.FromString(self.bundle().statement)
        statement.generation, statement.authority_key = 2, successor.public_key
        del statement.command_keys[:]
        signed = trust_pb2.Signed(statement=statement.SerializeToString())
        for signer in signers:
            signer.add(signed, Domain.TRUST_BUNDLE)
        return signed

    def trust_state(self, number: int = 1) -> trust.TrustState:
        """The same, verified."""
        return trust.first(self.bundle(number), cluster_id=CLUSTER, authority_key=self.authority.public_key)

    def join_token(self, *, token_id: str = "jt_1", owner_pin: bytes = b"", endpoints: list[str] | None = None) -> str:
        """Text of a join token for the endpoints known so far."""
        statement = enrollment_pb2.JoinTokenStatement(
            token_id=token_id,
            cluster_id=CLUSTER,
            endpoints=endpoints or self.endpoints,
            tls_ca_der=self.ca.certificate_der,
            authority_key=self.authority.public_key,
            max_uses=1,
        )
        signed = self.authority.sign(Domain.JOIN_TOKEN, statement.SerializeToString())
        return jointoken.encode(
            enrollment_pb2.JoinToken(signed=signed, secret=secrets.token_bytes(32), owner_pin=owner_pin)
        )

    def membership(self) -> Membership:
        """What an approved node holds."""
        return Membership(
            cluster_id=CLUSTER,
            node_id=NODE,
            name="pump-1",
            site="",
            endpoints=tuple(self.endpoints),
            tls_ca_der=self.ca.certificate_der,
            authority_key=self.authority.public_key,
            owner_pin=b"",
            api_key=Secret("fak1.test"),
            telemetry_interval_s=10.0,
            max_in_flight=32,
        )

    def bootstrap(
        self, enrollment: str, keys: enrollment_pb2.EnrollStatement, *, signer: Signer | None = None, **said: Any
    ) -> trust_pb2.Signed:
        """A signed bootstrap for the keys of an enrollment; `said` changes single fields of it."""
        mark = fingerprint(keys.identity_key, keys.sealing_key)
        info = sealing.sealing_info(sealing.Purpose.API_KEY, CLUSTER, NODE, mark)
        fields: dict[str, Any] = {
            "enrollment_id": enrollment,
            "cluster_id": CLUSTER,
            "node_id": NODE,
            "fingerprint": mark,
            "sealed_api_key": sealing.seal(b"fak1.test", keys.sealing_key, info),
            "trust_bundle": self.bundle(),
            "name": keys.name,
        }
        statement = enrollment_pb2.BootstrapStatement(**(fields | said))
        return (signer or self.authority).sign(Domain.BOOTSTRAP, statement.SerializeToString())


class FakeStream:
    """One stream as the server sees it."""

    def __init__(
        self,
        gateway: "FakeGateway",
        hello: gateway_pb2.Hello,
        context: grpc.aio.ServicerContext[Any, Any],
        keys: FrameKeys,
        stream_id: str,
    ) -> None:
        self._gateway = gateway
        self._context = context
        self._sealer, self._opener = server_end(keys)
        self.hello = gateway_pb2.HelloBody.FromString(hello.body)
        self.proof = session_pb2.StreamStatement.FromString(hello.proof.statement)
        self.stream_id = stream_id
        self.controls: list[gateway_pb2.NodeControl] = []
        self.telemetry: list[bytes] = []
        self.ended = False
        self.ending: Refusal | None = None
        self.closing = asyncio.Event()

    async def send(self, control: gateway_pb2.ServerControl) -> None:
        """Seal and write one control frame."""
        await self._context.write(gateway_pb2.ServerFrame(control=self._sealer.seal(control.SerializeToString())))

    async def send_raw(self, frame: gateway_pb2.ServerFrame) -> None:
        """Write a frame as it is."""
        await self._context.write(frame)

    def end(self, refusal: Refusal | None = None) -> None:
        """End the stream, in order or with a refusal."""
        self.ending = refusal
        self.closing.set()

    async def ping(self, number: int = 1, *, interval_ms: int = 10_000, rtt_us: int = 700) -> gateway_pb2.Pong:
        """Ping, and the pong."""
        ping = gateway_pb2.Ping(number=number, server_time_ms=now_ms(), last_rtt_us=rtt_us, interval_ms=interval_ms)
        await self.send(gateway_pb2.ServerControl(ping=ping))
        return (await self.wait_control("pong", lambda control: control.pong.number == number)).pong

    async def wait_control(
        self, kind: str, fits: Callable[[gateway_pb2.NodeControl], bool] = lambda _: True
    ) -> gateway_pb2.NodeControl:
        """The first control frame of that kind that fits."""

        def found() -> list[gateway_pb2.NodeControl]:
            return [each for each in self.controls if each.WhichOneof("body") == kind and fits(each)]

        await self._gateway.watch.wait_until(
            lambda: bool(found()), lambda: f"no {kind}: {self.controls}", WAIT_TIMEOUT_S
        )
        return found()[0]

    async def wait_ended(self) -> None:
        """Until the node is gone."""
        await self._gateway.watch.wait_until(
            lambda: self.ended, lambda: f"{self.stream_id} still lives", WAIT_TIMEOUT_S
        )

    def take(self, frame: gateway_pb2.NodeFrame) -> None:
        """Open one frame of the node."""
        if frame.WhichOneof("frame") == "control":
            self.controls.append(gateway_pb2.NodeControl.FromString(self._opener.open(frame.control)))
        else:
            self.telemetry.append(frame.telemetry)


class FakeGateway(ServedGateway[FakeStream]):
    """A listener. Start it with `start`; change its attributes to change what it does."""

    def __init__(self, installation: FakeInstallation, *, replica_id: str = "replica-1") -> None:
        super().__init__()
        self.installation = installation
        self.replica_id = replica_id
        self.leaf = installation.leaf
        self.enrollments: list[enrollment_pb2.EnrollStatement] = []
        self.polls = 0
        self.refuse: dict[str, Refusal] = {}
        """Calls to refuse, by name of the method."""
        self.bootstrap: Callable[[], enrollment_pb2.GetBootstrapResponse] = self._pending
        self.bundle_chain: list[trust_pb2.Signed] = []
        self.handshake_signer = installation.authority
        self.welcomes = True
        self.deaf = False
        """Take streams and answer nothing on them."""
        self.lingers = False
        """Keep calls open that the node has finished."""
        self.heartbeat_interval_ms = 60_000
        self.handshakes = 0
        self.trust_chain: list[trust_pb2.Signed] = []

    async def start(self, leaf: tls_certificates.CertifiedKey | None = None, port: int = 0) -> None:
        """Listen on a free port, and make the endpoint known to the installation."""
        self.leaf = leaf or self.leaf
        await self.listen(self.leaf, port)
        if self.endpoint not in self.installation.endpoints:
            self.installation.endpoints.append(self.endpoint)

    async def stop(self) -> None:
        """Drop everything."""
        for stream in self.streams:
            stream.closing.set()
        await self.close(0)

    def approve(self, **said: Any) -> None:
        """Answer polls with a bootstrap from now on."""
        self.bootstrap = lambda: enrollment_pb2.GetBootstrapResponse(
            state=enrollment_pb2.ENROLLMENT_STATE_APPROVED,
            bootstrap=self.installation.bootstrap("en_1", self.enrollments[-1], **said),
            bundle_chain=self.bundle_chain or [self.installation.bundle()],
        )

    async def Enroll(self, request: enrollment_pb2.EnrollRequest, context: Any) -> enrollment_pb2.EnrollResponse:
        await self._maybe_refuse("Enroll", context)
        statement = enrollment_pb2.EnrollStatement.FromString(request.signed.statement)
        self.enrollments.append(statement)
        self.watch.changed()
        mark = fingerprint(statement.identity_key, statement.sealing_key)
        return enrollment_pb2.EnrollResponse(enrollment_id="en_1", fingerprint=mark, poll_interval_s=1)

    async def GetBootstrap(
        self, request: enrollment_pb2.GetBootstrapRequest, context: Any
    ) -> enrollment_pb2.GetBootstrapResponse:
        self.polls += 1
        self.watch.changed()
        await self._maybe_refuse("GetBootstrap", context)
        return self.bootstrap()

    async def BeginHandshake(
        self, request: session_pb2.BeginHandshakeRequest, context: Any
    ) -> session_pb2.BeginHandshakeResponse:
        await self._maybe_refuse("BeginHandshake", context)
        return session_pb2.BeginHandshakeResponse(
            challenge=secrets.token_bytes(64), valid_for_ms=30_000, bundle_chain=self.bundle_chain
        )

    async def GetTrustChain(
        self, request: trust_pb2.GetTrustChainRequest, context: Any
    ) -> trust_pb2.GetTrustChainResponse:
        await self._maybe_refuse("GetTrustChain", context)
        return trust_pb2.GetTrustChainResponse(bundles=self.trust_chain)

    async def CompleteHandshake(
        self, request: session_pb2.CompleteHandshakeRequest, context: Any
    ) -> session_pb2.CompleteHandshakeResponse:
        self.handshakes += 1
        self.watch.changed()
        await self._maybe_refuse("CompleteHandshake", context)
        said = session_pb2.HandshakeStatement.FromString(request.signed.statement)
        if said.server_leaf_sha256 != tls.certificate_sha256(self.leaf.certificate_der):
            await _abort(context, Refusal(Reason.WRONG_CERTIFICATE, "another leaf"))
        return self.shake_hands(request.signed, self.handshake_signer)

    async def Connect(self, request_iterator: Any, context: Any) -> None:
        first = await context.read()
        await self._maybe_refuse("Connect", context)
        if self.deaf:
            await asyncio.Event().wait()
        if first.WhichOneof("frame") != "hello":
            await _abort(context, Refusal(Reason.MALFORMED, "the first frame of a stream is a hello"))
        hello = first.hello
        proof = session_pb2.StreamStatement.FromString(hello.proof.statement)
        if not self.welcomes:
            self.watch.changed()
            await asyncio.Event().wait()
        welcome = self.welcome("stream", heartbeat_interval_ms=self.heartbeat_interval_ms, replica_id=self.replica_id)
        stream = FakeStream(self, hello, context, self.keys_of(proof), welcome.stream_id)
        await stream.send(gateway_pb2.ServerControl(welcome=welcome))
        self.welcomed(stream)
        reader = asyncio.create_task(self._read(stream, context))
        closing = asyncio.create_task(stream.closing.wait())
        await asyncio.wait({reader, closing}, return_when=asyncio.FIRST_COMPLETED)
        if self.lingers:
            await closing
        closing.cancel()
        if stream.ending is not None:
            await _abort(context, stream.ending)

    async def _read(self, stream: FakeStream, context: Any) -> None:
        try:
            while (frame := await context.read()) is not grpc.aio.EOF:
                stream.take(frame)
                self.watch.changed()
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            pass  # the stream was ended from this side
        finally:
            stream.ended = True
            self.watch.changed()

    async def _maybe_refuse(self, method: str, context: Any) -> None:
        if method in self.refuse:
            await _abort(context, self.refuse[method])

    @staticmethod
    def _pending() -> enrollment_pb2.GetBootstrapResponse:
        return enrollment_pb2.GetBootstrapResponse(state=enrollment_pb2.ENROLLMENT_STATE_PENDING, poll_interval_s=1)


async def _abort(context: Any, refusal: Refusal) -> None:
    code, detail, metadata = status.encode(refusal)
    await context.abort(code, detail, metadata)
