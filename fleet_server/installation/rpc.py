"""Service Installation: what a caller without a token may ask on the operators' listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from fleet.errors import Reason, Refusal
from fleet.v1 import installation_pb2, trust_pb2
from fleet_server.boundary import (
    Boundary,
    Context,
    RequestReader,
    bearer_token,
    bounded_deserializer,
    peer_address,
    require_tls13,
)
from fleet_server.installation.rules import MAX_SIGNED_BYTES, Grant
from fleet_server.installation.service import InstallationService, InstallationView

SERVICE = "fleet.v1.Installation"

Answer = Callable[[Any, str | None], Awaitable[Message]]
"""Of a request, and of the address that pays; None for an operator."""
TrustChain = Callable[[str, int, int], Awaitable[Sequence[trust_pb2.Signed]]]


class InstallationApi:
    """The service.

    Args:
        installation: the room.
        boundary: around every call.
        authenticate: refuses a token that is no operator's. None is needed here, and whoever shows one is told more.
        chain: `chain(cluster_id, generation, number)`: signed bundles after that version.
    """

    def __init__(
        self,
        installation: InstallationService,
        boundary: Boundary,
        *,
        authenticate: Callable[[str], Awaitable[object]],
        chain: TrustChain,
    ) -> None:
        self._installation = installation
        self._authenticate = authenticate
        self._chain = chain
        self._boundary = boundary
        self._requests = RequestReader(prompt_s=0.1, slow_s=9.9, places=8)
        self._answers: dict[str, Answer] = {
            "GetInstallation": self._get,
            "Activate": self._activate,
            "ClaimOwner": self._claim_owner,
            "ImportGrant": self._import_grant,
            "GetTrustChain": self._trust_chain,
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
            return await answer(request, await self._payer(context))

        async def handler(_: object, context: Context) -> Message:
            return await self._boundary.call(method.name, context, run(context))

        return grpc.stream_unary_rpc_method_handler(  # unary for the caller; see `RequestReader`
            handler,
            request_deserializer=bounded_deserializer(method, MAX_SIGNED_BYTES),
            response_serializer=_serialize,
        )

    async def _payer(self, context: Context) -> str | None:
        if token := bearer_token(context):
            try:
                await self._authenticate(token)
            except Refusal as refusal:
                if refusal.reason is not Reason.UNAUTHENTICATED:  # a token that was lost must not keep its owner out
                    raise
            else:
                return None
        return peer_address(context)

    async def _get(self, _: installation_pb2.GetInstallationRequest, payer: str | None) -> Message:
        return _view(await self._installation.view(payer), named=payer is None)

    async def _activate(self, request: installation_pb2.ActivateRequest, payer: str | None) -> Message:
        return _view(await self._installation.activate(request.manifest, payer), named=payer is None)

    async def _claim_owner(self, request: installation_pb2.ClaimOwnerRequest, payer: str | None) -> Message:
        claim, token = await self._installation.claim_owner(request.claim, payer)
        return installation_pb2.ClaimOwnerResponse(
            operator_id=claim.operator_id, operator_name=claim.operator_name, token=token.reveal()
        )

    async def _import_grant(self, request: installation_pb2.ImportGrantRequest, payer: str | None) -> Message:
        return _grant_view(await self._installation.import_grant(request.grant, payer))

    async def _trust_chain(self, request: trust_pb2.GetTrustChainRequest, payer: str | None) -> Message:
        self._installation.admit(payer)
        chain = await self._chain(request.cluster_id, request.from_generation, request.from_number)
        return trust_pb2.GetTrustChainResponse(bundles=chain)


def _view(view: InstallationView, *, named: bool) -> installation_pb2.GetInstallationResponse:
    """As the caller may see it.

    Args:
        named: whether the people who administer it are.
    """
    held = view.authority
    claim = held.claim if held is not None else None
    told = claim if named else None
    return installation_pb2.GetInstallationResponse(
        installation_id=view.installation_id,
        cluster_id=view.cluster_id,
        strict=view.strict,
        active=not view.waits_for,
        waits_for=view.waits_for,
        root_key=view.root_key,
        first_owner_key=held.manifest.first_owner_key if held is not None else b"",
        activated_at_ms=held.activated_at_ms if held is not None else 0,
        owner_operator_id=told.operator_id if told is not None else "",
        owner_operator_name=told.operator_name if told is not None else "",
        challenge=view.challenge,
        grants=map(_grant_view, view.grants if named else ()),
        owner_claimed=claim is not None,
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
