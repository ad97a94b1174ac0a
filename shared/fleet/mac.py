"""HMAC-SHA256 (RFC 2104) under one key, many times: frames of a stream, rows of a table.

`hmac` looks the hash up, or copies a context behind two wrappers, for each message: 1.1 to 1.6 us where SHA-256 itself
takes 0.4. The two hashes of a key's padding are made once here and copied. Values are those of `hmac`, which a property
test holds.
"""

from __future__ import annotations

import hashlib

_BLOCK_BYTES = 64
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


class HmacSha256:
    """MACs under one key. Any thread may call; nothing of it changes.

    Args:
        key: any length; more than a block is hashed first.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(block.translate(_INNER))
        self._outer = hashlib.sha256(block.translate(_OUTER))

    def digest(self, *parts: bytes) -> bytes:
        """32 bytes over the parts, one after the other."""
        inner = self._inner.copy()
        for part in parts:
            inner.update(part)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()
