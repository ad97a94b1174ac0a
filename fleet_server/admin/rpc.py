"""Service Admin: every method of the proto is found here with its handler, or the server does not start.

One boundary for all: TLS version, token, role, and only then the request: its size, what its text and the role for it
allow, the handler, a status. A stranger's request is never read. Handlers know nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from fleet.errors import Refusal
from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller, OperatorService
from fleet_server.admin.approvals import ApprovalsApi
from fleet_server.admin.commands import CommandsApi
from fleet_server.admin.enrollment import EnrollmentApi
from fleet_server.admin.keys import KeysApi
from fleet_server.admin.nodes import NodesApi
from fleet_server.admin.operators import OperatorsApi
from fleet_server.admin.replicas import ReplicasApi
from fleet_server.admin.routes import RoutesApi
from fleet_server.admin.telemetry import TelemetryApi
from fleet_server.admin.texts import check_texts
from fleet_server.admin.tls import TlsApi
from fleet_server.admin.trail import TrailApi
from fleet_server.boundary import (
    Boundary,
    Context,
    RequestReader,
    bearer_token,
    bounded_deserializer,
    require_tls13,
)

SERVICE = "fleet.v1.Admin"
MAX_REQUEST_BYTES = 4 * 1024 * 1024
_SLOW_S = 60.0
"""Seconds that an operator's largest request may take."""

UnaryHandler = Callable[[Caller, Any], Awaitable[Message]]
StreamHandler = Callable[[Caller, Any], AsyncIterator[Message]]


@dataclass(frozen=True, slots=True)
class AdminRooms:
    """One file a room."""

    operators: OperatorsApi
    enrollment: EnrollmentApi
    nodes: NodesApi
    commands: CommandsApi
    replicas: ReplicasApi
    telemetry: TelemetryApi
    trail: TrailApi
    approvals: ApprovalsApi
    keys: KeysApi
    tls: TlsApi
    routes: RoutesApi


