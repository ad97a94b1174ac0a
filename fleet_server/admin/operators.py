"""Admin calls about operators and about the caller."""

from __future__ import annotations

from fleet.v1 import admin_pb2
from fleet.version import software_version
from fleet_server.admin.access import Caller, OperatorService
from fleet_server.admin.rules import Role
from fleet_server.admin.views import operator_view
from fleet_server.installation.service import InstallationService
from fleet_server.trust.service import TrustService


class OperatorsApi:
    """WhoAmI and the operators themselves."""

    def __init__(
        self, operators: OperatorService, trust: TrustService, installation: InstallationService, replica_id: str
    ) -> None:
        self._operators = operators
        self._installation = installation
        self._trust = trust
        self._replica_id = replica_id

    async def who_am_i(self, caller: Caller, _: admin_pb2.WhoAmIRequest) -> admin_pb2.WhoAmIResponse:
        """Name, role, and where the call arrived."""
        await self._trust.watch.look()  # another replica may have rotated the authority a moment ago
        return admin_pb2.WhoAmIResponse(
            operator=caller.name,
            role=caller.role.word,
            cluster_id=self._trust.cluster_id,
            cluster_name=self._trust.cluster_name,
            server_version=software_version(),
            replica_id=self._replica_id,
            authority_key=self._trust.authority.public_key,
        )

    async def create(
        self, caller: Caller, request: admin_pb2.CreateOperatorRequest
    ) -> admin_pb2.CreateOperatorResponse:
        """A new operator; the token is in this answer and nowhere else."""
        if request.role == Role.OWNER.word:
            await self._installation.require_platform_admin(caller.operator_id, "making an owner")
        operator, token = await self._operators.create(caller.name, request.name, request.role)
        return admin_pb2.CreateOperatorResponse(operator=operator_view(operator), token=token.reveal())

    async def list_operators(self, _: Caller, __: admin_pb2.ListOperatorsRequest) -> admin_pb2.ListOperatorsResponse:
        """All operators."""
        return admin_pb2.ListOperatorsResponse(operators=map(operator_view, await self._operators.all()))

    async def revoke(
        self, caller: Caller, request: admin_pb2.RevokeOperatorRequest
    ) -> admin_pb2.RevokeOperatorResponse:
        """End an operator's token."""
        may_end_owners = await self._installation.is_platform_admin(caller.operator_id)
        operator = await self._operators.revoke(caller.name, request.operator, may_end_owners=may_end_owners)
        return admin_pb2.RevokeOperatorResponse(operator=operator_view(operator))

    async def rotate_token(
        self, caller: Caller, request: admin_pb2.RotateOperatorTokenRequest
    ) -> admin_pb2.RotateOperatorTokenResponse:
        """A new token for an operator; it is in this answer and nowhere else."""
        may_owners = await self._installation.is_platform_admin(caller.operator_id)
        operator, token = await self._operators.rotate_token(caller, request.operator, may_rotate_owners=may_owners)
        return admin_pb2.RotateOperatorTokenResponse(
            operator=operator_view(operator), token=token.reveal(), own=operator.operator_id == caller.operator_id
        )
