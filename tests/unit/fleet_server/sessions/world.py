"""The rooms a node meets before its stream, over a real database; and a node with real keys that talks to them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet import sealing
from fleet.channel import FrameKeys, derive_frame_keys
from fleet.envelope import Domain, verify_one
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.metrics import Registry
from fleet.secrets import Secret
from fleet.v1 import enrollment_pb2, gateway_pb2, session_pb2, trust_pb2
from fleet_server.audit.service import AuditCursor, AuditService
from fleet_server.database.engine import Database, sql
from fleet_server.database.wakeup import Wakeup
from fleet_server.enrollment.rules import EnrollmentRecord
from fleet_server.enrollment.service import EnrollmentService
from fleet_server.nodes.record import NodeRecord
from fleet_server.nodes.service import NodeService
from fleet_server.observability.metrics import ServerMetrics
from fleet_server.sessions.admission import Admission, AdmissionPolicy
from fleet_server.sessions.claim import StreamClaim
from fleet_server.sessions.service import SessionService
from fleet_server.trust.secrets import Secrets
from fleet_server.trust.service import TrustService
from tests.fakes.clock import MockClock

LEAF = hashlib.sha256(b"our leaf").digest()
ADDRESS = "192.0.2.7"


class World:
    """Nodes, enrollment and sessions rooms of one replica."""

    def __init__(self, database: Database, clock: MockClock, *, replica_id: str = "r1") -> None:
        self.database = database
        self.clock = clock
        self.wakeup = Wakeup()
        self.metrics = ServerMetrics(Registry())
        self.secrets = Secrets(Secret(b"\x07" * 32))
        self.audit = AuditService(
            database=database, clock=clock, wakeup=self.wakeup, writer=replica_id, row_mac=self.secrets.row_mac
        )
        self.trust = TrustService(
            database=database,
            secrets=self.secrets,
            clock=clock,
            audit=self.audit,
            wakeup=self.wakeup,
            cluster_name="test",
        )
        self.nodes = NodeService(
            database=database,
            clock=clock,
            wakeup=self.wakeup,
            audit=self.audit,
            row_mac=self.secrets.row_mac("nodes"),
            replica_id=replica_id,
        )
        self.admission = Admission(clock=clock, metrics=self.metrics.sessions, policy=AdmissionPolicy())
        self.leaves = frozenset({LEAF})
        self.sessions = SessionService(
            database=database,
            clock=clock,
            audit=self.audit,
            metrics=self.metrics.sessions,
            secrets=self.secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=self.admission,
            accepted_leaves=lambda: self.leaves,
        )
        self.nodes.on_revoke(self.sessions.rotations.revoke_api_keys)
        self.nodes.show_rotating_with(self.sessions.rotations.open)
        self.enrollment = EnrollmentService(
            database=database,
            clock=clock,
            audit=self.audit,
            metrics=self.metrics.enrollment,
            secrets=self.secrets,
            trust=self.trust,
            nodes=self.nodes,
            admission=self.admission,
            issue_api_key=self.sessions.rotations.issue_api_key,
        )
        self.nodes.on_revoke(self.enrollment.checklist_of)

    async def start(self) -> World:
        await self.trust.create_cluster()
        await self.trust.load()
        await self.trust.publish_bundle(["gateway.example:7443"])
        return self

    def count_reads(self) -> list[object]:
        """What the database is asked from now on."""
        reads: list[object] = []
        original = self.database._read

        def read(query: Any) -> Any:
            reads.append(query)
            return original(query)

        self.database._read = read  # type: ignore[method-assign]
        return reads

    async def token(self, **terms: Any) -> enrollment_pb2.JoinToken:
        wanted = {"site": "", "ttl_s": 0, "max_uses": 0, "auto_approve": False} | terms
        _, token = await self.enrollment.create_token("ada", **wanted)
        return token

    async def member(self, name: str = "node-1", **terms: Any) -> Node:
        """An enrolled, approved node that has opened its bootstrap."""
        node = Node(self, name=name)
        node.enrollment_id = (await node.enroll(await self.token(auto_approve=True, **terms))).enrollment_id
        await node.fetch_bootstrap()
        return node

    async def execute(self, text: str, *fields: Any) -> None:
        """Write to the database around the server."""
        await self.database.write(lambda tx: tx.conn.exec_driver_sql(sql(tx.conn, text), fields))

    async def value(self, text: str, *fields: Any) -> Any:
        row = await self.database.read(lambda conn: conn.exec_driver_sql(sql(conn, text), fields).first())
        return None if row is None else row[0]

    async def audited(self) -> list[str]:
        """Kinds of all audit rows, in order."""
        page = await self.audit.page(AuditCursor(), limit=1000)
        return [row.kind for row in page.rows]

    async def epoch(self, node_id: str) -> int:
        """Epoch of the node's newest stream."""
        return await self.database.read(lambda conn: self.nodes.current_epoch(conn, node_id))

    async def node(self, ref: str) -> NodeRecord:
        return await self.nodes.get(ref)


