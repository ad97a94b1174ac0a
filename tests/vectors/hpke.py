"""HPKE base mode by hand (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, one message, no aad), with a
given ephemeral key.

The product's library draws the ephemeral key itself, so it cannot make a vector twice; and a second implementation is
what shows that another language will meet it.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEM_ID = (0x0020).to_bytes(2, "big")
_SUITE_ID = b"HPKE" + _KEM_ID + (0x0001).to_bytes(2, "big") + (0x0002).to_bytes(2, "big")
_KEM_SUITE_ID = b"KEM" + _KEM_ID
_MODE_BASE = b"\x00"


def seal_with_ephemeral(plaintext: bytes, public_key: bytes, ephemeral: X25519PrivateKey, info: bytes) -> bytes:
    """enc (32 bytes) followed by ciphertext and tag."""
    enc = ephemeral.public_key().public_bytes_raw()
    shared = _kem_shared(ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key)), enc + public_key)
    key, nonce = _schedule(shared, info)
    return enc + AESGCM(key).encrypt(nonce, plaintext, b"")


def open_sealed(sealed: bytes, private: X25519PrivateKey, info: bytes) -> bytes:
    """The plaintext."""
    enc, ciphertext = sealed[:32], sealed[32:]
    public_key = private.public_key().public_bytes_raw()
    shared = _kem_shared(private.exchange(X25519PublicKey.from_public_bytes(enc)), enc + public_key)
    key, nonce = _schedule(shared, info)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


def _kem_shared(dh: bytes, kem_context: bytes) -> bytes:
    prk = _extract(_KEM_SUITE_ID, b"", b"eae_prk", dh)
    return _expand(_KEM_SUITE_ID, prk, b"shared_secret", kem_context, 32)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    psk_id_hash = _extract(_SUITE_ID, b"", b"psk_id_hash", b"")
    info_hash = _extract(_SUITE_ID, b"", b"info_hash", info)
    context = _MODE_BASE + psk_id_hash + info_hash
    secret = _extract(_SUITE_ID, shared, b"secret", b"")
    key = _expand(_SUITE_ID, secret, b"key", context, 32)
    return key, _expand(_SUITE_ID, secret, b"base_nonce", context, 12)


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, hashlib.sha256)


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    okm, block, number = b"", b"", 1
    while len(okm) < length:
        block = hmac.digest(prk, block + labelled + bytes([number]), hashlib.sha256)
        okm, number = okm + block, number + 1
    return okm[:length]
