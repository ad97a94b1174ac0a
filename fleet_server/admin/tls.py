"""Admin calls about the server's TLS CAs: which there are, who trusts them, and their rotation."""

from __future__ import annotations

from cryptography import x509

from fleet.v1 import admin_pb2
from fleet_server.admin.access import Caller
from fleet_server.trust.rollout import Rollout
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_phases import TlsCa
from fleet_server.trust.tls_rotation import TlsRotation


class TlsApi:
    """TLS CAs as operators see and rotate them. Never a private part."""

    def __init__(self, trust: TrustService, rotation: TlsRotation) -> None:
        self._trust = trust
        self._rotation = rotation

    async def list_cas(self, _: Caller, __: admin_pb2.ListTlsCasRequest) -> admin_pb2.ListTlsCasResponse:
        """Every TLS CA, how many nodes trust it, and how far those have come that nodes have to learn."""
        await self._trust.watch.look()  # another replica may have changed them a moment ago
        used, rollouts = await self._rotation.in_use()
        return admin_pb2.ListTlsCasResponse(
            cas=[_view(each.ca, each.nodes) for each in used],
            rollouts=map(_rollout_view, rollouts),
            chain=self._trust.bundle_chain_from(0, 0),
        )

    async def prepare(self, caller: Caller, request: admin_pb2.PrepareTlsCaRequest) -> admin_pb2.PrepareTlsCaResponse:
        """Let nodes trust another one."""
        return admin_pb2.PrepareTlsCaResponse(ca=_view(await self._rotation.prepare(caller.name, request.certificate)))

    async def activate(
        self, caller: Caller, request: admin_pb2.ActivateTlsCaRequest
    ) -> admin_pb2.ActivateTlsCaResponse:
        """Show a certificate of a PREPARED one from now on."""
        ca, far = await self._rotation.activate(caller.name, request.ca, override=request.override_reason)
        return admin_pb2.ActivateTlsCaResponse(ca=_view(ca), rollout=_rollout_view(far))

    async def retire(self, caller: Caller, request: admin_pb2.RetireTlsCaRequest) -> admin_pb2.RetireTlsCaResponse:
        """Let nodes trust an OUTGOING one no longer."""
        ca, far = await self._rotation.retire(caller.name, request.ca, override=request.override_reason)
        return admin_pb2.RetireTlsCaResponse(ca=_view(ca), rollout=_rollout_view(far))

    async def revoke(self, caller: Caller, request: admin_pb2.RevokeTlsCaRequest) -> admin_pb2.RevokeTlsCaResponse:
        """Let nodes trust one no longer, at once."""
        ca = await self._rotation.revoke(caller.name, request.ca, reason=request.reason)
        return admin_pb2.RevokeTlsCaResponse(ca=_view(ca))


def _view(ca: TlsCa, nodes: int = 0) -> admin_pb2.TlsCaView:
    certificate = x509.load_der_x509_certificate(ca.certificate_der)
    return admin_pb2.TlsCaView(
        sha256=ca.sha256,
        phase=admin_pb2.TlsCaPhase.ValueType(ca.phase),
        own=ca.own,
        subject=certificate.subject.rfc4514_string(),
        not_after_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        created_at_ms=ca.created_at_ms,
        since_ms=ca.since_ms,
        nodes=nodes,
        certificate=ca.certificate_der,
    )


def _rollout_view(far: Rollout[TlsCa]) -> admin_pb2.TlsCaRollout:
    return admin_pb2.TlsCaRollout(
        sha256=far.record.sha256,
        asked=far.asked,
        holding=far.holding,
        away=far.away,
        lacking=far.lacking,
        complete=far.complete,
    )
