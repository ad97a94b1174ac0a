"""The certificate that every replica shows: when another one is due, of which CA, and for which names."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from cryptography import x509

from fleet import tls, tls_certificates
from fleet.tls import split_endpoint
from fleet.tls_certificates import CertifiedKey
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.database.writer import Transaction
from fleet_server.trust import tls_phases, tls_store
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_keys import TlsRing

RECENT = dt.timedelta(days=2 * tls_certificates.LEAF_DAYS)
MAX_HOSTS = 100
"""Names in a certificate that replicas add theirs to: past it it begins anew."""


class LeafIssuer:
    """Issues it as one replica sees it.

    Args:
        trust: whose CAs sign it.
        hosts: names and addresses of this replica, which it has to be for; the first names it.
    """

    def __init__(self, trust: TrustService, hosts: Sequence[str]) -> None:
        self._trust = trust
        self._hosts = tuple(hosts)

    def covers(self, pair: CertifiedKey) -> bool:
        """Whether a certificate is for each of this replica's names."""
        named = tls_certificates.leaf_hosts(pair.certificate_pem)
        return set(tls_certificates.host_names(self._hosts)) <= set(named)

    def is_due(self, ring: TlsRing) -> bool:
        """Whether another one has to be issued."""
        return self._is_to_be_replaced(ring) or ring.leaf is None or not self.covers(ring.leaf.pair)

    def ensure(self, tx: Transaction, ring: TlsRing) -> None:
        """Issue one if it is due, and a CA can sign it that has not ended.

        Raises:
            SealError: the CA's key does not open.
        """
        issuer, now_ms = tls_phases.issuer(ring.cas), self._trust.parts.clock.now_ms()
        if issuer is None or tls_phases.has_ended(issuer, now_ms) or not self.is_due(ring):
            return
        # All replicas show one certificate, and each may have names of its own. Those that are left out when it is
        # replaced are added by whoever misses them; names that nobody has any more go so.
        others = [split_endpoint(endpoint)[0] for endpoint in self._trust.bundle.endpoints]
        if ring.leaf is not None and not self._is_to_be_replaced(ring):
            named = tls_certificates.leaf_hosts(ring.leaf.pair.certificate_pem)
            others += named if len(named) < MAX_HOSTS else []
        hosts = list(dict.fromkeys(tls_certificates.host_names([*self._hosts, *others])))
        parts = self._trust.parts
        row = parts.tls_vault.new_leaf(ring.row(issuer.sha256), hosts, now_ms)
        tls_store.put_leaf(tx.conn, row)
        detail: Mapping[str, JSON] = {"ca": issuer.sha256.hex(), "hosts": hosts}
        subject = tls.certificate_sha256(row.certificate).hex()
        parts.audit.append(tx, AuditKind.TLS_LEAF_ISSUED, actor="server", subject=subject, detail=detail)

    def is_recent(self, ring: TlsRing) -> bool:
        """Whether the one that is shown was issued lately, as one of a CA is that was in use until it ended. If not,
        this machine's clock may have run years ahead."""
        if ring.leaf is None:
            return False
        begins = x509.load_pem_x509_certificate(ring.leaf.pair.certificate_pem).not_valid_before_utc
        return self._now() < begins + RECENT

    def _is_to_be_replaced(self, ring: TlsRing) -> bool:
        """Whether there is none, it is another CA's than has to sign it, two thirds of its life are over, or a clock
        that was wrong dated it ahead: nodes refuse it until then. Before its CA began it is this machine's clock that
        is wrong."""
        issuer = tls_phases.issuer(ring.cas)
        if ring.leaf is None or issuer is None or ring.leaf.ca_sha256 != issuer.sha256:
            return True
        certificate = x509.load_pem_x509_certificate(ring.leaf.pair.certificate_pem)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self._now() < begins:
            return tls_phases.has_begun(issuer, self._trust.parts.clock.now_ms())
        return self._now() >= begins + (ends - begins) * 2 / 3

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._trust.parts.clock.now_ms() / 1000, dt.UTC)