@dataclass
class Node:
    """A node with real keys."""

    world: World
    name: str = "node-1"
    keys: NodeKeys = field(default_factory=NodeKeys.generate)
    enrollment_id: str = ""
    node_id: str = ""
    api_key: str = ""
    address: str = ADDRESS

    def enroll_request(self, token: enrollment_pb2.JoinToken, **changes: Any) -> enrollment_pb2.EnrollRequest:
        said = enrollment_pb2.JoinTokenStatement.FromString(token.signed.statement)
        fields: dict[str, Any] = {
            "token_id": said.token_id,
            "token_secret_sha256": hashlib.sha256(token.secret).digest(),
            "cluster_id": said.cluster_id,
            "identity_key": self.keys.identity.public_key,
            "sealing_key": self.keys.sealing_public,
            "name": self.name,
            "labels": {"os": "linux"},
            "version": "1.0",
        }
        statement = enrollment_pb2.EnrollStatement(**(fields | changes)).SerializeToString()
        return enrollment_pb2.EnrollRequest(
            signed=self.keys.identity.sign(Domain.ENROLL, statement), token_secret=token.secret
        )

    async def enroll(self, token: enrollment_pb2.JoinToken, **changes: Any) -> enrollment_pb2.EnrollResponse:
        answer = await self.world.enrollment.enroll(self.enroll_request(token, **changes), self.address)
        self.enrollment_id = answer.enrollment_id
        return answer

    async def poll(self) -> enrollment_pb2.GetBootstrapResponse:
        statement = enrollment_pb2.BootstrapPollStatement(enrollment_id=self.enrollment_id, nonce=os.urandom(32))
        signed = self.keys.identity.sign(Domain.BOOTSTRAP_POLL, statement.SerializeToString())
        return await self.world.enrollment.get_bootstrap(
            enrollment_pb2.GetBootstrapRequest(signed=signed), self.address
        )

    async def fetch_bootstrap(self) -> enrollment_pb2.BootstrapStatement:
        answer = await self.poll()
        raw = verify_one(answer.bootstrap, domain=Domain.BOOTSTRAP, public_key=self.world.trust.authority.public_key)
        said = enrollment_pb2.BootstrapStatement.FromString(raw)
        info = sealing.sealing_info(sealing.Purpose.API_KEY, said.cluster_id, said.node_id, self.keys.fingerprint)
        self.api_key = sealing.unseal(said.sealed_api_key, self.keys.sealing, info).decode()
        self.node_id = said.node_id
        self.name = said.name
        return said

    async def begin(self, **changes: Any) -> bytes:
        fields = {"api_key": self.api_key, "node_id": self.node_id, "protocol_version": 1} | changes
        answer = await self.world.sessions.begin(session_pb2.BeginHandshakeRequest(**fields), self.address)
        return answer.challenge

    def prove(self, challenge: bytes, share: X25519PrivateKey, **changes: Any) -> trust_pb2.Signed:
        fields: dict[str, Any] = {
            "challenge": challenge,
            "client_nonce": os.urandom(32),
            "node_id": self.node_id,
            "cluster_id": self.world.trust.cluster_id,
            "server_leaf_sha256": LEAF,
            "protocol_version": 1,
            "x25519_share": share.public_key().public_bytes_raw(),
        }
        statement = session_pb2.HandshakeStatement(**(fields | changes)).SerializeToString()
        return self.keys.identity.sign(Domain.HANDSHAKE, statement)

    async def complete(
        self, proof: trust_pb2.Signed, api_key: str = "", certificate_pem: bytes = b""
    ) -> session_pb2.CompleteHandshakeResponse:
        request = session_pb2.CompleteHandshakeRequest(api_key=api_key or self.api_key, signed=proof)
        return await self.world.sessions.complete(request, self.address, certificate_pem)

    async def handshake(self, certificate_pem: bytes = b"") -> tuple[bytes, FrameKeys]:
        """Session token and frame keys, the server's answer verified as a node must."""
        share = X25519PrivateKey.generate()
        proof = self.prove(await self.begin(), share)
        answer = await self.complete(proof, certificate_pem=certificate_pem)
        authority = self.world.trust.authority.public_key
        raw = verify_one(answer.signed, domain=Domain.HANDSHAKE_SERVER, public_key=authority)
        said = session_pb2.HandshakeServerStatement.FromString(raw)
        assert said.node_proof_sha256 == hashlib.sha256(proof.statement + proof.signatures[0].value).digest()
        assert said.session_token_sha256 == hashlib.sha256(answer.session_token).digest()
        return answer.session_token, derive_frame_keys(share, said.x25519_share, proof.statement, raw)

    def hello(self, token: bytes, body: gateway_pb2.HelloBody | None = None, **changes: Any) -> gateway_pb2.Hello:
        raw = (body or hello_body()).SerializeToString()
        fields: dict[str, Any] = {
            "session_token_sha256": hashlib.sha256(token).digest(),
            "node_id": self.node_id,
            "cluster_id": self.world.trust.cluster_id,
            "nonce": os.urandom(32),
            "hello_sha256": hashlib.sha256(raw).digest(),
        }
        statement = session_pb2.StreamStatement(**(fields | changes)).SerializeToString()
        return gateway_pb2.Hello(proof=self.keys.identity.sign(Domain.STREAM, statement), body=raw)

    async def claim(
        self,
        token: bytes,
        hello: gateway_pb2.Hello,
        *,
        stream_id: str = "s1",
        api_key: str = "",
        certificate_pem: bytes = b"",
    ) -> StreamClaim:
        return await self.world.sessions.claim(
            api_key or self.api_key,
            token,
            hello,
            self.address,
            stream_id=stream_id,
            replica_id="r1",
            certificate_pem=certificate_pem,
        )

    async def connect(self, body: gateway_pb2.HelloBody | None = None, stream_id: str = "s1") -> StreamClaim:
        token, _ = await self.handshake()
        return await self.claim(token, self.hello(token, body), stream_id=stream_id)


def hello_body(**changes: Any) -> gateway_pb2.HelloBody:
    action = gateway_pb2.ActionDescriptor(action="host.info", arguments_schema=b'{"type":"object"}')
    fields: dict[str, Any] = {
        "software_version": "1.0",
        "protocol_version": 1,
        "labels": {"os": "linux"},
        "drivers": [gateway_pb2.DriverDescriptor(name="host", version="1", actions=[action])],
        "max_in_flight": 32,
    }
    return gateway_pb2.HelloBody(**(fields | changes))


async def approve(world: World, node: Node, **decision: Any) -> EnrollmentRecord:
    return await world.enrollment.decide("ada", node.enrollment_id, **({"approve": True} | decision))


async def refused(work: object) -> Reason:
    """Why `work` is refused; it says so in a sentence."""
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    assert caught.value.detail
    return caught.value.reason
