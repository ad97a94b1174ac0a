"""The server's TLS as a replica reads it under the cluster's lock: made once when there is none, verified, and never
older than what was known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fleet.trust import TrustState
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.service import AuditService
from fleet_server.audit.spent import Spent, What
from fleet_server.database.writer import Transaction
from fleet_server.trust import tls_phases, tls_store
from fleet_server.trust.keyring import Keyring, TrustSetupError
from fleet_server.trust.parts import TrustParts
from fleet_server.trust.tls_keys import TlsRing, TlsVault
from fleet_server.trust.tls_phases import TlsChange, TlsPhase


def with_tls(
    tx: Transaction,
    parts: TrustParts,
    cluster_id: str,
    keyring: Keyring,
    newest: TrustState | None,
    before: Keyring | None,
    *,
    spent: Spent | None,
) -> Keyring:
    """The keyring with the server's TLS, read under the cluster's lock; a cluster without bundles gets its first CA.

    Args:
        newest: the newest bundle.
        before: what this replica, or this transaction, read before.
        spent: what was revoked; None while nobody can tell.

    Raises:
        TrustSetupError: no CA that verifies is ACTIVE.
    """
    vault, audit, now_ms = parts.tls_vault, parts.audit, parts.clock.now_ms()
    rows = tls_store.cas(tx.conn, cluster_id)
    if not rows and newest is None:
        row = vault.new_ca(cluster_id, phase=TlsPhase.ACTIVE, now_ms=now_ms, first_bundle=(keyring.generation, 1))
        tls_store.insert_ca(tx.conn, row)
        detail: dict[str, JSON] = {"own": True}
        audit.append(tx, AuditKind.TLS_CA_CREATED, actor="server", subject=row.sha256.hex(), detail=detail)
        rows = [row]
    ring = vault.open(rows, tls_store.leaf(tx.conn, cluster_id))
    known = before.tls if before is not None else TlsRing()
    _tell_refused(tx, audit, cluster_id, ring, known)
    version, named_der = ((0, 0), ()) if newest is None else (newest.version, newest.tls_ca_der)
    back = tls_phases.stepped_back(
        ring.cas,
        known.cas,
        version=version,
        named_der=named_der,
        revoked=lambda sha256: spent is not None and bool(spent.times(What.TLS_CA, sha256.hex())),
    )
    if back:
        ring = change(tx, vault, cluster_id, ring, back, now_ms)
        for each in back:
            detail = {"phase": each.phase.name, "found": each.ca.phase.name, "why": "its row was put back"}
            subject = each.ca.sha256.hex()
            audit.append(tx, AuditKind.TLS_CA_QUARANTINED, actor="server", subject=subject, detail=detail)
    if tls_phases.active(ring.cas) is None:
        raise TrustSetupError(
            f"no ACTIVE TLS CA verifies; changed around the server: {', '.join(ring.refused) or 'none'}."
            " Restore the table tls_cas from a backup"
        )
    return replace(keyring, tls=ring)


def change(
    tx: Transaction, vault: TlsVault, cluster_id: str, ring: TlsRing, changes: Sequence[TlsChange], now_ms: int
) -> TlsRing:
    """Write changes of phases; keys that are of no use any more are erased."""
    cas = tls_phases.after(ring.cas, changes, now_ms)
    for ca in cas:
        if ca not in ring.cas:
            tls_store.save_ca(tx.conn, vault.changed(ring.row(ca.sha256), ca))
    return vault.open(tls_store.cas(tx.conn, cluster_id), tls_store.leaf(tx.conn, cluster_id))


def _tell_refused(tx: Transaction, audit: AuditService, cluster_id: str, ring: TlsRing, before: TlsRing) -> None:
    for sha256 in ring.refused:
        if sha256 not in before.refused:
            audit.append(tx, AuditKind.TLS_CA_QUARANTINED, actor="server", subject=sha256, detail={})
    if ring.leaf_refused and not before.leaf_refused:
        audit.append(tx, AuditKind.TLS_LEAF_QUARANTINED, actor="server", subject=cluster_id, detail={})