class Admin:
    """The operators' service.

    Args:
        require_active: refuses every call while the installation is not activated.
    """

    def __init__(
        self, *, rooms: AdminRooms, access: OperatorService, boundary: Boundary, require_active: Callable[[], None]
    ) -> None:
        self._access = access
        self._require_active = require_active
        self._boundary = boundary
        self._requests = RequestReader(slow_s=_SLOW_S)
        self._unary: Mapping[str, UnaryHandler] = {
            "WhoAmI": rooms.operators.who_am_i,
            "CreateOperator": rooms.operators.create,
            "ListOperators": rooms.operators.list_operators,
            "RevokeOperator": rooms.operators.revoke,
            "RotateOperatorToken": rooms.operators.rotate_token,
            "CreateJoinToken": rooms.enrollment.create_token,
            "ListJoinTokens": rooms.enrollment.list_tokens,
            "RevokeJoinToken": rooms.enrollment.revoke_token,
            "ListEnrollments": rooms.enrollment.list_enrollments,
            "DecideEnrollment": rooms.enrollment.decide,
            "ListNodes": rooms.nodes.list_nodes,
            "GetNode": rooms.nodes.get,
            "SetNodeState": rooms.nodes.set_state,
            "AdoptNodes": rooms.nodes.adopt,
            "ReplaceNode": rooms.enrollment.replace_node,
            "LabelNodes": rooms.nodes.label,
            "RotateNodes": rooms.nodes.rotate,
            "GetChecklist": rooms.nodes.checklist,
            "TickChecklist": rooms.nodes.tick,
            "ResumeNodes": rooms.nodes.resume,
            "IssueCommands": rooms.commands.issue,
            "ListCommands": rooms.commands.list_commands,
            "GetCommand": rooms.commands.get,
            "CancelCommands": rooms.commands.cancel,
            "ListReplicas": rooms.replicas.list_replicas,
            "LatestTelemetry": rooms.telemetry.latest,
            "TelemetryHistory": rooms.telemetry.history,
            "EnrollOperatorKey": rooms.approvals.enroll_key,
            "ListOperatorKeys": rooms.approvals.list_keys,
            "GetOwnerStatements": rooms.approvals.statements,
            "PutOwnerStatement": rooms.approvals.put_statement,
            "ProposeCommand": rooms.approvals.propose,
            "ListApprovals": rooms.approvals.list_approvals,
            "GetApproval": rooms.approvals.get,
            "SignApproval": rooms.approvals.sign,
            "CloseApproval": rooms.approvals.close,
            "ListKeys": rooms.keys.list_keys,
            "PrepareKey": rooms.keys.prepare,
            "ActivateKey": rooms.keys.activate,
            "RetireKey": rooms.keys.retire,
            "RevokeKey": rooms.keys.revoke,
            "GetKeyRollout": rooms.keys.rollout,
            "ListAuthorities": rooms.keys.list_authorities,
            "RotateAuthority": rooms.keys.rotate_authority,
            "ListTlsCas": rooms.tls.list_cas,
            "PrepareTlsCa": rooms.tls.prepare,
            "ActivateTlsCa": rooms.tls.activate,
            "RetireTlsCa": rooms.tls.retire,
            "RevokeTlsCa": rooms.tls.revoke,
            "CreateRoute": rooms.routes.create,
            "ListRoutes": rooms.routes.list_routes,
            "GetRoute": rooms.routes.get,
            "ExplainRoute": rooms.routes.explain,
            "RouteHistory": rooms.routes.history,
            "SetRouteEnabled": rooms.routes.set_enabled,
            "RemoveRoute": rooms.routes.remove,
            "AddRelay": rooms.routes.add_relay,
            "RemoveRelay": rooms.routes.remove_relay,
            "ListRelays": rooms.routes.list_relays,
        }
        self._streams: Mapping[str, StreamHandler] = {
            "WatchNodes": rooms.nodes.watch,
            "WatchCommands": rooms.commands.watch,
            "DrainReplica": rooms.replicas.drain,
            "DrainNodes": rooms.nodes.drain,
            "ExportAudit": rooms.trail.export,
            "WatchRoutes": rooms.routes.watch,
        }

    def handlers(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        methods = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods
        return grpc.method_handlers_generic_handler(SERVICE, {m.name: self._handler(m) for m in methods})

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        deserialize = bounded_deserializer(method, MAX_REQUEST_BYTES)
        if method.server_streaming:  # both are unary for the caller; see `RequestReader`
            return grpc.stream_stream_rpc_method_handler(
                self._stream_handler(method.name, self._streams[method.name]),
                request_deserializer=deserialize,
                response_serializer=_serialize,
            )
        return grpc.stream_unary_rpc_method_handler(
            self._unary_handler(method.name, self._unary[method.name]),
            request_deserializer=deserialize,
            response_serializer=_serialize,
        )

    def _unary_handler(self, name: str, handle: UnaryHandler) -> Any:
        async def run(context: Context) -> Message:
            return await handle(*await self._admit(name, context))

        async def handler(_: object, context: Context) -> Message:
            return await self._boundary.call(name, context, run(context))

        return handler

    def _stream_handler(self, name: str, handle: StreamHandler) -> Any:
        async def run(context: Context) -> AsyncIterator[Message]:
            async for message in handle(*await self._admit(name, context)):
                await self._access.check(bearer_token(context), name)  # a token revoked meanwhile sees no more
                yield message

        async def handler(_: object, context: Context) -> AsyncIterator[Message]:
            async for message in self._boundary.stream(name, context, run(context)):
                yield message

        return handler

    async def _admit(self, name: str, context: Context) -> tuple[Caller, Message]:
        """Who calls, and with what: nothing is read of a caller who may not make this call at all."""
        require_tls13(context)
        self._require_active()
        token = bearer_token(context)
        await self._access.check(token, name)
        request = await self._requests.read(context)
        if isinstance(request, Refusal):
            raise request
        caller = await self._access.authorise(token, name, request)
        check_texts(request)
        return caller, request


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
