"""What lets an installation start: the product root's manifest, the first owner's claim, and a platform role grant."""

from __future__ import annotations

from fleet.envelope import Domain
from fleet.v1 import trust_pb2
from tests.vectors.cast import NOW_MS, Statement
from tests.vectors.keys import fixed_bytes, signer

INSTALLATION = "inst-0001"
OPERATOR = "op-0123456789abcdef"


def activation() -> list[Statement]:
    """In the order in which they are imported."""
    manifest = trust_pb2.ActivationStatement(
        installation_id=INSTALLATION,
        first_owner_key=signer("owner").public_key,
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 86_400_000,
    )
    claim = trust_pb2.OwnerClaimStatement(
        installation_id=INSTALLATION,
        challenge=fixed_bytes("owner challenge", 40),
        operator_id=OPERATOR,
        operator_name="ada",
        issued_at_ms=NOW_MS,
    )
    grant = trust_pb2.PlatformRoleGrantStatement(
        installation_id=INSTALLATION,
        operator_id=OPERATOR,
        operator_name="ada",
        role="platform-admin",
        issued_at_ms=NOW_MS,
        not_after_ms=NOW_MS + 86_400_000,
    )
    return [
        Statement("activation", Domain.ACTIVATION, ("product-root",), manifest),
        Statement("owner-claim", Domain.OWNER_CLAIM, ("owner",), claim),
        Statement("platform-grant", Domain.PLATFORM_GRANT, ("product-root",), grant),
    ]
