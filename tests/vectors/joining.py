"""How node-1 becomes a member: join token, request, poll, bootstrap, and the bundles that it trusts."""

from __future__ import annotations

import hashlib

from fleet import trust
from fleet.envelope import Domain
from fleet.identity import fingerprint
from fleet.sealing import Purpose, sealing_info
from fleet.v1 import enrollment_pb2, trust_pb2
from tests.vectors import hpke
from tests.vectors.cast import API_KEY, CLUSTER, NAME, NODE, NOW_MS, TOKEN_SECRET, Statement
from tests.vectors.keys import exchange_key, exchange_public, fixed_bytes, signer


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
            bundle_number=7,
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
            name=NAME,
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
            name=NAME,
            site="berlin",
        ),
    )
