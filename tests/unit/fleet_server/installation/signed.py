"""What the product root and the first owner sign in these tests."""

from typing import Any

from fleet.envelope import Domain, Signer
from fleet.v1 import trust_pb2

ROOT = Signer.generate()
OWNER = Signer.generate()
STRANGER = Signer.generate()
INSTALLATION = "i-" + "0" * 32
OPERATOR = "op-" + "a" * 16
NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


def manifest(by: Signer = ROOT, *, domain: Domain = Domain.ACTIVATION, **fields: Any) -> trust_pb2.Signed:
    """A good manifest, but for `fields`."""
    usual: dict[str, Any] = {
        "installation_id": INSTALLATION,
        "first_owner_key": OWNER.public_key,
        "issued_at_ms": NOW_MS,
        "not_after_ms": NOW_MS + DAY_MS,
    }
    return by.sign(domain, trust_pb2.ActivationStatement(**(usual | fields)).SerializeToString())


def grant(by: Signer = ROOT, *, domain: Domain = Domain.PLATFORM_GRANT, **fields: Any) -> trust_pb2.Signed:
    """A good grant, but for `fields`."""
    usual: dict[str, Any] = {
        "installation_id": INSTALLATION,
        "operator_id": OPERATOR,
        "operator_name": "ben",
        "role": "platform-admin",
        "issued_at_ms": NOW_MS,
        "not_after_ms": NOW_MS + DAY_MS,
    }
    return by.sign(domain, trust_pb2.PlatformRoleGrantStatement(**(usual | fields)).SerializeToString())


def claim(
    challenge: bytes, by: Signer = OWNER, *, domain: Domain = Domain.OWNER_CLAIM, **fields: Any
) -> trust_pb2.Signed:
    """A good claim, but for `fields`."""
    usual: dict[str, Any] = {
        "installation_id": INSTALLATION,
        "challenge": challenge,
        "operator_id": "op-" + "0" * 16,
        "operator_name": "ada",
        "issued_at_ms": NOW_MS,
    }
    return by.sign(domain, trust_pb2.OwnerClaimStatement(**(usual | fields)).SerializeToString())
