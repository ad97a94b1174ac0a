"""mTLS: what a client certificate has to be, the binding of a session to it, and the issue of new ones.

TLS has verified the chain before anything here is asked; api_key and identity are checked as on the other listener.
"""

from __future__ import annotations

import datetime as dt
import hmac
from collections.abc import Mapping

from fleet import node_certificate
from fleet.clock import Clock
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.node_certificate import NodeCertificateError
from fleet.tls_certificates import CertifiedKey
from fleet.v1 import gateway_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Database
from fleet_server.database.writer import Transaction
from fleet_server.nodes.ownership import Epochs, write_as_newest
from fleet_server.sessions.rotations import ASKED_WINDOW_MS, OVER_BUDGET
from fleet_server.sessions.store import SessionRow, count_certificate
from fleet_server.trust.secrets import Secrets

log = get_logger(__name__)

CERTIFICATES_PER_DAY = 24
"""Of one node. One lasts a month: whoever asks more often has lost one after the other, or wears the audit out."""

_AGAIN = "get a new one over gateway_listen"


def client_certificate(certificate_pem: bytes, node_id: str, now_ms: int) -> bytes:
    """SHA-256 of the client certificate that a session of this node is to be bound to; empty for none.

    Args:
        certificate_pem: verified by TLS; empty on the listener that asks for none.
        node_id: whose identity the caller has proven.
        now_ms: Unix milliseconds.

    Raises:
        Refusal: CLIENT_CERTIFICATE.
    """
    if not certificate_pem:
        return b""
    try:
        shown = node_certificate.read(certificate_pem)
    except NodeCertificateError as error:
        raise _refused(f"{error}: {_AGAIN}") from error
    if not hmac.compare_digest(shown.node_id.encode(), node_id.encode()):
        raise _refused(f"the client certificate is another node's: {_AGAIN}, and never copy a state folder")
    if not shown.begins_ms <= now_ms < shown.ends_ms:  # TLS asks once a connection, which may live longer
        raise _refused(f"the client certificate has ended or has not begun: {_AGAIN}")
    return shown.sha256


def check_binding(row: SessionRow, certificate_pem: bytes, now_ms: int) -> int:
    """Refuse a session over anything but what it was made over. The Unix millisecond at which the certificate ends; 0
    without one.

    Raises:
        Refusal: CLIENT_CERTIFICATE.
    """
    shown, bound = client_certificate(certificate_pem, row.node_id, now_ms), row.client_certificate_sha256
    if hmac.compare_digest(shown, bound):
        return node_certificate.read(certificate_pem).ends_ms if shown else 0
    if not bound:
        raise _refused("this session was made without a client certificate: shake hands over this listener")
    if not shown:
        raise _refused("this session is bound to a client certificate: shake hands over this listener, or use mTLS")
    raise _refused("this session is bound to another client certificate: shake hands over this one")


def check_not_ended(ends_ms: int, now_ms: int) -> None:
    """Refuse to renew a session whose certificate has ended: TLS asks once a connection, which may live longer.

    Args:
        ends_ms: as `check_binding` said.

    Raises:
        Refusal: CLIENT_CERTIFICATE.
    """
    if ends_ms and now_ms >= ends_ms:
        raise _refused(f"the client certificate of this stream has ended: {_AGAIN}")


def _refused(detail: str) -> Refusal:
    return Refusal(Reason.CLIENT_CERTIFICATE, detail)


class NodeCertificates:
    """Issues client certificates over streams, once `offer` was called; the node CA is made with the first."""

    def __init__(
        self, *, database: Database, clock: Clock, audit: AuditService, secrets: Secrets, nodes: Epochs
    ) -> None:
        self._database = database
        self._nodes = nodes
        self._clock = clock
        self._audit = audit
        self._secrets = secrets
        self._ca: CertifiedKey | None = None

    def offer(self) -> bytes:
        """From now on there is a listener for them; the CA (PEM) that it has to verify them with."""
        self._ca = self._ca or node_certificate.derive_ca(self._secrets.derive("node-ca"), self._now())
        return self._ca.certificate_pem

    async def issue(self, node_id: str, epoch: int, public_key: bytes) -> gateway_pb2.NodeCertificate:
        """A certificate for the node at the other end of a stream, or why there is none.

        Args:
            node_id: proven.
            epoch: of the stream.
            public_key: as the node sent it.

        Raises:
            Refusal: SUPERSEDED, when the stream speaks for the node no more.
        """
        try:
            if self._ca is None:
                raise Refusal(Reason.NOT_FOUND, "this server has no mTLS listener: set mtls_listen, or clear mtls")
            return gateway_pb2.NodeCertificate(certificate=await self._issue(self._ca, node_id, epoch, public_key))
        except Refusal as refusal:
            if refusal.reason is Reason.SUPERSEDED:
                raise
            return gateway_pb2.NodeCertificate(reason=refusal.reason, detail=refusal.detail)

    async def _issue(self, ca: CertifiedKey, node_id: str, epoch: int, public_key: bytes) -> bytes:
        try:
            certificate = node_certificate.issue(ca, node_id, public_key, self._now())
        except NodeCertificateError as error:
            raise Refusal(Reason.MALFORMED, f"{error}: update the node") from error
        issued = node_certificate.read(certificate)
        detail: Mapping[str, JSON] = {"certificate_sha256": issued.sha256.hex(), "until_ms": issued.ends_ms}

        def work(tx: Transaction) -> int:
            subject = f"node:{node_id}"
            asked, until_ms = count_certificate(
                tx.conn, node_id, now_ms=self._clock.now_ms(), window_ms=ASKED_WINDOW_MS, limit=CERTIFICATES_PER_DAY
            )
            if asked <= CERTIFICATES_PER_DAY:
                self._audit.append(tx, AuditKind.NODE_CERTIFICATE_ISSUED, actor=subject, subject=subject, detail=detail)
                return 0
            if asked == CERTIFICATES_PER_DAY + 1:  # once in the window
                why: Mapping[str, JSON] = {"rotate": "certificate", "by": "server", "reason": OVER_BUDGET}
                self._audit.append(tx, AuditKind.NODE_ROTATION_REFUSED, actor=subject, subject=subject, detail=why)
            return until_ms

        until_ms = await write_as_newest(self._database, self._nodes, node_id, epoch, work)
        if until_ms:
            wait_min = (until_ms - self._clock.now_ms()) // 60_000 + 1
            raise Refusal(
                Reason.OVERLOADED,
                f"this node had {CERTIFICATES_PER_DAY} certificates in 24 hours: the next one in {wait_min} minutes",
            )
        log.info("node_certificate_issued", node_id=node_id, certificate_sha256=issued.sha256.hex())
        return certificate

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.now_ms() / 1000, dt.UTC)
