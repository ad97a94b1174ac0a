"""Every signed statement once, as one story: node-1 enrolls, shakes hands, opens a stream, is sent commands and a
cancel; keys rotate. Hashes in later statements are those of earlier ones, so a reader can follow the chain."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from google.protobuf.message import Message

from fleet import trust
from fleet.envelope import Domain
from fleet.identity import fingerprint
from fleet.sealing import Purpose, sealing_info
from fleet.v1 import (
    command_pb2,
    enrollment_pb2,
    gateway_pb2,
    lease_pb2,
    probe_pb2,
    route_pb2,
    session_pb2,
    trust_pb2,
)
from tests.vectors import hpke
from tests.vectors.keys import exchange_key, exchange_public, fixed_bytes, signer

NOW_MS = 1_900_000_000_000
CLUSTER = "5f0c7d0e9a1b4c2d"
NODE = "node-0001"
OTHER_NODE = "node-0002"
STREAM = "stream-0001"
API_KEY = "fak1.example-of-an-opaque-api-key"
TOKEN_SECRET = fixed_bytes("token secret", 32)
SESSION_TOKEN = fixed_bytes("session token", 32)
CHALLENGE = fixed_bytes("challenge", 64)
ARGUMENTS = b'{"top":5}'


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, the domain it is signed under, and the names of its signers."""

    name: str
    domain: Domain
    signers: tuple[str, ...]
    message: Message

    @property
    def raw(self) -> bytes:
        """The statement bytes. Deterministic: maps in key order."""
        return self.message.SerializeToString(deterministic=True)

    def signed(self) -> trust_pb2.Signed:
        """The envelope."""
        first, *more = self.signers
        signed = signer(first).sign(self.domain, self.raw)
        for name in more:
            signer(name).add(signed, self.domain)
        return signed


def node_fingerprint() -> bytes:
    """Fingerprint of node-1."""
    return fingerprint(signer("node-1").public_key, exchange_public("node-1-sealing"))


def api_key_info() -> bytes:
    """HPKE info under which node-1's api_key is sealed."""
    return sealing_info(Purpose.API_KEY, CLUSTER, NODE, node_fingerprint())


def sealed_api_key() -> bytes:
    """The api_key sealed to node-1, with a fixed ephemeral key where a real server draws one."""
    return hpke.seal_with_ephemeral(
        API_KEY.encode(), exchange_public("node-1-sealing"), exchange_key("hpke-ephemeral"), api_key_info()
    )


def join_token() -> Statement:
    """What a join token says."""
    return Statement(
        "join-token",
        Domain.JOIN_TOKEN,
        ("authority-1",),
        enrollment_pb2.JoinTokenStatement(
            token_id="jt-0001",
            cluster_id=CLUSTER,
            endpoints=["gateway.example:7443", "[2001:db8::1]:7443"],
            tls_ca_der=b"0\x82 a DER certificate stands here",
            authority_key=signer("authority-1").public_key,
            site="berlin",
            expires_at_ms=NOW_MS + 3_600_000,
            max_uses=1,
            authority_generation=1,
        ),
    )


def enroll() -> Statement:
    """The enrollment request."""
    return Statement(
        "enroll",
        Domain.ENROLL,
        ("node-1",),
        enrollment_pb2.EnrollStatement(
            token_id="jt-0001",
            token_secret_sha256=hashlib.sha256(TOKEN_SECRET).digest(),
            cluster_id=CLUSTER,
            identity_key=signer("node-1").public_key,
            sealing_key=exchange_public("node-1-sealing"),
            name="press-7",
            labels={"os": "linux", "arch": "x86_64"},
            version="1.0.0",
        ),
    )


def bootstrap_poll() -> Statement:
    """The poll for the operator's decision."""
    return Statement(
        "bootstrap-poll",
        Domain.BOOTSTRAP_POLL,
        ("node-1",),
        enrollment_pb2.BootstrapPollStatement(enrollment_id="enr-0001", nonce=fixed_bytes("poll nonce", 32)),
    )


