"""Verifies an installation's audit as its operators do."""

from fleet.audit_chain import ChainSummary, ChainVerifier, CheckpointMark
from fleet.audit_crosscheck import CrossCheck, CrossCheckSummary
from fleet.envelope import key_id
from fleet.node_signatures import NodeSignatures
from fleet.v1 import admin_pb2
from tests.integration.installation import Installation
from tests.integration.waiting import eventually


async def verify(
    installation: Installation, remembered: CheckpointMark | None = None
) -> tuple[ChainSummary, CrossCheckSummary]:
    """What `fleetctl audit verify` does."""
    authority = installation.server.trust.authority.public_key
    verifier = ChainVerifier(
        cluster_id=installation.server.trust.cluster_id,
        authority_keys={key_id(authority): authority},
        remembered=remembered,
    )
    between, signatures = CrossCheck(), NodeSignatures()
    async for page in installation.owner.follow("ExportAudit", admin_pb2.ExportAuditRequest()):
        for entry in page.entries:
            verifier.add_row(entry)
            between.add_row(entry)
            signatures.add_row(entry)
        for checkpoint in page.checkpoints:
            verifier.add_checkpoint(checkpoint)
    summary = verifier.finish()
    signatures.finish()
    return summary, between.finish()


async def agreed(installation: Installation, commands: int) -> tuple[ChainSummary, CrossCheckSummary]:
    """Both sides tell `commands` commands alike, and the authority has signed for all of it."""

    async def look() -> tuple[ChainSummary, CrossCheckSummary] | None:
        summary, between = await verify(installation)
        done = between.commands >= commands and not summary.uncovered_rows
        return (summary, between) if done else None

    found: tuple[ChainSummary, CrossCheckSummary] = await eventually(look, f"{commands} commands are told alike")
    return found
