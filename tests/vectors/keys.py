"""Keys of the vectors: made from fixed seeds, so that everybody gets the same bytes. They protect nothing."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fleet.envelope import Signer

SIGNER_CLASSES = {
    "product-root": "product root",
    "owner": "owner",
    "next-owner": "owner",
    "operator-anna": "operator",
    "operator-ben": "operator",
    "authority-1": "authority",
    "authority-2": "authority",
    "command-key-1": "command key",
    "command-key-2": "command key",
    "node-1": "node identity",
    "node-1-next": "node identity",
    "node-2": "node identity",
    "node-3": "node identity",
}
X25519_USES = {
    "node-1-sealing": "node sealing",
    "node-1-sealing-next": "node sealing",
    "node-share": "handshake share of the node",
    "server-share": "handshake share of the server",
    "hpke-ephemeral": "ephemeral key of the sealed example",
}


def fixed_bytes(label: str, length: int) -> bytes:
    """Bytes that look random and never change: SHA-256 of the label and a block number, repeated."""
    blocks = (hashlib.sha256(f"fleet test vector {label} {n}".encode()).digest() for n in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def signer(name: str) -> Signer:
    """The Ed25519 key `name`."""
    if name not in SIGNER_CLASSES:
        raise KeyError(name)
    return Signer.from_private_bytes(fixed_bytes(f"ed25519 {name}", 32))


def exchange_key(name: str) -> X25519PrivateKey:
    """The X25519 key `name`."""
    if name not in X25519_USES:
        raise KeyError(name)
    return X25519PrivateKey.from_private_bytes(fixed_bytes(f"x25519 {name}", 32))


def exchange_public(name: str) -> bytes:
    """Raw public half of the X25519 key `name`."""
    return exchange_key(name).public_key().public_bytes_raw()


def as_json() -> dict[str, Any]:
    """The file keys.json."""
    return {
        "ed25519": [
            {
                "name": name,
                "class": holder,
                "seed": signer(name).private_bytes().hex(),
                "public": signer(name).public_key.hex(),
                "key_id": signer(name).key_id.hex(),
            }
            for name, holder in SIGNER_CLASSES.items()
        ],
        "x25519": [
            {
                "name": name,
                "use": use,
                "private": exchange_key(name).private_bytes_raw().hex(),
                "public": exchange_public(name).hex(),
            }
            for name, use in X25519_USES.items()
        ],
    }