def key_certificate(number: int, authority: str = "authority-1") -> Statement:
    """Certificate of command-key-1 (ACTIVE, every site) or command-key-2 (RETIRED, one site)."""
    first = number == 1
    return Statement(
        "key-certificate" if first else "key-certificate-retired",
        Domain.KEY_CERTIFICATE,
        (authority,),
        trust_pb2.KeyCertificateStatement(
            cluster_id=CLUSTER,
            public_key=signer(f"command-key-{number}").public_key,
            site="" if first else "berlin",
            not_before_ms=NOW_MS - 86_400_000,
            verify_until_ms=0 if first else NOW_MS + 86_400_000,
            phase=trust_pb2.KEY_PHASE_ACTIVE if first else trust_pb2.KEY_PHASE_RETIRED,
        ),
    )


def trust_bundle() -> Statement:
    """Bundle (1, 3)."""
    return Statement(
        "trust-bundle",
        Domain.TRUST_BUNDLE,
        ("authority-1",),
        trust_pb2.TrustBundleStatement(
            cluster_id=CLUSTER,
            generation=1,
            number=3,
            authority_key=signer("authority-1").public_key,
            command_keys=[key_certificate(1).signed(), key_certificate(2).signed()],
            tls_ca_der=[b"0\x82 a DER certificate stands here"],
            issued_at_ms=NOW_MS,
            expires_at_ms=NOW_MS + trust.BUNDLE_LIFETIME_MS,
            grace_s=trust.BUNDLE_GRACE_S,
            endpoints=["gateway.example:7443"],
        ),
    )


def next_generation() -> Statement:
    """Bundle (2, 1): signed by the old authority and by the new one."""
    return Statement(
        "trust-bundle-next-generation",
        Domain.TRUST_BUNDLE,
        ("authority-1", "authority-2"),
        trust_pb2.TrustBundleStatement(
            cluster_id=CLUSTER,
            generation=2,
            number=1,
            authority_key=signer("authority-2").public_key,
            command_keys=[key_certificate(1, "authority-2").signed()],
            tls_ca_der=[b"0\x82 another DER certificate stands here"],
            issued_at_ms=NOW_MS + 1_000,
            expires_at_ms=NOW_MS + 1_000 + trust.BUNDLE_LIFETIME_MS,
            grace_s=trust.BUNDLE_GRACE_S,
            endpoints=["gateway.example:7443"],
        ),
    )


def bootstrap() -> Statement:
    """What makes node-1 a member."""
    return Statement(
        "bootstrap",
        Domain.BOOTSTRAP,
        ("authority-1",),
        enrollment_pb2.BootstrapStatement(
            enrollment_id="enr-0001",
            cluster_id=CLUSTER,
            node_id=NODE,
            fingerprint=node_fingerprint(),
            sealed_api_key=sealed_api_key(),
            trust_bundle=trust_bundle().signed(),
            parameters=enrollment_pb2.NodeParameters(telemetry_interval_s=10, max_in_flight=32),
            name="press-7",
            site="berlin",
        ),
    )


def handshake() -> Statement:
    """The node's half of the handshake."""
    return Statement(
        "handshake",
        Domain.HANDSHAKE,
        ("node-1",),
        session_pb2.HandshakeStatement(
            challenge=CHALLENGE,
            client_nonce=fixed_bytes("client nonce", 32),
            node_id=NODE,
            cluster_id=CLUSTER,
            server_leaf_sha256=hashlib.sha256(b"0\x82 a DER leaf certificate stands here").digest(),
            protocol_version=1,
            x25519_share=exchange_public("node-share"),
        ),
    )


def handshake_server() -> Statement:
    """The server's half of the handshake."""
    proof = handshake().signed()
    return Statement(
        "handshake-server",
        Domain.HANDSHAKE_SERVER,
        ("authority-1",),
        session_pb2.HandshakeServerStatement(
            node_proof_sha256=hashlib.sha256(proof.statement + proof.signatures[0].value).digest(),
            session_token_sha256=hashlib.sha256(SESSION_TOKEN).digest(),
            server_time_ms=NOW_MS,
            expires_at_ms=NOW_MS + 900_000,
            x25519_share=exchange_public("server-share"),
        ),
    )


