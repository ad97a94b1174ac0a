"""Trust bundles as somebody offers them, good ones and damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fleet import trust
from fleet.envelope import Domain, Signer
from fleet.trust import TrustState
from fleet.v1 import trust_pb2

CLUSTER = "cluster-1"
NOW_MS = 1_900_000_000_000
DAY_MS = 86_400_000
AUTHORITIES = {generation: Signer.from_private_bytes(bytes([generation]) * 32) for generation in range(1, 6)}
STRANGER = Signer.from_private_bytes(b"\x70" * 32)
COMMAND_KEY = Signer.from_private_bytes(b"\x80" * 32)
OTHER_COMMAND_KEY = Signer.from_private_bytes(b"\x81" * 32)


def certificate(
    by: Signer, key: bytes = COMMAND_KEY.public_key, cluster_id: str = CLUSTER, **fields: object
) -> trust_pb2.Signed:
    said = trust_pb2.KeyCertificateStatement(cluster_id=cluster_id, public_key=key, phase=trust_pb2.KEY_PHASE_ACTIVE)
    for name, value in fields.items():
        setattr(said, name, value)
    return by.sign(Domain.KEY_CERTIFICATE, said.SerializeToString())


@dataclass(frozen=True)
class Offer:
    """A bundle as somebody offers it; by default the good next step of its generation."""

    generation: int = 2
    number: int = 11
    cluster_id: str = CLUSTER
    authority: Signer = AUTHORITIES[2]
    signers: tuple[Signer, ...] = (AUTHORITIES[2],)
    certificates: tuple[trust_pb2.Signed, ...] | None = None
    domain: Domain = Domain.TRUST_BUNDLE
    issued_at_ms: int = NOW_MS
    expires_at_ms: int = NOW_MS + 7 * DAY_MS
    grace_s: int = 86_400
    damage: Callable[[trust_pb2.Signed], None] = field(default=lambda signed: None)

    def signed(self) -> trust_pb2.Signed:
        certificates = (certificate(self.authority),) if self.certificates is None else self.certificates
        raw = trust_pb2.TrustBundleStatement(
            cluster_id=self.cluster_id,
            generation=self.generation,
            number=self.number,
            authority_key=self.authority.public_key,
            command_keys=certificates,
            issued_at_ms=self.issued_at_ms,
            expires_at_ms=self.expires_at_ms,
            grace_s=self.grace_s,
            endpoints=["gateway.example:7443"],
        ).SerializeToString()
        made = trust_pb2.Signed(statement=raw)
        for signer in self.signers:
            signer.add(made, self.domain)
        self.damage(made)
        return made


def step(generation: int, number: int = 1, signers: tuple[Signer, ...] | None = None) -> Offer:
    """The first bundle of a later generation."""
    both = (AUTHORITIES[generation - 1], AUTHORITIES[generation])
    return Offer(generation=generation, number=number, authority=AUTHORITIES[generation], signers=signers or both)


def held(number: int = 10) -> TrustState:
    return trust.first(Offer(number=number).signed(), cluster_id=CLUSTER, authority_key=AUTHORITIES[2].public_key)


def flip_statement(signed: trust_pb2.Signed) -> None:
    signed.statement = signed.statement[:-1] + bytes([signed.statement[-1] ^ 1])


def drop_signatures(signed: trust_pb2.Signed) -> None:
    del signed.signatures[:]


def as_garbage(signed: trust_pb2.Signed) -> None:
    signed.statement = b"\xff\xff\xff"
    drop_signatures(signed)
    AUTHORITIES[2].add(signed, Domain.TRUST_BUNDLE)


def forge_signature(signed: trust_pb2.Signed) -> None:
    signed.signatures.add(key_id=AUTHORITIES[3].key_id, value=bytes(64))
