"""Admin calls that show what nobody may change: the audit trail and the cluster's public keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleet.v1 import admin_pb2, session_pb2
from fleet_server.admin.access import Caller
from fleet_server.audit.service import AuditPage, AuditService
from fleet_server.nodes.service import NodeService
from fleet_server.trust.service import TrustService


class TrailApi:
    """Audit export and keys."""

    def __init__(self, audit: AuditService, trust: TrustService, nodes: NodeService) -> None:
        self._audit = audit
        self._trust = trust
        self._nodes = nodes

    async def export(
        self, _: Caller, request: admin_pb2.ExportAuditRequest
    ) -> AsyncIterator[admin_pb2.ExportAuditResponse]:
        """Rows and checkpoints in the order of storage."""
        async for page in self._audit.export(after=request.after, last=request.last, follow=request.follow):
            yield _page_view(page)

    async def keys(self, _: Caller, __: admin_pb2.ListKeysRequest) -> admin_pb2.ListKeysResponse:
        """Authority, command keys, and how many nodes hold which bundle."""
        view = await self._trust.keys_view()
        holders = await self._nodes.bundle_holders()
        return admin_pb2.ListKeysResponse(
            cluster_id=view.cluster_id,
            authority_key=view.authority_key,
            authority_generation=view.authority_generation,
            command_keys=[
                admin_pb2.CommandKeyView(
                    key_id=key_id,
                    phase=key.phase,
                    site=key.site,
                    not_before_ms=key.not_before_ms,
                    verify_until_ms=key.verify_until_ms,
                    created_at_ms=created_at_ms,
                )
                for key_id, key, created_at_ms in view.command_keys
            ],
            bundle_version=_version(view.bundle_version),
            bundle_expires_at_ms=view.bundle_expires_at_ms,
            holders=[
                admin_pb2.BundleHolders(version=_version(version), nodes=count)
                for version, count in sorted(holders.items(), reverse=True)
            ],
            tls_ca_sha256=view.tls_ca_sha256,
        )


def _page_view(page: AuditPage) -> admin_pb2.ExportAuditResponse:
    return admin_pb2.ExportAuditResponse(
        entries=[
            admin_pb2.AuditEntry(
                position=row.position,
                writer=row.writer,
                number=row.number,
                at_ms=row.at_ms,
                kind=row.kind,
                actor=row.actor,
                subject=row.subject,
                detail=row.detail,
                previous_hash=row.previous_hash,
                hash=row.hash,
            )
            for row in page.rows
        ],
        checkpoints=page.checkpoints,
    )


def _version(version: tuple[int, int]) -> session_pb2.BundleVersion:
    return session_pb2.BundleVersion(generation=version[0], number=version[1])
