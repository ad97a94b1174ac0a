"""TLS CAs and the server's certificate between the database and memory: made, sealed and marked on the way in, verified
and opened on the way out."""

from __future__ import annotations

import datetime as dt
import secrets as chance
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet import tls, tls_certificates
from fleet.logs import get_logger
from fleet.tls import certificate_sha256
from fleet.tls_certificates import CertifiedKey
from fleet_server.certificates import ServedTls
from fleet_server.trust import tls_phases
from fleet_server.trust.secrets import SealError, Secrets
from fleet_server.trust.tls_phases import TlsCa, TlsPhase
from fleet_server.trust.tls_store import TlsCaRow, TlsLeafRow

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Leaf:
    """The certificate that replicas show, and the CA that signed it, by SHA-256."""

    pair: CertifiedKey
    ca_sha256: bytes


@dataclass(frozen=True, slots=True, repr=False)
class TlsRing:
    """The server's TLS as one replica holds it.

    Args:
        cas: those whose rows verify, oldest first.
        rows: their rows, by SHA-256.
        leaf: None before the first, or when its row does not verify.
        refused: SHA-256, in hexadecimal, of CAs whose rows were changed around the server.
        leaf_refused: the leaf's row was.
    """

    cas: Sequence[TlsCa] = ()
    rows: Mapping[bytes, TlsCaRow] | None = None
    leaf: Leaf | None = None
    refused: tuple[str, ...] = ()
    leaf_refused: bool = False

    @property
    def published_der(self) -> list[bytes]:
        """CAs that nodes trust, the ACTIVE one first."""
        return [ca.certificate_der for ca in tls_phases.published(self.cas)]

    def row(self, sha256: bytes) -> TlsCaRow:
        """The row of a CA in `cas`."""
        return (self.rows or {})[sha256]

    def served(self) -> ServedTls | None:
        """What the listeners show; None while there is nothing yet."""
        active = tls_phases.active(self.cas)
        if self.leaf is None or active is None:
            return None
        issuer = next((ca for ca in self.cas if ca.sha256 == self.leaf.ca_sha256), None)
        return ServedTls(
            leaf=self.leaf.pair,
            issuer_der=b"" if issuer is None else issuer.certificate_der,
            active_der=active.certificate_der,
            published_der=tuple(self.published_der),
        )


class TlsVault:
    """Seals keys of TLS CAs and leaves for the database, and opens them.

    Args:
        secrets: the installation's.
    """

    def __init__(self, secrets: Secrets) -> None:
        self._box = secrets.box
        self._ca_mac = secrets.row_mac("tls_cas")
        self._leaf_mac = secrets.row_mac("tls_leaves")

    def new_ca(self, cluster_id: str, *, phase: TlsPhase, now_ms: int, first_bundle: tuple[int, int]) -> TlsCaRow:
        """A row with a fresh CA of this installation's own."""
        # Two of one name would be told apart by their key ids alone.
        made = tls_certificates.make_ca(f"fleet-server CA {chance.token_hex(4)}", _utc(now_ms))
        row = _ca_row(cluster_id, made.certificate_der, phase, now_ms, first_bundle)
        sealed = self._box.seal(made.private_key_pem, row=_ca_place(row.sha256))
        return self._marked(replace(row, own=1, sealed_private=sealed))

    def brought_ca(
        self, cluster_id: str, certificate_der: bytes, *, now_ms: int, first_bundle: tuple[int, int]
    ) -> TlsCaRow:
        """A row with a CA from outside, PREPARED."""
        return self._marked(_ca_row(cluster_id, certificate_der, TlsPhase.PREPARED, now_ms, first_bundle))

    def changed(self, row: TlsCaRow, ca: TlsCa) -> TlsCaRow:
        """A verified row as `ca` says it stands now, under a new MAC."""
        sealed = row.sealed_private if ca.has_key else b""
        return self._marked(replace(row, phase=int(ca.phase), since_ms=ca.since_ms, sealed_private=sealed))

    def new_leaf(self, ca: TlsCaRow, hosts: Sequence[str], now_ms: int) -> TlsLeafRow:
        """A row with a fresh certificate, signed by an own CA.

        Raises:
            SealError: the CA's key does not open.
        """
        key = self._box.unseal(ca.sealed_private, row=_ca_place(ca.sha256))
        made = tls_certificates.make_leaf(CertifiedKey(tls.der_to_pem(ca.certificate), key), hosts, _utc(now_ms))
        sealed = self._box.seal(made.private_key_pem, row=_leaf_place(ca.cluster_id))
        row = TlsLeafRow(ca.cluster_id, ca.sha256, made.certificate_der, sealed, now_ms)
        return replace(row, mac=self._leaf_mac.compute(*row.authority_fields()))

    def open(self, rows: Iterable[TlsCaRow], leaf_row: TlsLeafRow | None) -> TlsRing:
        """What verifies of the rows, and names of what does not: that is used for nothing."""
        held: dict[bytes, TlsCaRow] = {}
        refused = []
        for row in rows:
            if self._ca_mac.verify(row.mac, *row.authority_fields()):
                held[row.sha256] = row
            else:
                refused.append(_shown(row.sha256))
        leaf = None if leaf_row is None else self._open_leaf(leaf_row)
        return TlsRing(
            cas=[_ca(row) for row in held.values()],
            rows=held,
            leaf=leaf,
            refused=tuple(refused),
            leaf_refused=leaf is None and leaf_row is not None,
        )

    def _open_leaf(self, row: TlsLeafRow) -> Leaf | None:
        if not self._leaf_mac.verify(row.mac, *row.authority_fields()):
            return None
        try:
            key = self._box.unseal(row.sealed_private, row=_leaf_place(row.cluster_id))
        except SealError:
            return None
        return Leaf(CertifiedKey(tls.der_to_pem(row.certificate), key), row.ca_sha256)

    def _marked(self, row: TlsCaRow) -> TlsCaRow:
        return replace(row, mac=self._ca_mac.compute(*row.authority_fields()))


def _ca_row(
    cluster_id: str, certificate_der: bytes, phase: TlsPhase, now_ms: int, first_bundle: tuple[int, int]
) -> TlsCaRow:
    return TlsCaRow(
        sha256=certificate_sha256(certificate_der),
        cluster_id=cluster_id,
        certificate=certificate_der,
        own=0,
        sealed_private=b"",
        phase=int(phase),
        created_at_ms=now_ms,
        since_ms=now_ms,
        first_generation=first_bundle[0],
        first_number=first_bundle[1],
    )


def _ca(row: TlsCaRow) -> TlsCa:
    return TlsCa(
        sha256=row.sha256,
        certificate_der=row.certificate,
        own=bool(row.own),
        has_key=bool(row.sealed_private),
        phase=TlsPhase(row.phase),
        created_at_ms=row.created_at_ms,
        since_ms=row.since_ms,
        first_bundle=(row.first_generation, row.first_number),
    )


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _ca_place(sha256: bytes) -> str:
    return f"tls_cas/{sha256.hex()}"


def _leaf_place(cluster_id: str) -> str:
    return f"tls_leaves/{cluster_id}"


def _utc(now_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
