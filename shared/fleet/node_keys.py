"""A node's own keys replaced by new ones: what the node signs, and what the server judges. Pure.

The statement is signed by the identity key that the server knows and by the new one (docs/protocol.md, "Rotation of
node credentials"): the first shows that the node wants it, the second that it holds what it names.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from google.protobuf.message import DecodeError

from fleet import envelope
from fleet.envelope import PUBLIC_KEY_BYTES, Domain, EnvelopeError, key_id
from fleet.identity import NodeKeys
from fleet.v1 import trust_pb2

MAX_STATEMENT_BYTES = 4096
MAX_AHEAD_MS = 300_000
"""A statement dated further ahead would keep every honest later one out."""
_PROBE = X25519PrivateKey.generate()


class NodeKeyError(Exception):
    """A rotation is refused; `reason` is stable, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What the server knows of a node.

    Args:
        last_issued_at_ms: `issued_at_ms` of the rotation that was taken last; 0 when none was.
    """

    cluster_id: str
    node_id: str
    identity_key: bytes
    sealing_key: bytes
    last_issued_at_ms: int


def sign_rotation(
    *, cluster_id: str, node_id: str, old: NodeKeys, new: NodeKeys, issued_at_ms: int
) -> trust_pb2.Signed:
    """The statement that replaces `old` by `new`, signed by both identities (once when the identity stays).

    Args:
        issued_at_ms: server time as the node knows it, for its own clock may be wrong; growing with each rotation.
    """
    identity, sealing = new.identity.public_key, new.sealing_public
    stays = identity == old.identity.public_key
    statement = trust_pb2.NodeKeyRotationStatement(
        cluster_id=cluster_id,
        node_id=node_id,
        identity_key=b"" if stays else identity,
        sealing_key=b"" if sealing == old.sealing_public else sealing,
        issued_at_ms=issued_at_ms,
    ).SerializeToString()
    signed = old.identity.sign(Domain.NODE_KEY, statement)
    if not stays:
        new.identity.add(signed, Domain.NODE_KEY)
    return signed


def judge_rotation(signed: trust_pb2.Signed, known: KnownKeys, *, now_ms: int) -> KnownKeys:
    """What the server knows of the node once the statement is taken; `known` itself when it was taken before, so that
    a lost answer is simply given again.

    Args:
        now_ms: Unix milliseconds on the server.

    Raises:
        NodeKeyError: MALFORMED, WRONG_SIGNER, WRONG_CLUSTER, WRONG_NODE, STALE or TOO_EARLY.
    """
    said = _parse(signed)
    identity = said.identity_key or known.identity_key
    sealing = said.sealing_key or known.sealing_key
    signers = {key_id(key): key for key in (known.identity_key, identity)}
    try:
        good = envelope.verified_signers(signed, domain=Domain.NODE_KEY, keys=signers)
    except EnvelopeError as error:
        raise NodeKeyError("WRONG_SIGNER", "a signature by a key that is named does not verify") from error
    if good != signers.keys():
        raise NodeKeyError("WRONG_SIGNER", "it is not signed by the identity key in force and by the new one")
    if said.cluster_id != known.cluster_id:
        raise NodeKeyError("WRONG_CLUSTER", "it is for another cluster")
    if said.node_id != known.node_id:
        raise NodeKeyError("WRONG_NODE", "it is for another node")
    if (identity, sealing) == (known.identity_key, known.sealing_key):
        if said.issued_at_ms == known.last_issued_at_ms:
            return known
        raise NodeKeyError("MALFORMED", "it changes nothing")
    if said.issued_at_ms <= known.last_issued_at_ms:
        raise NodeKeyError("STALE", "it is not newer than the rotation that was taken last")
    if said.issued_at_ms > now_ms + MAX_AHEAD_MS:
        raise NodeKeyError("TOO_EARLY", "it is dated ahead of the server's clock")
    return KnownKeys(known.cluster_id, known.node_id, identity, sealing, said.issued_at_ms)


def _parse(signed: trust_pb2.Signed) -> trust_pb2.NodeKeyRotationStatement:
    if len(signed.statement) > MAX_STATEMENT_BYTES or not 1 <= len(signed.signatures) <= 2:
        raise NodeKeyError("MALFORMED", "a rotation has a short statement and one or two signatures")
    try:
        said = trust_pb2.NodeKeyRotationStatement.FromString(signed.statement)
    except DecodeError as error:
        raise NodeKeyError("MALFORMED", "the statement is no NodeKeyRotationStatement") from error
    if not said.identity_key and not said.sealing_key:
        raise NodeKeyError("MALFORMED", "it names no new key")
    if any(key and len(key) != PUBLIC_KEY_BYTES for key in (said.identity_key, said.sealing_key)):
        raise NodeKeyError("MALFORMED", f"a public key has {PUBLIC_KEY_BYTES} bytes")
    if said.sealing_key:
        try:
            _PROBE.exchange(X25519PublicKey.from_public_bytes(said.sealing_key))
        except ValueError:  # small order: what is sealed to it could be opened by anybody (RFC 7748, section 6.1)
            raise NodeKeyError("MALFORMED", "the sealing key is no usable X25519 key") from None
    return said
