"""Frame keys, counters and MACs of an open stream.

Both ends derive one key per direction from the two X25519 shares of the handshake; the salt is SHA-256 over both
signed handshake statements, so the key belongs to exactly that handshake. Whoever terminates TLS in between can read,
delay or drop control frames, and nothing else: a changed, repeated, reordered or left-out frame ends the stream
(docs/protocol.md, "Frames").
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fleet.mac import HmacSha256
from fleet.v1 import gateway_pb2

_INFO = b"fleet.v1/frame-keys\x00"
_NODE_TO_SERVER = b"n2s\x00"
_SERVER_TO_NODE = b"s2n\x00"


class ChannelError(Exception):
    """A control frame is not the next one of this stream, or not from its other end."""


@dataclass(frozen=True, slots=True, repr=False)
class FrameKeys:
    """One HMAC-SHA256 key per direction."""

    node_to_server: bytes
    server_to_node: bytes

    def pack(self) -> bytes:
        """64 bytes, for sealing beside the session when another replica may take the stream."""
        return self.node_to_server + self.server_to_node

    @classmethod
    def unpack(cls, packed: bytes) -> FrameKeys:
        """Inverse of `pack`."""
        if len(packed) != 64:
            raise ValueError("packed frame keys have 64 bytes")
        return cls(packed[:32], packed[32:])


def derive_frame_keys(
    private: X25519PrivateKey,
    peer_share: bytes,
    node_statement: bytes,
    server_statement: bytes,
) -> FrameKeys:
    """X25519, then HKDF-SHA256 with salt = SHA-256(node statement ‖ server statement), 64 bytes: node→server,
    server→node.

    Raises:
        ChannelError: the peer's share is not a usable public key.
    """
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(peer_share))
    except ValueError as error:
        raise ChannelError("the peer's X25519 share is not usable") from error
    salt = hashlib.sha256(node_statement + server_statement).digest()
    return FrameKeys.unpack(HKDF(algorithm=SHA256(), length=64, salt=salt, info=_INFO).derive(shared))


class FrameSealer:
    """Wraps outgoing bodies; one per direction and stream."""

    __slots__ = ("_counter", "_direction", "_mac")

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._mac = HmacSha256(key)
        self._direction = direction
        self._counter = 0

    def seal(self, body: bytes) -> gateway_pb2.ControlFrame:
        """The next control frame."""
        self._counter += 1
        return gateway_pb2.ControlFrame(
            counter=self._counter,
            body=body,
            mac=_mac(self._mac, self._direction, self._counter, body),
        )


class FrameOpener:
    """Checks incoming control frames; one per direction and stream."""

    __slots__ = ("_counter", "_direction", "_mac")

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._mac = HmacSha256(key)
        self._direction = direction
        self._counter = 0

    def open(self, frame: gateway_pb2.ControlFrame) -> bytes:
        """The body, when the frame is exactly the next one.

        Raises:
            ChannelError: a frame was left out, repeated, reordered, changed, or comes from somebody else.
        """
        body = frame.body
        if not hmac.compare_digest(frame.mac, _mac(self._mac, self._direction, frame.counter, body)):
            raise ChannelError("frame MAC does not verify")
        if frame.counter != self._counter + 1:
            raise ChannelError(f"frame {frame.counter} arrived where {self._counter + 1} was expected")
        self._counter = frame.counter
        return body


def node_end(keys: FrameKeys) -> tuple[FrameSealer, FrameOpener]:
    """Sealer and opener for the node."""
    return FrameSealer(keys.node_to_server, _NODE_TO_SERVER), FrameOpener(keys.server_to_node, _SERVER_TO_NODE)


def server_end(keys: FrameKeys) -> tuple[FrameSealer, FrameOpener]:
    """Sealer and opener for the server."""
    return FrameSealer(keys.server_to_node, _SERVER_TO_NODE), FrameOpener(keys.node_to_server, _NODE_TO_SERVER)


def _mac(keyed: HmacSha256, direction: bytes, counter: int, body: bytes) -> bytes:
    return keyed.digest(direction + counter.to_bytes(8, "big"), body)
