"""Sign exact bytes under a domain; verify before parsing.

A signature is Ed25519 over ``b"fleet.v1/" + domain + b"\\x00" + statement`` (docs/protocol.md, "What is signed, and
how"). The verifier supplies the domain and the keys of the signer class that it expects; neither is taken from the
message, so a signature made for one purpose never serves another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from fleet.v1 import trust_pb2

KEY_ID_BYTES = 16
PUBLIC_KEY_BYTES = 32
MAX_SIGNATURES = 16
MAX_PARSED_KEYS = 1024
"""Public keys kept parsed: the same few sign again and again, and parsing one costs a tenth of a verification."""
_PREFIX = b"fleet.v1/"
# y coordinates of the eight points of small order, and their encodings that are not reduced (RFC 8032, section 5.1).
_FIELD = 2**255 - 19
_ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y = frozenset({0, 1, _FIELD - 1, _FIELD, _FIELD + 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})


class Domain(StrEnum):
    """What a signature is for. One statement type and one signer class each."""

    JOIN_TOKEN = "join-token"
    ENROLL = "enroll"
    BOOTSTRAP_POLL = "bootstrap-poll"
    BOOTSTRAP = "bootstrap"
    HANDSHAKE = "handshake"
    HANDSHAKE_SERVER = "handshake-server"
    STREAM = "stream"
    REAUTH = "reauth"
    COMMAND = "command"
    CANCEL = "cancel"
    INTENT = "intent"
    POLICY = "policy"
    ROLE_GRANT = "role-grant"
    OWNER = "owner"
    TRUST_BUNDLE = "trust-bundle"
    KEY_CERTIFICATE = "key-certificate"
    CONFIG = "config"
    LEASE = "lease"
    FLOOR = "floor"
    AUDIT_CHECKPOINT = "audit-checkpoint"
    NODE_AUDIT = "node-audit"
    ACTIVATION = "activation"
    OWNER_CLAIM = "owner-claim"
    PLATFORM_GRANT = "platform-grant"
    NODE_KEY = "node-key"
    OPERATOR_KEY = "operator-key"
    PROBE = "probe"
    PROBE_HOP = "probe-hop"


class EnvelopeError(Exception):
    """A signed thing does not verify.

    `reason` is UNKNOWN_KEY (no signature by an expected key) or BAD_SIGNATURE (an expected key is named, its
    signature is wrong), or MALFORMED.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def signing_input(domain: Domain, statement: bytes) -> bytes:
    """The exact bytes that are signed."""
    return _PREFIX + domain.encode() + b"\x00" + statement


def key_id(public_key: bytes) -> bytes:
    """First 16 bytes of SHA-256 of the raw public key."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]


class Signer:
    """An Ed25519 private key ready to sign; its key id is computed once."""

    __slots__ = ("_private", "key_id", "public_key")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    @classmethod
    def generate(cls) -> Signer:
        """A new random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> Signer:
        """From the 32-byte seed."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def private_bytes(self) -> bytes:
        """The 32-byte seed. For sealing at rest only."""
        return self._private.private_bytes_raw()

    def sign(self, domain: Domain, statement: bytes) -> trust_pb2.Signed:
        """Wrap `statement` with one signature."""
        signature = trust_pb2.Signature(key_id=self.key_id, value=self.sign_value(domain, statement))
        return trust_pb2.Signed(statement=statement, signatures=[signature])

    def sign_value(self, domain: Domain, statement: bytes) -> bytes:
        """The 64 signature bytes alone."""
        return self._private.sign(signing_input(domain, statement))

    def add(self, signed: trust_pb2.Signed, domain: Domain) -> None:
        """Append a further signature to `signed`."""
        signed.signatures.add(key_id=self.key_id, value=self.sign_value(domain, signed.statement))

    def __repr__(self) -> str:
        return f"Signer({self.key_id.hex()})"


def verify(signed: trust_pb2.Signed, *, domain: Domain, keys: Mapping[bytes, bytes]) -> bytes:
    """Verify that one of `keys` signed, and return the statement bytes.

    Args:
        signed: as received.
        domain: purpose that the verifier expects.
        keys: key id -> raw public key, only of the signer class that the verifier expects.

    Raises:
        EnvelopeError: nobody expected signed these bytes for this purpose.
    """
    signers = verified_signers(signed, domain=domain, keys=keys)
    if not signers:
        raise EnvelopeError("UNKNOWN_KEY", "no signature by a key that is trusted for this purpose")
    return signed.statement


def verify_one(signed: trust_pb2.Signed, *, domain: Domain, public_key: bytes) -> bytes:
    """`verify` against a single raw public key."""
    return verify(signed, domain=domain, keys={key_id(public_key): public_key})


def verified_signers(signed: trust_pb2.Signed, *, domain: Domain, keys: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """Key ids, out of `keys`, whose signature verifies. Signatures by strangers are passed over; a wrong one by a
    known key refuses all.

    Raises:
        EnvelopeError: MALFORMED or BAD_SIGNATURE.
    """
    if len(signed.signatures) > MAX_SIGNATURES:
        raise EnvelopeError(
            "MALFORMED",
            f"{len(signed.signatures)} signatures; at most {MAX_SIGNATURES} are allowed",
        )
    message = signing_input(domain, signed.statement)
    found: set[bytes] = set()
    for signature in signed.signatures:
        public_key = keys.get(signature.key_id)
        if public_key is None or signature.key_id in found:
            continue
        if not _verifies(public_key, signature.value, message):
            raise EnvelopeError(
                "BAD_SIGNATURE",
                f"signature by key {signature.key_id.hex()} does not verify",
            )
        found.add(signature.key_id)
    return frozenset(found)


def is_small_order(public_key: bytes) -> bool:
    """Whether an Ed25519 public key is one under which anybody can sign anything: OpenSSL verifies with it all the
    same."""
    return int.from_bytes(public_key, "little") & (2**255 - 1) in _SMALL_ORDER_Y


def _verifies(public_key: bytes, value: bytes, message: bytes) -> bool:
    key = _usable_key(public_key)
    if key is None:
        return False
    try:
        key.verify(value, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=MAX_PARSED_KEYS)
def _usable_key(public_key: bytes) -> Ed25519PublicKey | None:
    if is_small_order(public_key):
        return None
    try:
        return Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return None