def hello_body() -> bytes:
    """Serialised HelloBody of the stream."""
    return gateway_pb2.HelloBody(
        software_version="1.0.0",
        protocol_version=1,
        last_accepted_seq=40,
        first_report_no=12,
        last_report_no=13,
        bundle_version=session_pb2.BundleVersion(generation=1, number=3),
        labels={"os": "linux"},
        max_in_flight=32,
        node_time_ms=NOW_MS + 7,
        last_batch_seq=900,
        boot_id=fixed_bytes("boot id", 16),
    ).SerializeToString(deterministic=True)


def stream() -> Statement:
    """The proof in the hello."""
    return Statement(
        "stream",
        Domain.STREAM,
        ("node-1",),
        session_pb2.StreamStatement(
            session_token_sha256=hashlib.sha256(SESSION_TOKEN).digest(),
            node_id=NODE,
            cluster_id=CLUSTER,
            nonce=fixed_bytes("stream nonce", 32),
            ratchet=fixed_bytes("ratchet", 32),
            takeover_of="stream-0000",
            hello_sha256=hashlib.sha256(hello_body()).digest(),
        ),
    )


def stream_binding() -> bytes:
    """SHA-256 of the stream statement."""
    return hashlib.sha256(stream().raw).digest()


def reauth() -> Statement:
    """Renews the session on its stream."""
    return Statement(
        "reauth",
        Domain.REAUTH,
        ("node-1",),
        session_pb2.ReauthStatement(challenge=fixed_bytes("reauth challenge", 64), stream_id=STREAM),
    )


def intent() -> Statement:
    """Two people's wish."""
    return Statement(
        "intent",
        Domain.INTENT,
        ("operator-anna", "operator-ben"),
        trust_pb2.IntentStatement(
            intent_id=fixed_bytes("intent id", 16),
            cluster_id=CLUSTER,
            targets=[trust_pb2.IntentTarget(node_id=NODE, fingerprint=node_fingerprint())],
            action="host.processes",
            arguments_sha256=hashlib.sha256(ARGUMENTS).digest(),
            issued_at_ms=NOW_MS,
            not_after_ms=NOW_MS + 600_000,
        ),
    )


@cache
def commands() -> tuple[command_pb2.Command, command_pb2.Command]:
    """Two commands; the second carries an intent."""
    plain = command_pb2.Command(
        command_id=fixed_bytes("command 41", 16),
        monotonic_seq=41,
        actor="anna",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 60_000,
        action="host.info",
        arguments=b"{}",
    )
    with_intent = command_pb2.Command(
        command_id=fixed_bytes("command 42", 16),
        monotonic_seq=42,
        actor="anna",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 60_000,
        action="host.processes",
        arguments=ARGUMENTS,
        intent=intent().signed(),
    )
    return plain, with_intent


def command() -> Statement:
    """A statement with two commands."""
    return Statement(
        "command",
        Domain.COMMAND,
        ("command-key-1",),
        command_pb2.CommandStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=stream_binding(),
            lease_epoch=7,
            prev_seq=40,
            commands=commands(),
            signed_at_ms=NOW_MS + 15,
        ),
    )


def cancel() -> Statement:
    """A cancel of the second command."""
    return Statement(
        "cancel",
        Domain.CANCEL,
        ("command-key-1",),
        command_pb2.CancelStatement(
            cluster_id=CLUSTER,
            node_id=NODE,
            stream_binding=stream_binding(),
            command_id=commands()[1].command_id,
            monotonic_seq=42,
            actor="ben",
        ),
    )


def audit_checkpoint() -> Statement:
    """The second checkpoint."""
    return Statement(
        "audit-checkpoint",
        Domain.AUDIT_CHECKPOINT,
        ("authority-1",),
        trust_pb2.AuditCheckpointStatement(
            cluster_id=CLUSTER,
            number=2,
            previous_sha256=fixed_bytes("checkpoint 1", 32),
            heads=[
                trust_pb2.AuditHead(writer=f"node:{NODE}", number=5, hash=fixed_bytes("row 5", 32)),
                trust_pb2.AuditHead(writer="replica-a", number=9, hash=fixed_bytes("row 9", 32)),
            ],
            issued_at_ms=NOW_MS,
        ),
    )


