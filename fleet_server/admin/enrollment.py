"""Admin calls about join tokens and enrollments."""

from __future__ import annotations

from fleet.clock import Clock
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.admin.paging import next_token, page_size
from fleet_server.admin.views import enrollment_view, join_token_view, node_view
from fleet_server.enrollment.service import EnrollmentService


class EnrollmentApi:
    """How nodes come in, as operators see it."""

    def __init__(self, enrollment: EnrollmentService, clock: Clock) -> None:
        self._enrollment = enrollment
        self._clock = clock

    async def create_token(
        self, caller: Caller, request: admin_pb2.CreateJoinTokenRequest
    ) -> admin_pb2.CreateJoinTokenResponse:
        """A new token; its secret is in this answer and nowhere else."""
        record, token = await self._enrollment.create_token(
            caller.name,
            site=request.site,
            ttl_s=request.ttl_s,
            max_uses=request.max_uses,
            auto_approve=request.auto_approve,
        )
        view = join_token_view(record, self._clock.now_ms())
        return admin_pb2.CreateJoinTokenResponse(join_token=view, token=token)

    async def list_tokens(
        self, _: Caller, request: admin_pb2.ListJoinTokensRequest
    ) -> admin_pb2.ListJoinTokensResponse:
        """A page of tokens, newest first."""
        limit, now_ms = page_size(request.page), self._clock.now_ms()
        found = await self._enrollment.list_tokens(page_token=request.page.token, limit=limit)
        return admin_pb2.ListJoinTokensResponse(
            join_tokens=[join_token_view(record, now_ms) for record in found], next_page_token=next_token(found, limit)
        )

    async def revoke_token(
        self, caller: Caller, request: admin_pb2.RevokeJoinTokenRequest
    ) -> admin_pb2.RevokeJoinTokenResponse:
        """End a token."""
        record = await self._enrollment.revoke_token(caller.name, request.token_id)
        return admin_pb2.RevokeJoinTokenResponse(join_token=join_token_view(record, self._clock.now_ms()))

    async def list_enrollments(
        self, _: Caller, request: admin_pb2.ListEnrollmentsRequest
    ) -> admin_pb2.ListEnrollmentsResponse:
        """A page of enrollments, newest first."""
        limit = page_size(request.page)
        found = await self._enrollment.list(request.state, page_token=request.page.token, limit=limit)
        return admin_pb2.ListEnrollmentsResponse(
            enrollments=map(enrollment_view, found), next_page_token=next_token(found, limit)
        )

    async def decide(
        self, caller: Caller, request: admin_pb2.DecideEnrollmentRequest
    ) -> admin_pb2.DecideEnrollmentResponse:
        """Approve or reject."""
        record = await self._enrollment.decide(
            caller.name,
            request.enrollment_id,
            approve=request.approve,
            fingerprint=request.fingerprint,
            name=request.name,
            labels=dict(request.labels),
            reason=request.reason,
        )
        return admin_pb2.DecideEnrollmentResponse(enrollment=enrollment_view(record))

    async def replace_node(
        self, caller: Caller, request: admin_pb2.ReplaceNodeRequest
    ) -> admin_pb2.ReplaceNodeResponse:
        """Approve a machine as a node that is there already."""
        node = await self._enrollment.replace_node(
            caller.name,
            request.node,
            request.enrollment_id,
            fingerprint=request.fingerprint,
            reason=request.reason,
        )
        return admin_pb2.ReplaceNodeResponse(node=node_view(node))
