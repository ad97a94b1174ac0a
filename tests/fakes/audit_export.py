"""Verifies an audit as who reads its export does."""

from collections.abc import Mapping

from fleet.audit_chain import ChainSummary, ChainVerifier
from fleet_server.audit.service import AuditService


async def verify_export(audit: AuditService, cluster_id: str, authority_keys: Mapping[bytes, bytes]) -> ChainSummary:
    """What a verifier that remembers nothing finds; it raises as `ChainVerifier` does."""
    verifier = ChainVerifier(cluster_id=cluster_id, authority_keys=authority_keys)
    async for page in audit.export():
        for row in page.rows:
            verifier.add_row(row)
        for checkpoint in page.checkpoints:
            verifier.add_checkpoint(checkpoint)
    return verifier.finish()
