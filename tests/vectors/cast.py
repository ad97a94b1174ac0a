"""Who and what every chapter of the story is about, and the form of a signed statement."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message

from fleet.envelope import Domain
from fleet.v1 import trust_pb2
from tests.vectors.keys import fixed_bytes, signer

NOW_MS = 1_900_000_000_000
CLUSTER = "5f0c7d0e9a1b4c2d"
NODE = "node-0001"
NAME = "press-7"
OTHER_NODE = "node-0002"
STREAM = "stream-0001"
API_KEY = "fak1.example-of-an-opaque-api-key"
TOKEN_SECRET = fixed_bytes("token secret", 32)
SESSION_TOKEN = fixed_bytes("session token", 32)
CHALLENGE = fixed_bytes("challenge", 64)
ARGUMENTS = b'{"top":5}'


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, the domain it is signed under, and the names of its signers."""

    name: str
    domain: Domain
    signers: tuple[str, ...]
    message: Message

    @property
    def raw(self) -> bytes:
        """The statement bytes. Deterministic: maps in key order."""
        return self.message.SerializeToString(deterministic=True)

    def signed(self) -> trust_pb2.Signed:
        """The envelope."""
        first, *more = self.signers
        signed = signer(first).sign(self.domain, self.raw)
        for name in more:
            signer(name).add(signed, self.domain)
        return signed
