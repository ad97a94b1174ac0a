"""Admin calls about what people sign: their keys, what owners signed, and commands that wait for signatures."""

from __future__ import annotations

from fleet.v1 import admin_pb2, session_pb2
from fleet_server.admin.access import Caller
from fleet_server.approvals.service import ApprovalService
from fleet_server.trust.people_store import OperatorKeyRow
from fleet_server.trust.service import TrustService


class ApprovalsApi:
    """Keys, owners' statements and approvals."""

    def __init__(self, trust: TrustService, approvals: ApprovalService) -> None:
        self._trust = trust
        self._approvals = approvals

    async def enroll_key(
        self, caller: Caller, request: admin_pb2.EnrollOperatorKeyRequest
    ) -> admin_pb2.EnrollOperatorKeyResponse:
        """Take the caller's public key, once it signed that the caller holds it."""
        row = await self._trust.people.enroll_key(caller.name, request.signed)
        return admin_pb2.EnrollOperatorKeyResponse(key=_key_view(row))

    async def list_keys(self, _: Caller, __: admin_pb2.ListOperatorKeysRequest) -> admin_pb2.ListOperatorKeysResponse:
        """Every enrolled key."""
        return admin_pb2.ListOperatorKeysResponse(keys=map(_key_view, await self._trust.people.keys()))

    async def statements(
        self, _: Caller, __: admin_pb2.GetOwnerStatementsRequest
    ) -> admin_pb2.GetOwnerStatementsResponse:
        """What owners signed, as they signed it."""
        kept = await self._trust.people.kept()
        return admin_pb2.GetOwnerStatementsResponse(
            owners=kept.owners, policy=kept.policy if kept.HasField("policy") else None, role_grants=kept.role_grants
        )

    async def put_statement(
        self, caller: Caller, request: admin_pb2.PutOwnerStatementRequest
    ) -> admin_pb2.PutOwnerStatementResponse:
        """Take one statement of the owner."""
        await self._trust.people.put(caller.name, request)
        generation, number = self._trust.bundle.version
        version = session_pb2.BundleVersion(generation=generation, number=number)
        return admin_pb2.PutOwnerStatementResponse(bundle_version=version)

    async def propose(
        self, caller: Caller, request: admin_pb2.ProposeCommandRequest
    ) -> admin_pb2.ProposeCommandResponse:
        """Issue a protected command, or keep it until enough people signed."""
        approval, issue = await self._approvals.propose(caller.name, request)
        return admin_pb2.ProposeCommandResponse(approval=await self._approvals.view(approval), issue=issue)

    async def list_approvals(
        self, _: Caller, request: admin_pb2.ListApprovalsRequest
    ) -> admin_pb2.ListApprovalsResponse:
        """What waits, or all."""
        return admin_pb2.ListApprovalsResponse(approvals=await self._approvals.listed(everything=request.all))

    async def get(self, _: Caller, request: admin_pb2.GetApprovalRequest) -> admin_pb2.GetApprovalResponse:
        """One."""
        return admin_pb2.GetApprovalResponse(approval=await self._approvals.get(request.approval_id))

    async def sign(self, caller: Caller, request: admin_pb2.SignApprovalRequest) -> admin_pb2.SignApprovalResponse:
        """Add a signature."""
        approval, issue = await self._approvals.sign(caller.name, request.approval_id, request.signature)
        return admin_pb2.SignApprovalResponse(approval=await self._approvals.view(approval), issue=issue)

    async def close(self, caller: Caller, request: admin_pb2.CloseApprovalRequest) -> admin_pb2.CloseApprovalResponse:
        """Reject or withdraw."""
        approval = await self._approvals.close(
            caller.name, request.approval_id, withdraw=request.withdraw, reason=request.reason
        )
        return admin_pb2.CloseApprovalResponse(approval=await self._approvals.view(approval))


def _key_view(row: OperatorKeyRow) -> admin_pb2.OperatorKeyView:
    return admin_pb2.OperatorKeyView(
        public_key=row.public_key, operator=row.operator, enrolled_at_ms=row.enrolled_at_ms
    )
