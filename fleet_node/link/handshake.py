"""The node's half of the handshake: api_key and a signed challenge against a short-lived session token
(docs/protocol.md, "Session")."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.channel import ChannelError, FrameKeys, derive_frame_keys
from fleet.clock import ServerTime
from fleet.envelope import Domain, EnvelopeError
from fleet.errors import Reason, Refusal
from fleet.identity import NodeKeys
from fleet.logs import get_logger
from fleet.secrets import Secret
from fleet.v1 import session_pb2, trust_pb2
from fleet_node.enrollment.membership import Membership
from fleet_node.link.caller import GatewayCaller
from fleet_node.link.ports import TrustPort

log = get_logger(__name__)

PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class Session:
    """A session that opens one stream, once."""

    token: Secret[bytes]
    token_sha256: bytes
    frame_keys: FrameKeys
    expires_at_ms: int

    def metadata(self, api_key: Secret[str]) -> tuple[tuple[str, str], ...]:
        """What `Connect` carries; hand it straight to the call."""
        token = base64.urlsafe_b64encode(self.token.reveal()).decode().rstrip("=")
        return ("authorization", f"Bearer {api_key.reveal()}"), ("fleet-session", token)


async def handshake(
    caller: GatewayCaller,
    *,
    membership: Membership,
    keys: NodeKeys,
    trust: TrustPort,
    server_time: ServerTime,
) -> Session:
    """Authenticate this node to the server and the server to this node.

    Raises:
        Refusal: by the server; or BAD_PROOF, when the server did not prove that it is the cluster's.
    """
    api_key = membership.api_key.reveal()
    generation, number = trust.state.version
    begun = await caller.begin_handshake(
        session_pb2.BeginHandshakeRequest(
            api_key=api_key,
            node_id=membership.node_id,
            bundle_version=session_pb2.BundleVersion(generation=generation, number=number),
            protocol_version=PROTOCOL_VERSION,
        )
    )
    if begun.bundle_chain:
        await trust.offer(begun.bundle_chain)
    ephemeral = X25519PrivateKey.generate()
    statement = session_pb2.HandshakeStatement(
        challenge=begun.challenge,
        client_nonce=secrets.token_bytes(32),
        node_id=membership.node_id,
        cluster_id=membership.cluster_id,
        server_leaf_sha256=caller.leaf_sha256,
        protocol_version=PROTOCOL_VERSION,
        x25519_share=ephemeral.public_key().public_bytes_raw(),
    ).SerializeToString()
    proof = keys.identity.sign(Domain.HANDSHAKE, statement)
    answer = await caller.complete_handshake(session_pb2.CompleteHandshakeRequest(api_key=api_key, signed=proof))
    raw = _signed_by(answer, trust.state.authority_key)
    if raw is None:  # rotated in between, or the chain did not fit
        generation, number = trust.state.version
        asked = trust_pb2.GetTrustChainRequest(
            cluster_id=membership.cluster_id, from_generation=generation, from_number=number
        )
        with contextlib.suppress(Refusal):  # without a chain the answer proves nothing, and that is said below
            async for part in caller.trust_chain(asked):
                await trust.offer(part)
        raw = _signed_by(answer, trust.state.authority_key)
    said = _verify_server(answer, raw, proof)
    _meet(server_time, said.server_time_ms)
    try:
        frame_keys = derive_frame_keys(ephemeral, said.x25519_share, statement, answer.signed.statement)
    except ChannelError as error:
        raise _not_proven(str(error)) from error
    return Session(Secret(answer.session_token), said.session_token_sha256, frame_keys, said.expires_at_ms)


def _meet(server_time: ServerTime, server_time_ms: int) -> None:
    estimate_ms = server_time.now_ms()
    try:
        if server_time.meet(server_time_ms):
            log.warning("server_time_began_again", before_ms=estimate_ms, now_ms=server_time_ms)
    except ValueError as error:
        raise Refusal(Reason.MALFORMED, f"the server's time is wrong: {error}") from error


def _signed_by(answer: session_pb2.CompleteHandshakeResponse, authority_key: bytes) -> bytes | None:
    try:
        return envelope.verify_one(answer.signed, domain=Domain.HANDSHAKE_SERVER, public_key=authority_key)
    except EnvelopeError:
        return None


def _verify_server(
    answer: session_pb2.CompleteHandshakeResponse, raw: bytes | None, proof: trust_pb2.Signed
) -> session_pb2.HandshakeServerStatement:
    not_signed = "its answer is not signed by the pinned authority"
    if raw is None:
        raise _not_proven(not_signed)
    try:
        said = session_pb2.HandshakeServerStatement.FromString(raw)
    except DecodeError as error:
        raise _not_proven(not_signed) from error
    expected = hashlib.sha256(proof.statement + proof.signatures[0].value).digest()
    if not hmac.compare_digest(said.node_proof_sha256, expected):
        raise _not_proven("its answer is to another handshake")
    if not hmac.compare_digest(said.session_token_sha256, hashlib.sha256(answer.session_token).digest()):
        raise _not_proven("its session token is not the one that it signed")
    return said


def _not_proven(why: str) -> Refusal:
    return Refusal(Reason.BAD_PROOF, f"the server did not prove that it is this cluster's: {why}")
