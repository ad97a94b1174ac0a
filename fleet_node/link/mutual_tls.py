"""The node's side of mTLS: when to show a client certificate, when to ask for one, and where it rests.

Mental model
    One file holds certificate and key and is replaced whole. Each request is for a fresh key, which is written only
    with its certificate. Without a usable certificate the node connects without mTLS, gets one over that stream, and
    moves. A listener that keeps refusing is given up for one attempt in three, so that a certificate that nobody
    accepts any more is replaced; it is asked for once in `ASK_EVERY_S` at most.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fleet import node_certificate, tls
from fleet.clock import Clock
from fleet.errors import Reason
from fleet.identity import PrivateFileError, read_private, write_private
from fleet.logs import get_logger
from fleet.node_audit import NodeAuditKind
from fleet.node_certificate import NodeCertificate, NodeCertificateError
from fleet.v1 import gateway_pb2
from fleet_node.link.caller import ClientCertificate
from fleet_node.link.key_audit import Unheard
from fleet_node.link.ports import KeyAuditPort

log = get_logger(__name__)

ASK_EVERY_S = 600.0
_FAILURES = 2
_COUNTED = frozenset({Reason.UNAVAILABLE, Reason.WRONG_CERTIFICATE, Reason.CLIENT_CERTIFICATE})
_KEY_BEGINS = b"-----BEGIN PRIVATE KEY-----"


class MutualTls:
    """See the module's mental model.

    Args:
        endpoints: that want a certificate.
        path: file in the state folder.
        node_id: the subject that a certificate must have.
        clock: decides what is due.
        audit: told which certificate is kept, and why one is not.
    """

    def __init__(
        self, endpoints: tuple[str, ...], path: Path, node_id: str, clock: Clock, audit: KeyAuditPort | None = None
    ) -> None:
        self.endpoints = endpoints
        self._path = path
        self._node_id = node_id
        self._clock = clock
        self._audit = audit or Unheard()
        self._failures = 0
        self._fresh = False
        self._choice: ClientCertificate | None = None
        self._asked_at: float | None = None
        self._pending: ec.EllipticCurvePrivateKey | None = None
        self._said: NodeCertificate | None = None
        self._held: ClientCertificate | None = None
        self._load()

    def choose(self) -> ClientCertificate | None:
        """The certificate for the next attempt; None to go without mTLS."""
        # A fresh one is tried whatever this machine's clock says.
        usable = self._said is not None and (self._fresh or self._clock.now_ms() < self._said.ends_ms)
        self._choice = self._held if usable and self._failures < _FAILURES else None
        if self._failures >= _FAILURES:
            self._failures = 0
        return self._choice

    def note_failure(self, reason: Reason) -> None:
        """The attempt that was chosen last failed."""
        if self._choice is None or reason not in _COUNTED:
            return
        self._failures += _FAILURES if reason is Reason.CLIENT_CERTIFICATE else 1

    def note_stream(self, *, certified: bool) -> None:
        """A stream is open."""
        if certified:
            self._failures = 0

    def request(self, *, certified: bool) -> gateway_pb2.CertificateRequest | None:
        """What to ask over an open stream; None while nothing is due.

        Args:
            certified: the stream is over mTLS, so that what the node holds is good.
        """
        now = self._clock.monotonic()
        if self._asked_at is not None and now - self._asked_at < ASK_EVERY_S:
            return None
        if certified and self._said is not None and self._clock.now_ms() < self._said.due_ms:
            return None
        self._asked_at = now
        self._pending = ec.generate_private_key(ec.SECP256R1())
        return gateway_pb2.CertificateRequest(public_key=node_certificate.public_key_bytes(self._pending))

    def take(self, answer: gateway_pb2.NodeCertificate) -> bool:
        """Keep what the server answered; whether there is a new certificate to move to."""
        key, self._pending = self._pending, None
        if key is None:
            return False
        if not answer.certificate:
            log.warning("client_certificate_refused", reason=answer.reason, detail=answer.detail)
            self._refuse(answer.reason)
            return False
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            said = self._checked(answer.certificate, key)
            certificate_pem = tls.der_to_pem(answer.certificate)
            write_private(self._path, certificate_pem + key_pem)  # some milliseconds on the loop, every 20 days
        except (NodeCertificateError, OSError) as error:
            log.warning("client_certificate_not_kept", error=str(error))
            self._refuse("DISK" if isinstance(error, OSError) else "NOT_OURS")
            return False
        self._said, self._held = said, ClientCertificate(self._path, certificate_pem, key_pem)
        self._failures, self._fresh = 0, True
        log.info("client_certificate_renewed", until_ms=said.ends_ms)
        self._audit.tell(
            NodeAuditKind.CREDENTIAL_STORED,
            subject="certificate",
            sha256=hashlib.sha256(answer.certificate).hexdigest(),
            until_ms=said.ends_ms,
        )
        return True

    def _refuse(self, reason: str) -> None:
        self._audit.refuse(NodeAuditKind.CREDENTIAL_REFUSED, reason, subject="certificate")

    def _checked(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> NodeCertificate:
        said = node_certificate.read(certificate)
        if said.node_id != self._node_id:
            raise NodeCertificateError("it is another node's")
        if said.public_key != node_certificate.public_key_bytes(key):
            raise NodeCertificateError("it is for another key")
        return said

    def _load(self) -> None:
        """What cannot be used is as good as lost: the node gets another one."""
        try:
            if not self._path.exists():
                return
            certificate_pem, begins, key = read_private(self._path).partition(_KEY_BEGINS)
            private = load_pem_private_key(begins + key, password=None)
            if not isinstance(private, ec.EllipticCurvePrivateKey):
                raise NodeCertificateError("its key is no P-256 key")
            self._said = self._checked(certificate_pem, private)
        except (ValueError, TypeError, OSError, PrivateFileError) as error:
            log.warning("client_certificate_not_usable", error=str(error))
            return
        self._held = ClientCertificate(self._path, certificate_pem, begins + key)
