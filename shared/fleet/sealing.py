"""Seal bytes to a node's X25519 key with HPKE (RFC 9180) base mode, and nothing else can open them.

Suite: X25519, HKDF-SHA256, AES-256-GCM. ``info = b"fleet.v1/" + purpose + b"\\x00" + cluster id + node id +
fingerprint``, each id prefixed by its length as two big-endian bytes, so that what was sealed for one node and
purpose opens for no other.
"""

from __future__ import annotations

from enum import StrEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Purpose(StrEnum):
    """What is sealed."""

    API_KEY = "api-key"


class SealingError(Exception):
    """Sealed bytes do not open (another key, purpose or node, or changed on the way), or the key can seal nothing."""


def sealing_info(purpose: Purpose, cluster_id: str, node_id: str, fingerprint: bytes) -> bytes:
    """The HPKE info string."""
    parts = (cluster_id.encode(), node_id.encode(), fingerprint)
    return b"fleet.v1/" + purpose.value.encode() + b"\x00" + b"".join(len(p).to_bytes(2, "big") + p for p in parts)


def seal(plaintext: bytes, public_key: bytes, info: bytes) -> bytes:
    """Seal to a raw 32-byte X25519 public key; 48 bytes longer than `plaintext`.

    Raises:
        SealingError: no X25519 key, or one of small order under which everybody could open (RFC 7748, section 6.1).
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info=info)
    except ValueError as error:
        raise SealingError("the sealing key is not a usable X25519 public key") from error


def unseal(sealed: bytes, private_key: X25519PrivateKey, info: bytes) -> bytes:
    """Open with the private key.

    Raises:
        SealingError: it does not open.
    """
    try:
        return _SUITE.decrypt(sealed, private_key, info=info)
    except (InvalidTag, ValueError) as error:
        raise SealingError("sealed bytes do not open with this key for this purpose") from error
