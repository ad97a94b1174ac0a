"""Service Installation: what a caller without a token may ask on the operators' listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from fleet.errors import Refusal
from fleet.v1 import installation_pb2
from fleet_server.boundary import Boundary, Context, RequestReader, bounded_deserializer, peer_address, require_tls13
from fleet_server.installation.rules import MAX_SIGNED_BYTES, Grant
from fleet_server.installation.service import InstallationService, InstallationView

SERVICE = "fleet.v1.Installation"

Answer = Callable[[Any, str], Awaitable[Message]]


class InstallationApi:
    """The service.

    Args:
        installation: the room.
        boundary: around every call.
    """

    def __init__(self, installation: InstallationService, boundary: Boundary) -> None:
        self._installation = installation
        self._boundary = boundary
        self._requests = RequestReader(prompt_s=0.1, slow_s=9.9, places=8)
        self._answers: dict[str, Answer] = {
            "GetInstallation": self._get,
            "Activate": self._activate,
            "ClaimOwner": self._claim_owner,
            "ImportGrant": self._import_grant,
        }

    def handlers(self) -> grpc.GenericRpcHandler:
        """What `grpc.aio.Server.add_generic_rpc_handlers` takes."""
        methods = installation_pb2.DESCRIPTOR.services_by_name["Installation"].methods
        return grpc.method_handlers_generic_handler(SERVICE, {m.name: self._handler(m) for m in methods})

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        answer = self._answers[method.name]

        async def run(context: Context) -> Message:
            require_tls13(context)
            request = await self._requests.read(context)
            if isinstance(request, Refusal):
                raise request
            return await answer(request, peer_address(context))

        async def handler(_: object, context: Context) -> Message:
            return await self._boundary.call(method.name, context, run(context))

        return grpc.stream_unary_rpc_method_handler(  # unary for the caller; see `RequestReader`
            handler,
            request_deserializer=bounded_deserializer(method, MAX_SIGNED_BYTES),
            response_serializer=_serialize,
        )

    async def _get(self, _: installation_pb2.GetInstallationRequest, address: str) -> Message:
        return _view(await self._installation.view(address))

    async def _activate(self, request: installation_pb2.ActivateRequest, address: str) -> Message:
        return _view(await self._installation.activate(request.manifest, address))

    async def _claim_owner(self, request: installation_pb2.ClaimOwnerRequest, address: str) -> Message:
        claim, token = await self._installation.claim_owner(request.claim, address)
        return installation_pb2.ClaimOwnerResponse(
            operator_id=claim.operator_id, operator_name=claim.operator_name, token=token.reveal()
        )

    async def _import_grant(self, request: installation_pb2.ImportGrantRequest, address: str) -> Message:
        return _grant_view(await self._installation.import_grant(request.grant, address))


def _view(view: InstallationView) -> installation_pb2.GetInstallationResponse:
    held = view.authority
    claim = held.claim if held is not None else None
    return installation_pb2.GetInstallationResponse(
        installation_id=view.installation_id,
        cluster_id=view.cluster_id,
        strict=view.strict,
        active=not view.waits_for,
        waits_for=view.waits_for,
        root_key=view.root_key,
        first_owner_key=held.manifest.first_owner_key if held is not None else b"",
        activated_at_ms=held.activated_at_ms if held is not None else 0,
        owner_operator_id=claim.operator_id if claim is not None else "",
        owner_operator_name=claim.operator_name if claim is not None else "",
        challenge=view.challenge,
        grants=map(_grant_view, view.grants),
    )


def _grant_view(grant: Grant) -> installation_pb2.PlatformGrantView:
    return installation_pb2.PlatformGrantView(
        operator_id=grant.operator_id,
        operator_name=grant.operator_name,
        role=grant.role,
        issued_at_ms=grant.issued_at_ms,
        not_after_ms=grant.not_after_ms,
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
