"""The cluster's trust: its authority, its command keys, and the bundle that nodes hold.

Mental model
    What is signed with is loaded once and kept in memory, opened; the database holds it sealed.
    Everything that changes keys or bundles first locks the authority's row, so replicas take turns and numbers never
    collide. `bundle` is the newest bundle that this replica knows. It is read again each minute, for another replica
    may have published one.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fleet import trust
from fleet.clock import Clock
from fleet.envelope import Domain, Signer
from fleet.errors import Reason, Refusal
from fleet.logs import get_logger
from fleet.tls import certificate_sha256
from fleet.trust import CommandKey, TrustError, TrustState
from fleet.v1 import trust_pb2
from fleet_server.audit.kinds import AuditKind
from fleet_server.audit.service import AuditService
from fleet_server.database.engine import Connection, Database
from fleet_server.database.wakeup import Wakeup
from fleet_server.database.writer import Transaction
from fleet_server.trust import rules, store
from fleet_server.trust.keyring import Keyring, TrustSetupError, load_keyring
from fleet_server.trust.keys import HeldCommandKey, KeyVault
from fleet_server.trust.people import ClusterPeople
from fleet_server.trust.secrets import SealError, Secrets

__all__ = ["KeysView", "TrustService", "TrustSetupError"]

log = get_logger(__name__)

TOPIC = "bundle"
CHECK_INTERVAL_S = 60.0
MAX_NUMBER_RAISE = 64  # an hour: the 2^20 that a node follows at once last two years, also against one in wrong hands
RAISE_INTERVAL_S = 3600.0


@dataclass(frozen=True, slots=True)
class KeysView:
    """What may be shown of the cluster's keys."""

    cluster_id: str
    authority_key: bytes
    authority_generation: int
    command_keys: tuple[tuple[bytes, CommandKey, int], ...]  # key id, key, created_at_ms
    bundle_version: tuple[int, int]
    bundle_expires_at_ms: int
    tls_ca_sha256: bytes


