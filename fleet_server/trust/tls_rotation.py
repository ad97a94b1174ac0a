"""Use cases around the server's TLS: CAs prepared, activated, retired, revoked; and the certificate that replicas show.

Each runs in one transaction under the cluster's lock: what `tls_phases` decides is written under new row MACs, audited,
and published as the next trust bundle, or nothing of it happens. A certificate of the CA that becomes ACTIVE is issued
in the same transaction (`tls_leaf`), so every replica shows the same one as soon as it hears of the step, which it does
twice a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fleet.errors import Refusal
from fleet.logs import get_logger
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.rules import JSON
from fleet_server.audit.spent import What
from fleet_server.certificates import ServedTls, ServerCertificates
from fleet_server.config import Settings
from fleet_server.database.engine import Connection
from fleet_server.database.writer import Transaction
from fleet_server.trust import phases, rollout, store, tls_phases, tls_ring, tls_store
from fleet_server.trust.keyring import Keyring, TrustSetupError
from fleet_server.trust.rollout import BundleHolding, Rollout, Version
from fleet_server.trust.rotation import Holdings
from fleet_server.trust.secrets import SealError
from fleet_server.trust.service import TrustService
from fleet_server.trust.tls_guards import check_reaches, check_shown
from fleet_server.trust.tls_keys import TlsRing
from fleet_server.trust.tls_leaf import LeafIssuer
from fleet_server.trust.tls_phases import TlsCa, TlsChange, TlsPhase
from fleet_server.trust.tls_store import TlsCaRow

log = get_logger(__name__)

CHECK_INTERVAL_S = 60.0
_KIND_OF = {
    TlsPhase.ACTIVE: AuditKind.TLS_CA_ACTIVATED,
    TlsPhase.OUTGOING: AuditKind.TLS_CA_OUTGOING,
    TlsPhase.RETIRED: AuditKind.TLS_CA_RETIRED,
    TlsPhase.REVOKED: AuditKind.TLS_CA_REVOKED,
}


@dataclass(frozen=True, slots=True)
class TlsCaInUse:
    """A TLS CA, and how many nodes hold a bundle with it: 0 once the newest bundle names it no more."""

    ca: TlsCa
    nodes: int


class TlsRotation:
    """Changes TLS CAs, and keeps the certificate that replicas show fresh.

    Args:
        trust: whose CAs they are.
        holdings: what nodes hold, as the nodes room knows it.
        hosts: names and addresses that the certificate is for; the first names it.
        shows: whether a certificate of a CA from outside is shown: by this process, or by a terminator.
        look: sees what lies in files.
        elsewhere: `elsewhere(conn, ca_sha256)`: ids of other replicas where none is. Any thread.
    """

    def __init__(
        self,
        trust: TrustService,
        holdings: Holdings,
        *,
        hosts: Sequence[str],
        shows: Callable[[bytes], bool],
        look: Callable[[], None] = lambda: None,
        elsewhere: Callable[[Connection, bytes], Sequence[str]] = lambda conn, ca_sha256: (),
    ) -> None:
        self._trust = trust
        self._vault = trust.parts.tls_vault
        self._clock = trust.parts.clock
        self._audit = trust.parts.audit
        self._holdings = holdings
        self._leaves = LeafIssuer(trust, hosts)
        self._shows = shows
        self._look = look
        self._elsewhere = elsewhere
        self._uncovered = asyncio.Event()

    @classmethod
    def of_server(
        cls,
        trust: TrustService,
        holdings: Holdings,
        settings: Settings,
        certificates: ServerCertificates,
        *,
        elsewhere: Callable[[Connection, bytes], Sequence[str]] = lambda conn, ca_sha256: (),
    ) -> TlsRotation:
        """That of a server with these settings, whose listeners show `certificates`; `trust` has loaded."""
        terminated = bool(settings.terminator_leaves())
        made = cls(
            trust,
            holdings,
            hosts=settings.certificate_hosts(),
            shows=lambda ca_der: terminated or certificates.can_show(ca_der),
            look=certificates.look,
            elsewhere=elsewhere,
        )

        def take(served: ServedTls) -> None:
            certificates.take(served)
            if not made._leaves.covers(served.leaf):
                made._uncovered.set()

        trust.serve_tls_with(take)
        known = trust.tls.served()
        if known is not None:
            take(known)
        return made

    # -- the certificate --------------------------------------------------------------------------------------------
    async def open(self, endpoints: Sequence[str], *, as_replica: bool = True) -> None:
        """Publish the bundle, and see to the certificate: before anything listens.

        Args:
            endpoints, as_replica: see `TrustService.publish_bundle`.

        Raises:
            Refusal, SealError, TrustSetupError: see `renew`.
        """
        await self._trust.publish_bundle(endpoints, as_replica=as_replica)
        await self.renew()

    async def renew(self) -> bool:
        """Issue the certificate that replicas show when there is none, it is due, not of the CA that has to sign it, or
        not for every host; or take up the one that another replica issued. An own CA that signs nothing of use any more
        is replaced first. Whether another one is shown.

        Raises:
            Refusal: the database is away, or no bundle was published yet.
            SealError, TrustSetupError: rows do not verify; what was shown stays.
        """
        before = self._trust.tls.leaf
        if before is not None and not self._leaves.is_due(self._trust.tls):
            return False

        def work(tx: Transaction, keyring: Keyring, next_version: Version) -> None:
            issuer = tls_phases.issuer(keyring.tls.cas)
            if issuer is not None and self._is_outlived(keyring.tls, issuer):
                self._replace_outlived(tx, keyring.tls, issuer, next_version)
            else:
                self._leaves.ensure(tx, keyring.tls)

        issuer = tls_phases.issuer(self._trust.tls.cas)
        if issuer is not None and tls_phases.has_ended(issuer, self._clock.now_ms()):
            log.error("tls_ca_ended", sha256=issuer.sha256.hex(), next="if it has not, set this machine's clock")
            if not self._is_outlived(self._trust.tls, issuer):
                return False
        await self._trust.change_keys(work)
        return self._trust.tls.leaf != before

    async def run(self) -> None:
        """Look each minute, and when another replica issued a certificate without this one's names, until cancelled.
        What fails is logged and tried again."""
        while True:
            await self._wait()
            self._look()
            try:
                await self.renew()
            except (Refusal, SealError, TrustSetupError) as error:
                log.error("certificate_renewal_failed", error=str(error))

    async def _wait(self) -> None:
        waiting = [asyncio.ensure_future(self._clock.sleep(CHECK_INTERVAL_S)), asyncio.ensure_future(self._called())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def _called(self) -> None:
        await self._uncovered.wait()
        self._uncovered.clear()

    # -- steps ------------------------------------------------------------------------------------------------------
    async def prepare(self, actor: str, certificate: bytes) -> TlsCa:
        """Let nodes trust another CA; nothing of it is shown yet. The same certificate again changes nothing.

        Args:
            certificate: of a CA from outside, PEM or DER; empty for a new one of this installation's own.

        Raises:
            Refusal: see `tls_phases.check_certificate` and `tls_phases.check_prepare`.
        """
        der = tls_phases.parse(certificate) if certificate else b""

        def work(tx: Transaction, keyring: Keyring, next_version: Version) -> bytes:
            now_ms = self._clock.now_ms()
            waiting = tls_phases.check_prepare(keyring.tls.cas, der)
            if waiting is not None:
                return waiting.sha256
            cluster_id = self._trust.cluster_id
            if der:
                tls_phases.check_certificate(der, now_ms)
                row = self._vault.brought_ca(cluster_id, der, now_ms=now_ms, first_bundle=next_version)
            else:
                row = self._vault.new_ca(cluster_id, phase=TlsPhase.PREPARED, now_ms=now_ms, first_bundle=next_version)
            self._store(tx, actor, row)
            return row.sha256

        return await self._changed(work)

    async def activate(self, actor: str, ca: str, *, override: str = "") -> tuple[TlsCa, Rollout[TlsCa]]:
        """Show a certificate of a PREPARED CA from now on, on every replica; the CA before it goes out.

        Args:
            ca: SHA-256 in hexadecimal, or the beginning of it.
            override: why it may not wait until every node trusts it; empty when it may.

        Raises:
            Refusal: see `tls_phases.activate`, `check_reaches` and `check_shown`.
        """
        measured: list[Rollout[TlsCa]] = []

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            found = tls_phases.find(keyring.tls.cas, ca)
            changes = tls_phases.activate(keyring.tls.cas, found)
            far = self._measure(tx.conn, found)
            measured[:] = [far]
            if changes:
                self._check(tx.conn, found, far, override)
                self._apply(tx, actor, keyring.tls, changes, _figures(far, override))
            return found.sha256

        if override:
            phases.checked_reason(override)
        return await self._changed(work), measured[0]

    async def retire(self, actor: str, ca: str, *, override: str = "") -> tuple[TlsCa, Rollout[TlsCa]]:
        """Let nodes trust an OUTGOING CA no longer; the rollout is that of the ACTIVE one, which they need then.

        Args:
            ca: SHA-256 in hexadecimal, or the beginning of it.
            override: why it may not wait until every node trusts the ACTIVE one; empty when it may.

        Raises:
            Refusal: see `tls_phases.retire`, `check_reaches` and `check_shown`.
        """
        measured: list[Rollout[TlsCa]] = []

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            found = tls_phases.find(keyring.tls.cas, ca)
            changes = tls_phases.retire(found)
            active = _active(keyring.tls)
            far = self._measure(tx.conn, active)
            measured[:] = [far]
            if changes:
                self._check(tx.conn, active, far, override)
                self._apply(tx, actor, keyring.tls, changes, _figures(far, override))
            return found.sha256

        if override:
            phases.checked_reason(override)
        return await self._changed(work), measured[0]

    async def revoke(self, actor: str, ca: str, *, reason: str) -> TlsCa:
        """Let nodes trust a CA no longer, at once; see `tls_phases.revoke`.

        Raises:
            Refusal: INVALID_ARGUMENT without a reason; see `tls_phases.revoke`.
        """
        phases.checked_reason(reason)

        def work(tx: Transaction, keyring: Keyring, _: Version) -> bytes:
            found = tls_phases.find(keyring.tls.cas, ca)
            self._apply(tx, actor, keyring.tls, tls_phases.revoke(keyring.tls.cas, found), {"reason": reason})
            return found.sha256

        return await self._changed(work)

    # -- views ------------------------------------------------------------------------------------------------------
    async def in_use(self) -> tuple[list[TlsCaInUse], list[Rollout[TlsCa]]]:
        """Every CA, oldest first, with the nodes that trust it; and the rollouts of those that nodes have to learn: the
        PREPARED one, and the ACTIVE one while another is OUTGOING."""
        cas = list(self._trust.tls.cas)
        published, holdings = await self._trust.parts.database.read(self._held)
        known = {ca.sha256 for ca in tls_phases.published(cas)}
        carried = {ca.sha256: rollout.carriers(ca, published) for ca in cas if ca.sha256 in known}
        used = [
            TlsCaInUse(ca, sum(held.nodes for held in holdings if held.version in carried.get(ca.sha256, ())))
            for ca in cas
        ]
        going = any(ca.phase is TlsPhase.OUTGOING for ca in cas)
        learned = [ca for ca in cas if ca.phase is TlsPhase.PREPARED or (going and ca.phase is TlsPhase.ACTIVE)]
        return used, [rollout.measure(ca, published, holdings) for ca in learned]

    def shown_from_outside(self) -> list[bytes]:
        """SHA-256 of the CAs from outside, PREPARED or ACTIVE, of which a certificate is or would be shown here."""
        standing = [ca for ca in self._trust.tls.cas if ca.phase in (TlsPhase.PREPARED, TlsPhase.ACTIVE) and not ca.own]
        return [ca.sha256 for ca in standing if self._shows(ca.certificate_der)]

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _changed(self, work: Callable[[Transaction, Keyring, Version], bytes]) -> TlsCa:
        sha256 = await self._trust.change_keys(work)
        return next(ca for ca in self._trust.tls.cas if ca.sha256 == sha256)

    def _check(self, conn: Connection, ca: TlsCa, far: Rollout[TlsCa], override: str) -> None:
        if override:
            return
        check_reaches(far)
        if not ca.own:
            here = [] if self._shows(ca.certificate_der) else [self._audit.writer]
            check_shown(ca, [*here, *self._elsewhere(conn, ca.sha256)])

    def _store(self, tx: Transaction, actor: str, row: TlsCaRow) -> None:
        tls_store.insert_ca(tx.conn, row)
        detail: Mapping[str, JSON] = {"own": bool(row.own), "bundle": [row.first_generation, row.first_number]}
        self._audit.append(tx, AuditKind.TLS_CA_PREPARED, actor=actor, subject=row.sha256.hex(), detail=detail)

    def _is_outlived(self, ring: TlsRing, issuer: TlsCa) -> bool:
        """Whether it has ended, and not only by a clock that runs years ahead: a CA that was revoked is so for good."""
        return tls_phases.has_ended(issuer, self._clock.now_ms()) and self._leaves.is_recent(ring)

    def _replace_outlived(self, tx: Transaction, ring: TlsRing, issuer: TlsCa, next_version: Version) -> None:
        """Let a PREPARED own CA, or a new one, take the place of the one that signs nothing of use any more, as if that
        was revoked: nobody could come to do it, for fleetctl believes its certificates no longer, either."""
        cluster_id, now_ms = self._trust.cluster_id, self._clock.now_ms()
        waiting = [ca for ca in ring.cas if ca.phase is TlsPhase.PREPARED]
        useless = [ca for ca in waiting if tls_phases.has_ended(ca, now_ms)]
        if not any(ca.own for ca in waiting if ca not in useless):
            phase = TlsPhase.PREPARED
            row = self._vault.new_ca(cluster_id, phase=phase, now_ms=now_ms, first_bundle=next_version)
            self._store(tx, "server", row)
            ring = self._vault.open(tls_store.cas(tx.conn, cluster_id), tls_store.leaf(tx.conn, cluster_id))
        standing = [ca for ca in ring.cas if ca not in useless]
        changes = [*(TlsChange(ca, TlsPhase.REVOKED) for ca in useless), *tls_phases.revoke(standing, issuer)]
        self._apply(tx, "server", ring, changes, {"reason": "it has ended"})

    def _apply(
        self, tx: Transaction, actor: str, ring: TlsRing, changes: Sequence[TlsChange], detail: Mapping[str, JSON]
    ) -> None:
        if not changes:
            return
        for change in changes:  # first, for it may refuse, and then nothing is to be written
            if change.phase is TlsPhase.REVOKED:
                self._audit.spent.add(tx.conn, What.TLS_CA, change.ca.sha256.hex())
        for change in changes:
            kind, subject = _KIND_OF[change.phase], change.ca.sha256.hex()
            self._audit.append(tx, kind, actor=actor, subject=subject, detail={"own": change.ca.own, **detail})
        now_ms = self._clock.now_ms()
        self._leaves.ensure(tx, tls_ring.change(tx, self._vault, self._trust.cluster_id, ring, changes, now_ms))

    def _measure(self, conn: Connection, ca: TlsCa) -> Rollout[TlsCa]:
        published, holdings = self._held(conn)
        return rollout.measure(ca, published, holdings)

    def _held(self, conn: Connection) -> tuple[list[Version], list[BundleHolding]]:
        since_ms = self._clock.now_ms() - rollout.SEEN_LATELY_MS
        holdings = [BundleHolding(*held) for held in self._holdings(conn, "", since_ms)]
        return store.published(conn, self._trust.cluster_id, [held.version for held in holdings]), holdings


def _active(ring: TlsRing) -> TlsCa:
    found = tls_phases.active(ring.cas)
    if found is None:  # `tls_ring` has checked it
        raise TrustSetupError("no TLS CA is ACTIVE: restore the table tls_cas from a backup")
    return found


def _figures(far: Rollout[TlsCa], override: str) -> dict[str, JSON]:
    figures: dict[str, JSON] = {"asked": far.asked, "holding": far.holding}
    if override:
        figures |= {"override": override, "lacking": far.asked - far.holding}
    return figures