def people() -> list[Statement]:
    """What people and the product root sign."""
    grant = trust_pb2.RoleGrantStatement(
        cluster_id=CLUSTER,
        operator_key=signer("operator-anna").public_key,
        operator_name="anna",
        role="operator",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 86_400_000,
    )
    policy = trust_pb2.PolicyStatement(
        cluster_id=CLUSTER,
        version=4,
        rules=[trust_pb2.PolicyRule(action_glob="exec.*", required=2, roles=["operator", "owner"])],
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 86_400_000,
    )
    successor = trust_pb2.OwnerStatement(
        cluster_id=CLUSTER, successor_key=signer("next-owner").public_key, generation=2, issued_at_ms=NOW_MS
    )
    activation = trust_pb2.ActivationStatement(
        installation_id="inst-0001",
        first_owner_key=signer("owner").public_key,
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 86_400_000,
    )
    return [
        intent(),
        Statement("policy", Domain.POLICY, ("owner",), policy),
        Statement("role-grant", Domain.ROLE_GRANT, ("owner",), grant),
        Statement("owner", Domain.OWNER, ("owner",), successor),
        Statement("activation", Domain.ACTIVATION, ("product-root",), activation),
    ]


def routes() -> list[Statement]:
    """Leases, config snapshots and probes."""
    lent = lease_pb2.LeaseStatement(
        cluster_id=CLUSTER,
        lease_id="lease-0001",
        route_id="route-0001",
        relay_node_id=OTHER_NODE,
        generation=3,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
    )
    lease = Statement("lease", Domain.LEASE, ("authority-1",), lent)
    route = route_pb2.RouteConfig(
        route_id="route-0001",
        generation=3,
        path=[NODE, OTHER_NODE],
        service_class="synthetic",
        probe_interval_ms=5_000,
        waiting_rendezvous=True,
    )
    peer = route_pb2.Peer(
        node_id=OTHER_NODE, identity_key=signer("node-2").public_key, probe_endpoints=["192.0.2.7:7450"]
    )
    snapshot = route_pb2.ConfigSnapshotStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        version=11,
        routes=[route],
        peers=[peer],
        leases=[lease.signed()],
        issued_at_ms=NOW_MS,
    )
    nonce = fixed_bytes("probe nonce", 16)
    probe = probe_pb2.ProbeStatement(
        cluster_id=CLUSTER,
        route_id="route-0001",
        generation=3,
        path=[NODE, OTHER_NODE],
        hop_index=1,
        nonce=nonce,
        deadline_ms=NOW_MS + 2_000,
    )
    hop = probe_pb2.HopRecord(node_id=OTHER_NODE, nonce=nonce, hop_index=1, onward_us=0)
    return [
        lease,
        Statement("config", Domain.CONFIG, ("authority-1",), snapshot),
        Statement("probe", Domain.PROBE, ("node-1",), probe),
        Statement("probe-hop", Domain.PROBE_HOP, ("node-2",), hop),
    ]


def floor() -> Statement:
    """Raises node-1's sequence floor."""
    raised = trust_pb2.FloorStatement(
        cluster_id=CLUSTER, node_id=NODE, seq_floor=42, intents_after_ms=NOW_MS, issued_at_ms=NOW_MS
    )
    return Statement("floor", Domain.FLOOR, ("authority-1",), raised)


def node_key() -> Statement:
    """Replaces both keys of node-1: signed by the old identity and by the new one."""
    rotation = trust_pb2.NodeKeyRotationStatement(
        cluster_id=CLUSTER,
        node_id=NODE,
        identity_key=signer("node-1-next").public_key,
        sealing_key=exchange_public("node-1-sealing-next"),
        issued_at_ms=NOW_MS,
    )
    return Statement("node-key", Domain.NODE_KEY, ("node-1", "node-1-next"), rotation)


def statements() -> list[Statement]:
    """All of them, in the order of the story."""
    return [
        join_token(),
        enroll(),
        bootstrap_poll(),
        key_certificate(1),
        key_certificate(2),
        trust_bundle(),
        next_generation(),
        bootstrap(),
        handshake(),
        handshake_server(),
        stream(),
        reauth(),
        command(),
        cancel(),
        audit_checkpoint(),
        *people(),
        *routes(),
        floor(),
        node_key(),
    ]