class TrustService:
    """Keys and bundles of one cluster.

    Args:
        database: where they rest.
        secrets: what opens them.
        clock: for statements and renewal.
        audit: told of every key event.
        wakeup: wakes ``bundle`` when there is a newer one.
        cluster_name: which cluster this server serves.
    """

    def __init__(
        self,
        *,
        database: Database,
        secrets: Secrets,
        clock: Clock,
        audit: AuditService,
        wakeup: Wakeup,
        cluster_name: str,
    ) -> None:
        self._database = database
        self._vault = KeyVault(secrets)
        self._cluster_mac = secrets.row_mac("clusters")
        self._clock = clock
        self._audit = audit
        self._wakeup = wakeup
        self.cluster_name = cluster_name
        self.cluster_id = ""
        self.installation_id = ""
        self.people = ClusterPeople(
            database=database,
            secrets=secrets,
            clock=clock,
            audit=audit,
            bundle=lambda: self.bundle,
            publish=self._refresh,
        )
        self._keyring: Keyring | None = None
        self._bundle: TrustState | None = None
        self._offer: tuple[tuple[str, ...], tuple[bytes, ...]] | None = None
        self._raised_at: float | None = None

    async def create_cluster(self) -> str:
        """Make the cluster on a new installation and answer its id; the one that is there already otherwise.

        Raises:
            TrustSetupError: the database holds a cluster of another name.
        """
        cluster_id = await self._database.write(self._create_cluster)
        self.cluster_id = cluster_id
        return cluster_id

    async def load(self) -> None:
        """Load the cluster's keys; make the authority and the first command key when there are none, once for all
        replicas.

        Raises:
            TrustSetupError: no such cluster, or its keys were changed or sealed under another secret encryption key.
            Refusal: the database is away.
        """
        cluster = await self._database.read(lambda conn: store.cluster(conn, self.cluster_name))
        if cluster is None:
            raise TrustSetupError(
                f"there is no cluster {self.cluster_name!r} in this database: run `fleet-server init`"
            )
        self.cluster_id, self.installation_id = cluster.cluster_id, cluster.installation_id
        try:
            keyring = await self._database.write(self._load)
        except SealError as error:
            raise TrustSetupError(str(error)) from error
        if not self._cluster_mac.verify(cluster.mac, *cluster.authority_fields()):
            raise TrustSetupError(
                f"the row of cluster {self.cluster_name!r} was changed around the server: restore the table clusters"
                " from a backup"
            )
        if keyring.refused:
            log.error("command_keys_quarantined", key_ids=keyring.refused)
        if not any(held.key.phase == trust_pb2.KEY_PHASE_ACTIVE for held in keyring.command_keys.values()):
            raise TrustSetupError(
                f"no active command key verifies; changed around the server: {', '.join(keyring.refused) or 'none'}."
                " Restore the table command_keys from a backup"
            )
        self._keyring = keyring
        authority = keyring.authority
        self._bundle = await self._database.read(lambda conn: self._newest(conn, authority)[0])

    @property
    def authority(self) -> Signer:
        """Signs join tokens, bootstraps, handshake answers, bundles, certificates and checkpoints."""
        return self._known.authority

    @property
    def authority_generation(self) -> int:
        """Generation of the authority, from 1."""
        return self._known.generation

    @property
    def bundle(self) -> TrustState:
        """The newest bundle that this replica knows.

        Raises:
            Refusal: none was published yet.
        """
        if self._bundle is None:
            raise Refusal(Reason.UNAVAILABLE, "the server has published no trust bundle yet: try again in a moment")
        return self._bundle

    def sign_checkpoint(self, statement: bytes) -> trust_pb2.Signed:
        """Sign an audit checkpoint with the authority."""
        return self.authority.sign(Domain.AUDIT_CHECKPOINT, statement)

    def sign_floor(self, node_id: str, *, seq_floor: int, intents_after_ms: int) -> trust_pb2.Signed:
        """Sign what lies behind an adopted node, with the authority."""
        statement = trust_pb2.FloorStatement(
            cluster_id=self.cluster_id,
            node_id=node_id,
            seq_floor=seq_floor,
            intents_after_ms=intents_after_ms,
            issued_at_ms=self._clock.now_ms(),
        )
        return self.authority.sign(Domain.FLOOR, statement.SerializeToString())

    def sign_command_statement(self, domain: Domain, statement: bytes, *, site: str) -> trust_pb2.Signed:
        """Sign commands or a cancel for a node of `site` with the active command key.

        Raises:
            ValueError: another domain: a command key signs nothing else.
            Refusal: no command key may sign for that site now.
        """
        if domain not in (Domain.COMMAND, Domain.CANCEL):
            raise ValueError(f"a command key signs no {domain}")
        return self._active(site).signer.sign(domain, statement)

    def command_key_id(self, site: str) -> bytes:
        """Id of the key that signs commands for nodes of `site` now.

        Raises:
            Refusal: there is none.
        """
        return self._active(site).signer.key_id

    def bundle_chain_from(self, generation: int, number: int) -> list[trust_pb2.Signed]:
        """What a node that holds that version needs to reach the newest: one bundle a generation step, then the
        newest."""
        newest = self.bundle
        if (generation, number) >= newest.version:
            return []
        chain = [signed for step, signed in self._known.steps if step > generation]
        if not chain or chain[-1].statement != newest.signed.statement:
            chain.append(newest.signed)
        return chain

    async def publish_bundle(self, endpoints: Sequence[str], tls_ca_der: Sequence[bytes]) -> None:
        """Say what the bundle shall offer, and publish a new number when that differs or half of the newest's life is
        over.

        Args:
            endpoints: gateway endpoints that nodes may use, ``host:port``, preferred first.
            tls_ca_der: accepted TLS CAs.

        Raises:
            TrustSetupError: none of the CAs is known to the nodes, which could therefore never connect again.
        """
        known_ca = self._bundle.tls_ca_der if self._bundle is not None else ()
        if known_ca and not set(known_ca) & set(tls_ca_der):
            raise TrustSetupError(
                "this server's TLS CA is not the one that the cluster's nodes trust:"
                " copy the folder tls from another replica's data folder, or restore it from a backup"
            )
        self._offer = (tuple(endpoints), tuple(tls_ca_der))
        await self._refresh()

    async def note_held_bundle(self, generation: int, number: int) -> None:
        """A node shows a bundle version. One newer than any here means a restored database: the number is raised
        above it.

        Raised by at most `MAX_NUMBER_RAISE` an hour, for one node in wrong hands must not fast-forward the others
        away.
        """
        now = self._clock.monotonic()
        newest = self.bundle
        if (generation, number) <= newest.version:
            return
        due = self._raised_at is None or now - self._raised_at >= RAISE_INTERVAL_S
        above = rules.number_to_pass(newest, generation, number, max_step=MAX_NUMBER_RAISE)
        if not due or above is None:
            log.error("node_holds_newer_bundle", generation=generation, number=number, newest=newest.number)
            return
        self._raised_at = now
        await self._refresh(above=above)

    async def run(self) -> None:
        """Keep the bundle fresh, here and across replicas, until cancelled."""
        while True:
            await self._clock.sleep(CHECK_INTERVAL_S)
            try:
                await self._refresh()
            except Refusal as refusal:
                log.warning("bundle_renewal_delayed", reason=refusal.reason, detail=refusal.detail)

    async def keys_view(self) -> KeysView:
        """What operators may see of the keys."""
        known = self._known
        bundle = self.bundle
        return KeysView(
            cluster_id=self.cluster_id,
            authority_key=known.authority.public_key,
            authority_generation=known.generation,
            command_keys=tuple((key_id, held.key, held.created_at_ms) for key_id, held in known.command_keys.items()),
            bundle_version=bundle.version,
            bundle_expires_at_ms=bundle.expires_at_ms,
            tls_ca_sha256=certificate_sha256(bundle.tls_ca_der[0]) if bundle.tls_ca_der else b"",
        )

    @property
    def _known(self) -> Keyring:
        if self._keyring is None:
            raise RuntimeError("TrustService.load() has not run")
        return self._keyring

    def _active(self, site: str) -> HeldCommandKey:
        keys = self._known.command_keys
        now_ms = self._clock.now_ms()
        key_id = rules.signing_key_id(((key_id, held.key) for key_id, held in keys.items()), site=site, now_ms=now_ms)
        if key_id is None:
            raise Refusal(
                Reason.UNAVAILABLE, f"no active command key may sign for site {site!r}: see `fleetctl keys list`"
            )
        return keys[key_id]

    def _create_cluster(self, tx: Transaction) -> str:
        found = store.cluster(tx.conn, self.cluster_name)
        if found is not None:
            return found.cluster_id
        others = store.cluster_names(tx.conn)
        if others:
            raise TrustSetupError(
                f"this database belongs to cluster {', '.join(others)}: name that one, or use another database"
            )
        row = store.ClusterRow(_new_id("c"), _new_id("i"), self.cluster_name, self._clock.now_ms())
        row = replace(row, mac=self._cluster_mac.compute(*row.authority_fields()))
        store.insert_cluster(tx.conn, row)
        detail = {"name": row.name, "installation_id": row.installation_id}
        self._audit.append(tx, AuditKind.CLUSTER_CREATED, actor="server", subject=row.cluster_id, detail=detail)
        return row.cluster_id

    def _load(self, tx: Transaction) -> Keyring:
        return load_keyring(tx, self._vault, self._audit, cluster_id=self.cluster_id, now_ms=self._clock.now_ms())

    def _newest(self, conn: Connection, authority: Signer) -> tuple[TrustState | None, bytes]:
        row = store.newest_bundle(conn, self.cluster_id)
        if row is None:
            return None, b""
        try:
            signed = trust_pb2.Signed.FromString(row.signed)
            return trust.first(
                signed, cluster_id=self.cluster_id, authority_key=authority.public_key
            ), row.content_sha256
        except TrustError as error:
            raise TrustSetupError(
                f"the newest trust bundle in the database does not verify ({error.detail}):"
                " restore the table trust_bundles from a backup"
            ) from error

    async def _refresh(self, above: int = 0) -> None:
        """Take what another replica published; publish when it is due, or when the number has to pass `above`."""
        offer = self._offer
        if offer is None:
            return
        known = self._known

        def work(tx: Transaction) -> TrustState:
            store.authority(tx.conn, self.cluster_id, lock=True)
            newest, held_sha256 = self._newest(tx.conn, known.authority)
            now_ms = self._clock.now_ms()
            content = self._content(offer, self.people.kept_for_bundle(tx, self.cluster_id))
            if newest is not None and newest.number > above:
                stale = rules.needs_new_bundle(
                    held_sha256=held_sha256, expires_at_ms=newest.expires_at_ms, content=content, now_ms=now_ms
                )
                if not stale:
                    return newest
            number = max(newest.number if newest else 0, above) + 1
            return self._publish(tx, content, number, now_ms)

        bundle = await self._database.write(work)
        if self._bundle is None or bundle.version != self._bundle.version:
            self._bundle = bundle
            self._wakeup.wake_nowait([TOPIC])

    def _publish(self, tx: Transaction, content: rules.BundleContent, number: int, now_ms: int) -> TrustState:
        authority = self._known.authority
        statement = rules.bundle_statement(
            content, number=number, now_ms=now_ms, sign=lambda raw: authority.sign(Domain.KEY_CERTIFICATE, raw)
        )
        signed = authority.sign(Domain.TRUST_BUNDLE, statement.SerializeToString(deterministic=True))
        store.insert_bundle(
            tx.conn,
            store.BundleRow(
                cluster_id=self.cluster_id,
                generation=content.generation,
                number=number,
                signed=signed.SerializeToString(),
                content_sha256=rules.content_sha256(content),
                expires_at_ms=statement.expires_at_ms,
            ),
        )
        self._audit.append(
            tx,
            AuditKind.BUNDLE_PUBLISHED,
            actor="server",
            subject=self.cluster_id,
            detail={
                "generation": content.generation,
                "number": number,
                "endpoints": list(content.endpoints),
                "expires_at_ms": statement.expires_at_ms,
            },
        )
        return trust.first(signed, cluster_id=self.cluster_id, authority_key=authority.public_key)

    def _content(
        self, offer: tuple[tuple[str, ...], tuple[bytes, ...]], people: trust_pb2.TrustBundleStatement
    ) -> rules.BundleContent:
        known = self._known
        endpoints, tls_ca_der = offer
        return rules.BundleContent(
            cluster_id=self.cluster_id,
            generation=known.generation,
            authority_key=known.authority.public_key,
            command_keys=[held.key for held in known.command_keys.values()],
            endpoints=endpoints,
            tls_ca_der=tls_ca_der,
            people=people,
        )


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
