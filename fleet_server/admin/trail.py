"""Admin calls that show what nobody may change: the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.audit.service import AuditPage, AuditService


class TrailApi:
    """Audit export."""

    def __init__(self, audit: AuditService) -> None:
        self._audit = audit

    async def export(
        self, _: Caller, request: admin_pb2.ExportAuditRequest
    ) -> AsyncIterator[admin_pb2.ExportAuditResponse]:
        """Rows and checkpoints in the order of storage."""
        async for page in self._audit.export(after=request.after, last=request.last, follow=request.follow):
            yield _page_view(page)


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
