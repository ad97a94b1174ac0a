"""How node-1 opens its stream: both halves of the handshake, the hello's proof, a renewal."""

from __future__ import annotations

import hashlib

from fleet.envelope import Domain
from fleet.v1 import gateway_pb2, session_pb2
from tests.vectors.cast import CHALLENGE, CLUSTER, NODE, NOW_MS, SESSION_TOKEN, STREAM, Statement
from tests.vectors.keys import exchange_public, fixed_bytes


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
